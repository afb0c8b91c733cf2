"""Every method against its naive loop in ``tests/reference``, step by step, in float64.

A line of ``CASES`` declares a real method, its reference, and the settings that both get.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tests.reference import (
    adams,
    base,
    cautious,
    constrained,
    corrected,
    decoupled,
    huber,
    in_loss,
    padam,
    pathprox,
    prox,
    routes,
    schedules,
    sgds,
)
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import (
    L1,
    L2,
    CoherenceGate,
    Coherent,
    ConstrainedRegularization,
    Corrected,
    DecoupledDecay,
    Delayed,
    Early,
    GradientScale,
    HuberDecay,
    Independent,
    Late,
    Lp,
    PathProx,
    PNormDecay,
    PNormProx,
    ScheduledDecay,
    WarmUp,
)
from wdlab.regularizers.routes import ROUTES

STEPS = 25
TOLERANCE = 1e-12  # of a tensor's largest value: float64 rounds to 1e-16, and 25 steps have come to 4e-15 at most
SHAPES = [(3, 4), (5,), (2, 3, 2, 2), (1, 6)]
NORMALIZED = (True, False, False, True)  # the tensors that count as normalized
PEAK = 0.1  # the learning rate of the first step, from which on it falls
SHARES = (1.0, 1.0, 0.0, 3.0)  # of the strength, for each tensor: three groups, one of them without decay
CONVOLUTIONS = [(4, 2, 3, 3), (4,), (3, 4, 3, 3), (3,), (5, 3, 1, 1), (5,), (2, 5, 3, 3), (2,), (3, 2), (3,)]
LINEAR = [(4, 3), (4,), (3, 4), (3,), (5, 3), (5,), (2, 5), (2,), (3, 2), (3,)]
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
BETAS = {"betas": (0.8, 0.95)}  # shorter memories than the usual ones, so that 25 steps are long
MOMENTUM = {"momentum": 0.9, "dampening": 0.3}


class Case(NamedTuple):
    """A real method and its specification."""

    build: Callable[..., torch.optim.Optimizer]  # from parameters, strengths and settings
    reference: Callable[..., base.Steps]
    settings: Mapping[str, Any] = MappingProxyType({})  # of both
    strength: float = 0.05
    shapes: list[tuple[int, ...]] = SHAPES
    has_zeros: bool = False  # exact ones at the end


def drop_in(make: Callable) -> Callable:
    """A drop-in optimizer with three groups."""

    def build(parameters, strengths, **settings):
        decays = sorted(set(strengths))
        groups = [
            {"params": [p for p, s in zip(parameters, strengths, strict=True) if s == decay], "weight_decay": decay}
            for decay in decays
        ]
        return make(groups, **settings)

    return build


def attached(make: Callable, optimizer: Callable = SGD, **own) -> Callable:
    """A regularizer with a group for each parameter on a torch optimizer; ``own`` are settings of the regularizer."""

    def build(parameters, strengths, **settings):
        built = optimizer(parameters, lr=1.0, **settings)
        groups = [{"params": [p], "strength": s} for p, s in zip(parameters, strengths, strict=True)]
        make(groups, 0.0, **{key: value() if callable(value) else value for key, value in own.items()}).attach(built)
        return built

    return build


def on_layers(parameters, strengths, **settings):
    """PathProx on layers made of the parameters, two pairs and a linear layer."""
    layers = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        layer = nn.Linear(1, 1) if weight.dim() == 2 else nn.Conv2d(1, 1, 1)
        layer.weight, layer.bias = weight, bias
        layers.append(layer)
    a, b, c, d, other = layers
    optimizer = SGD(parameters, lr=1.0)
    PathProx([(a, b), (c, d)], strengths[0], [other.weight], **settings).attach(optimizer)
    return optimizer


def over_time(make: Callable, optimizer: Callable = SGD, method: Callable = L2) -> Callable:
    """A method under a schedule that is made anew for each run."""
    return attached(method, optimizer, over_time=make)


def partly_corrected(optimizer: Callable, method: Callable = DecoupledDecay, **own) -> Callable:
    """A method whose strength is corrected on the tensors that ``NORMALIZED`` names."""

    def build(parameters, strengths, **settings):
        normalized = [p for p, named in zip(parameters, NORMALIZED, strict=True) if named]
        make = partial(Corrected, weights=normalized, peak_lr=PEAK)
        return attached(method, optimizer, over_time=make, **own)(parameters, strengths, **settings)

    return build


def under(reference: Callable, make: Callable, **settings) -> Callable:
    """A reference under a factor that is made anew for each run."""
    return lambda *arguments, **shared: reference(*arguments, factor=make(), **settings, **shared)


def gates(coherence: str, threshold: float) -> tuple[Callable, Callable]:
    """A gate and its reference."""
    return partial(CoherenceGate, coherence, threshold), partial(schedules.Gate, coherence, threshold)


MEAN, TOTAL, RATIO = gates("running_mean", 0.75), gates("total_gradient", 0.85), gates("norm_ratio", 1.5)
adam_decoupled, sgd_decoupled = (partial(decoupled.decoupled, base=kind) for kind in (base.Adam, base.SGD))
pnorm_on_adam = partial(padam.pnorm_decay, base=base.Adam)
on_adam, on_sgd = {"base": base.Adam}, {"base": base.SGD}
peak = partial(Corrected, "all", peak_lr=PEAK), partial(Independent, peak_lr=PEAK)

CASES = {
    "AdamS": Case(drop_in(AdamS), adams.adams, BETAS),
    "AdamS, AMSGrad": Case(drop_in(AdamS), adams.adams, {**BETAS, "amsgrad": True}),
    "AdamS, fused": Case(drop_in(partial(AdamS, fused=True)), adams.adams, BETAS),
    "AdamS, factor 0": Case(drop_in(AdamS), adams.adams, BETAS, strength=10.0),
    "ScheduledDecay on Adam": Case(attached(ScheduledDecay, ADAM), adams.adams, BETAS),
    "SGDS": Case(drop_in(SGDS), sgds.sgds, MOMENTUM),
    "SGDS, Nesterov": Case(drop_in(SGDS), sgds.sgds, {"momentum": 0.9, "nesterov": True}),
    "ScheduledDecay on SGD": Case(attached(ScheduledDecay), sgds.sgds, MOMENTUM),
    **{f"PAdam, p={p}": Case(drop_in(PAdam), padam.padam, {**BETAS, "p": p}) for p in (0.8, 1, 1.5, 2, 3)},
    "PAdam, p=0.5": Case(drop_in(PAdam), padam.padam, {**BETAS, "p": 0.5}, has_zeros=True),
    "PNormDecay on Adam": Case(attached(PNormDecay, ADAM, p=1.3), partial(pnorm_on_adam, p=1.3), BETAS),
    "PNormDecay on SGD": Case(attached(PNormDecay, p=0.8), partial(padam.pnorm_decay, p=0.8), MOMENTUM),
    "PNormDecay, late": Case(attached(PNormDecay, late=True), partial(padam.pnorm_decay, late=True), MOMENTUM),
    **{
        f"elastic p-norm, p={p}": Case(
            attached(PNormDecay, ADAM, p=p, ridge=0.4),
            partial(pnorm_on_adam, p=p, ridge=0.4),
            BETAS,
            has_zeros=p == 0.5,
        )
        for p in (0.5, 1, 1.3, 2, 3)
    },
    "elastic p-norm, late": Case(
        attached(PNormDecay, late=True, ridge=2.0), partial(padam.pnorm_decay, late=True, ridge=2.0), MOMENTUM
    ),
    "PathProx": Case(on_layers, pathprox.pathprox, {}, 0.3, LINEAR),
    "PathProx, zeros": Case(on_layers, pathprox.pathprox, {}, 4.0, LINEAR, has_zeros=True),
    "PathProx, convolutions": Case(on_layers, pathprox.pathprox, {}, 4.0, CONVOLUTIONS, has_zeros=True),
    "PathProx, unbalanced": Case(on_layers, pathprox.pathprox, {"balance": False}, 0.3, LINEAR),
    "PathProx, with biases": Case(on_layers, pathprox.pathprox, {"regularize_bias": True}, 0.3, LINEAR),
    **{
        f"L2 through Adam, {route}": Case(attached(L2, ADAM, route=route), partial(routes.routed, route=route), BETAS)
        for route in ROUTES
    },
    **{
        f"L2 through Adam, {route}, early": Case(
            attached(L2, ADAM, route=route, over_time=partial(Early, steps=9)),
            under(routes.routed, partial(schedules.early, 9), route=route),
            BETAS,
        )
        for route in ROUTES
    },
    "L2": Case(attached(L2), in_loss.in_loss, MOMENTUM),
    "L1": Case(attached(L1), partial(in_loss.in_loss, slope=in_loss.l1), MOMENTUM),
    "Lp": Case(attached(Lp, p=0.8, epsilon=1e-3), partial(in_loss.in_loss, slope=in_loss.lp(0.8, 1e-3)), MOMENTUM),
    "L1 on Adam": Case(attached(L1, ADAM), partial(in_loss.in_loss, slope=in_loss.l1, base=base.Adam), BETAS),
    "early": Case(over_time(partial(Early, steps=9)), under(in_loss.in_loss, partial(schedules.early, 9))),
    "late": Case(over_time(partial(Late, steps=9)), under(in_loss.in_loss, partial(schedules.late, 9))),
    "delayed": Case(
        over_time(partial(Delayed, epochs=3, steps_per_epoch=3)), under(in_loss.in_loss, partial(schedules.late, 9))
    ),
    "warm-up": Case(over_time(partial(WarmUp, steps=9.5)), under(in_loss.in_loss, partial(schedules.warm_up, 9.5))),
    "warm-up and early": Case(
        over_time(lambda: [WarmUp(steps=9), Early(steps=15)]),
        under(in_loss.in_loss, lambda: schedules.product(schedules.warm_up(9), schedules.early(15))),
    ),
    "gate, running mean": Case(over_time(MEAN[0]), under(in_loss.in_loss, MEAN[1]), strength=0.3),
    "gate, total gradient": Case(over_time(TOTAL[0]), under(in_loss.in_loss, TOTAL[1]), strength=0.3),
    "gate, norm ratio": Case(over_time(RATIO[0]), under(in_loss.in_loss, RATIO[1]), strength=0.3),
    "gate on decoupled decay": Case(over_time(MEAN[0], ADAM, DecoupledDecay), under(adam_decoupled, MEAN[1]), BETAS),
    "Coherent": Case(
        attached(Coherent, penalty="l1", threshold=0.75), under(in_loss.in_loss, MEAN[1], slope=in_loss.l1)
    ),
    "gradient scale on Adam's decoupled decay": Case(
        over_time(GradientScale, ADAM, DecoupledDecay),
        under(adam_decoupled, lambda: schedules.GradientScale(**BETAS)),
        BETAS,
    ),
    "gradient scale on Adam's L2": Case(
        over_time(GradientScale, ADAM),
        under(in_loss.in_loss, lambda: schedules.GradientScale(**BETAS), base=base.Adam),
        BETAS,
    ),
    "DecoupledDecay on Adam": Case(attached(DecoupledDecay, ADAM), adam_decoupled, BETAS),
    "DecoupledDecay on SGD": Case(attached(DecoupledDecay), sgd_decoupled, MOMENTUM),
    "torch's AdamW": Case(drop_in(ADAMW), adam_decoupled, BETAS),
    "HuberDecay": Case(attached(HuberDecay, delta=0.3), partial(huber.huber, delta=0.3), MOMENTUM, 3.0),
    "HuberDecay on Adam": Case(
        attached(HuberDecay, ADAM, delta=0.3), partial(huber.huber, delta=0.3, base=base.Adam), BETAS, 0.5
    ),
    "CPR, warm start": Case(
        attached(ConstrainedRegularization, ADAM, warm_start=4), partial(constrained.constrained, warm_start=4), BETAS
    ),
    "CPR, inflection": Case(
        attached(ConstrainedRegularization, kappa="inflection", every=3),
        partial(constrained.constrained, every=3, base=base.SGD),
        MOMENTUM,
    ),
    "cautious on Adam": Case(
        attached(DecoupledDecay, ADAM, cautious=True), partial(cautious.cautious, **on_adam), BETAS
    ),
    "cautious on AdamW": Case(
        attached(DecoupledDecay, partial(ADAMW, weight_decay=0.0), cautious=True),
        partial(cautious.cautious, **on_adam),
        BETAS,
    ),
    "cautious on SGD": Case(attached(DecoupledDecay, cautious=True), cautious.cautious, MOMENTUM),
    "cautious under a gate": Case(
        over_time(MEAN[0], SGD, partial(DecoupledDecay, cautious=True)), under(cautious.cautious, MEAN[1]), MOMENTUM
    ),
    "scheduled and cautious": Case(
        attached(ScheduledDecay, ADAM, cautious=True),
        under(cautious.cautious, lambda: schedules.GradientScale(**BETAS), **on_adam),
        BETAS,
    ),
    **{
        f"p-norm and cautious, p={p}": Case(
            attached(PNormDecay, ADAM, p=p, cautious=True),
            partial(cautious.cautious, decay=cautious.pnorm(p), **on_adam),
            BETAS,
        )
        for p in (0.8, 1, 2)
    },
    "p-norm, late and cautious": Case(
        attached(PNormDecay, late=True, cautious=True),
        partial(cautious.cautious, decay=cautious.pnorm(0.8, late=True)),
        MOMENTUM,
    ),
    "soft threshold, cautious": Case(
        attached(PNormProx, cautious=True),
        partial(cautious.cautious, decay=cautious.soft_threshold),
        MOMENTUM,
        3.0,
        has_zeros=True,
    ),
    **{
        f"{name} of {which}": Case(
            build(kind),
            partial(corrected.corrected, base=form, normalized=normalized),
            settings,
        )
        for which, build, normalized in (
            ("some", partly_corrected, NORMALIZED),
            ("all", partial(over_time, peak[0], method=DecoupledDecay), [True] * 4),
        )
        for name, kind, form, settings in (
            ("AdamC", ADAM, base.Adam, BETAS),
            ("AdamC, by AdamW", partial(ADAMW, weight_decay=0.0), base.Adam, BETAS),
            ("SGDC", SGD, base.SGD, MOMENTUM),
        )
    },
    "independent on Adam": Case(
        over_time(peak[1], ADAM, DecoupledDecay), partial(corrected.independent, **on_adam), BETAS
    ),
    "independent on SGD": Case(
        over_time(peak[1], SGD, DecoupledDecay), partial(corrected.independent, **on_sgd), MOMENTUM
    ),
    "PNormProx, p=1": Case(attached(PNormProx, p=1), partial(prox.proximal, p=1), MOMENTUM, 3.0, has_zeros=True),
    "PNormProx, p=1.5": Case(attached(PNormProx, p=1.5), partial(prox.proximal, p=1.5), MOMENTUM, 0.5),
}


def draw(shapes: list[tuple[int, ...]]) -> tuple[base.Tensors, list[base.Tensors], list[float]]:
    """Return starting weights, the gradients of each step and its learning rate, which falls.

    A gradient has a part that is the same in every step. Gradients are small in two steps of five, so that gates shut.
    """
    generator = torch.Generator().manual_seed(0)
    weights, stays = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    scales = [0.2 if step % 5 < 2 else 0.6 for step in range(STEPS)]
    gradients = [[scale * (g + torch.randn(g.shape, generator=generator)) for g in stays] for scale in scales]
    return weights, gradients, [PEAK * 0.95**step for step in range(STEPS)]


@pytest.mark.parametrize("name", CASES)
def test_method_follows_its_reference(name, float64):
    case = CASES[name]
    weights, gradients, lrs = draw(case.shapes)
    strengths = [case.strength * share for share in (SHARES if case.shapes is SHAPES else [1.0] * len(weights))]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = case.build(parameters, strengths, **case.settings)
    reference = case.reference(weights, gradients, lrs, strengths, **case.settings)
    for step, expected in enumerate(reference):
        for group in optimizer.param_groups:
            group["lr"] = lrs[step]
        for p, g in zip(parameters, gradients[step], strict=True):
            p.grad = g.clone()
        optimizer.step()
        for p, wanted in zip(parameters, expected, strict=True):
            assert (p - wanted).abs().max() <= TOLERANCE * wanted.abs().max(), step
    assert step == STEPS - 1
    assert any((w == 0).any() for w in expected) == case.has_zeros


@pytest.mark.parametrize("make_gate", [MEAN[1], TOTAL[1], RATIO[1]])
def test_gates_open_and_close(make_gate, float64):
    """Check that the comparisons above are no empty ones: a gate that stays open or shut is a constant."""
    gate, factors = make_gate(), []

    def remembered(*arguments):
        factors.append(gate(*arguments))
        return factors[-1]

    list(in_loss.in_loss(*draw(SHAPES), [0.3 * share for share in SHARES], factor=remembered))
    assert 4 <= sum(factors) <= STEPS - 4


@pytest.mark.parametrize("name", ["CPR, warm start", "CPR, inflection"])
def test_constraints_act(name, float64):
    """Check that the comparisons above are no empty ones, as a bound that is never reached would make them."""
    case = CASES[name]
    of = [case.reference(*draw(SHAPES), [s * share for share in SHARES], **case.settings) for s in (0.0, case.strength)]
    *_, free = of[0]
    *_, held = of[1]
    moved = [not torch.equal(a, b) for a, b in zip(free, held, strict=True)]
    assert moved[0] and not moved[2] and sum(moved) >= 2
