"""The gradients of loss and penalty at a step, by hand."""

import math

import pytest
import torch
from torch import nn

from wdlab import regularizers
from wdlab.metrics import norms
from wdlab.metrics.gradients import GradientComparison, cosine_with_sum


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def values_of_step(method, params, gradients, optimizer=None, steps=1):
    """Of the last of several steps, whose loss gradients are always the same."""
    optimizer = optimizer or torch.optim.SGD(params, lr=0.0)
    with method.attach(optimizer):
        for _ in range(steps):
            for p, g in zip(params, gradients, strict=True):
                p.grad = None if g is None else torch.tensor(g, dtype=torch.float64)
            live = [p for p in params if p.grad is not None]
            sizes = norms.each_norm(norms.as_rows([p.grad for p in live])).unbind(1) if live else []
            penalty = GradientComparison(method, dict(zip(map(id, live), sizes, strict=True)))
            optimizer.step()
        return {key: value.item() for key, value in penalty.values().items()}


def test_penalty_norm_and_coherence():
    p = parameter(3.0, 4.0)
    values = values_of_step(regularizers.L2([p], strength=0.5), [p], [[1.0, 0.0]])
    assert values.keys() == {"gradient/penalty_norm", "gradient/coherence"}
    assert values["gradient/penalty_norm"] == pytest.approx(2.5)
    assert values["gradient/coherence"] == pytest.approx(2.5 / math.hypot(2.5, 2.0))


def test_every_group_has_its_own_strength():
    one, two = parameter(3.0), parameter(4.0)
    method = regularizers.L2([{"params": [one], "strength": 1.0}, {"params": [two], "strength": 0.5}], strength=0.1)
    values = values_of_step(method, [one, two], [[0.0], [1.0]])
    assert values["gradient/penalty_norm"] == pytest.approx(math.hypot(3.0, 2.0))
    assert values["gradient/coherence"] == pytest.approx(3 / math.hypot(3, 3))


def test_parameters_without_a_gradient_do_not_count():
    one, two = parameter(3.0), parameter(4.0)
    method = regularizers.L2([one, two], strength=1.0)
    assert values_of_step(method, [one, two], [[1.0], None])["gradient/penalty_norm"] == pytest.approx(3.0)
    assert values_of_step(method, [one, two], [None, None]) == {"gradient/penalty_norm": 0, "gradient/coherence": 0}


def test_without_a_penalty_the_gradient_is_coherent_and_without_a_gradient_it_is_not():
    p = parameter(3.0, 4.0)
    none = {"gradient/penalty_norm": 0.0, "gradient/coherence": 1.0}
    assert values_of_step(regularizers.Regularizer([p]), [p], [[1.0, 2.0]]) == pytest.approx(none)
    assert values_of_step(regularizers.L2([p], strength=1.0), [p], [[0.0, 0.0]])["gradient/coherence"] == 0.0


def test_coherence_falls_as_the_penalty_drowns_the_gradient():
    found = []
    for strength in (0.0, 0.1, 1.0, 10.0):
        p = parameter(3.0, 4.0)
        method = regularizers.L1([p], strength=strength)
        found.append(values_of_step(method, [p], [[1.0, -1.0]])["gradient/coherence"])
    assert found == sorted(found, reverse=True) and found[-1] < 0.2


def test_the_strength_is_that_in_force_in_the_step():
    for steps, strength in ((2, 1.0), (3, 0.0)):
        p = parameter(3.0)
        method = regularizers.L2([p], strength=1.0, over_time=regularizers.Early(steps=2))
        assert values_of_step(method, [p], [[1.0]], steps=steps)["gradient/penalty_norm"] == 3.0 * strength


@pytest.mark.parametrize(("threshold", "norm"), [(0.1, 6.0), (0.9, 0.0)])
def test_a_gate_is_looked_at_behind_the_step(threshold, norm):
    p = parameter(3.0)
    gate = regularizers.CoherenceGate("norm_ratio", threshold)
    values = values_of_step(regularizers.L2([p], strength=2.0, over_time=gate), [p], [[3.0]])
    assert values["gradient/gate"] == 0.5 and values["gradient/penalty_norm"] == norm


def test_a_scheduled_strength_is_looked_at_behind_the_step():
    p = parameter(3.0)
    method = regularizers.ScheduledDecay([p], strength=0.1)
    values = values_of_step(method, [p], [[0.25]], torch.optim.Adam([p], lr=0.0))
    assert values["gradient/penalty_norm"] == pytest.approx(0.1 / 0.25 * 3.0)
    assert method.strength_in_force == pytest.approx(0.4)


def test_where_the_optimizer_maximizes_the_penalty_is_subtracted():
    p = parameter(1.0, 1.0)
    optimizer = torch.optim.SGD([p], lr=0.0, maximize=True)
    values = values_of_step(regularizers.L2([p], strength=1.0), [p], [[1.0, 0.0]], optimizer)
    assert values["gradient/coherence"] == pytest.approx(0.0)
    assert values["gradient/penalty_norm"] == pytest.approx(math.sqrt(2))


def test_a_cosine_stays_one():
    square, product, other = (torch.tensor(v, dtype=torch.float64) for v in (1.0, -1.0, 1.0))
    assert cosine_with_sum(square, product, other) == 0.0  # g + r is zero
    assert math.isnan(cosine_with_sum(square, product, other * math.nan))
    assert cosine_with_sum(square, other, other) == 1.0
