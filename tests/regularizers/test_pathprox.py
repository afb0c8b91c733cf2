"""PathProx against brute force, and what its balance and normalization must leave alone."""

import pytest
import torch
from torch import nn

from wdlab.homogeneous import homogeneous_pairs, input_norms, output_norms, unit_path_norms
from wdlab.models import MLP, FactorizedMLP
from wdlab.regularizers import PathProx
from wdlab.regularizers.pathprox_step import PairFactors, multiply_pair_, prox_factors, prox_step_


def step_without_loss(optimizer) -> None:
    """A step whose loss gradient is zero, so that what remains is the method's own doing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def factors_of(pairs, thresholds, balance=True):
    rows, columns = [input_norms(f) for f, _ in pairs], [output_norms(s) for _, s in pairs]
    return prox_factors(rows, columns, thresholds, balance)


def tensors_of(pair):
    return tuple(t.detach() for layer in pair for t in (layer.weight, layer.bias))


def random_pairs(units, runs=()):
    """Weights and biases of pairs with so many units; for a stack of ``runs`` with its leading dimension."""
    torch.manual_seed(0)
    biases = [(*runs, 1, n) if runs else (n,) for n in (*units, 3)]
    return [
        (
            torch.randn(*runs, n, 5),
            torch.randn(biases[k]),
            torch.randn(*runs, 3, n),
            None if k else torch.randn(biases[-1]),
        )
        for k, n in enumerate(units)
    ]


def copies_of(pairs):
    return [tuple(t if t is None else t.clone() for t in pair) for pair in pairs]


def assert_close(pairs, others):
    for pair, other in zip(pairs, others, strict=True):
        for t, o in zip(pair, other, strict=True):
            assert (t is None and o is None) or torch.allclose(t, o, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.5), (0.5, 0.1, 2.0), (0.5, torch.tensor(0.1), torch.tensor(0.0))])
@pytest.mark.parametrize("with_bias", [False, True])
def test_pairs_of_several_widths_are_computed_at_once_as_each_alone(thresholds, with_bias, float64):
    thresholds = [t.double() if isinstance(t, torch.Tensor) else t for t in thresholds]
    together = random_pairs([7, 4, 9])
    apart = copies_of(together)
    prox_step_(together, thresholds, balance=False, regularize_bias=with_bias)
    for pair, threshold in zip(apart, thresholds, strict=True):
        prox_step_([pair], [threshold], balance=False, regularize_bias=with_bias)
    assert_close(together, apart)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_step_of_a_stack_is_the_step_of_each_run(balance, with_bias, float64):
    stack = random_pairs([7, 4, 9], runs=(3,))
    singles = [
        [
            tuple(t if t is None else (t[run, 0] if k % 2 else t[run]).clone() for k, t in enumerate(pair))
            for pair in stack
        ]
        for run in range(3)
    ]
    thresholds = torch.tensor([0.5, 0.0, 0.1])
    prox_step_(stack, [thresholds] * 3, balance, with_bias)
    for run, pairs in enumerate(singles):
        prox_step_(pairs, [thresholds[run]] * 3, balance, with_bias)
        assert_close(
            [tuple(t if t is None else (t[run, 0] if k % 2 else t[run]) for k, t in enumerate(p)) for p in stack], pairs
        )


@pytest.mark.parametrize("model", [MLP, FactorizedMLP])
def test_balance_leaves_the_function_alone_and_equalizes_path_norms(model, float64):
    torch.manual_seed(0)
    network = model((1, 4, 4), classes=3, width=10, depth=6)
    pairs = homogeneous_pairs(network)
    pairs[1][1].weight.data.mul_(7)
    inputs = torch.randn(32, 1, 4, 4)
    before = network(inputs)
    rows = [input_norms(first) for first, _ in pairs]
    for pair, row, factors in zip(pairs, rows, factors_of(pairs, [0.0] * 3), strict=True):
        undone = PairFactors(torch.ones_like(row), factors.first_bias * row, factors.second_weight, factors.second_bias)
        with torch.no_grad():
            multiply_pair_(tensors_of(pair), undone)  # the balance alone: input norms are left as they were
    assert torch.allclose(network(inputs), before, rtol=1e-12, atol=1e-12)
    norms = [path.sum().item() for path in unit_path_norms(pairs)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-12)


def test_the_prox_minimizes_its_objective(float64):
    """``argmin_z |z - v|^2 / 2 + t |z|`` by brute force on a fine grid along v, where the minimum lies."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)
    threshold = 1.001 * float(output_norms(second).median())  # above three of the six
    (factors,) = factors_of([(first, second)], [threshold], balance=False)
    for unit, v in enumerate(second.weight.detach().T):
        scales = torch.linspace(0, 1.2, 120_001)
        values = ((scales[:, None] - 1) * v).square().sum(1) / 2 + threshold * scales * v.norm()
        assert factors.second_weight[unit].item() == pytest.approx(scales[values.argmin()].item(), abs=2e-5)
    assert (factors.second_weight == 0).sum() == 3


def test_a_step_normalizes_inputs_and_makes_exact_zeros():
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    median = torch.cat([output_norms(second) for _, second in homogeneous_pairs(model)]).median().item()
    method = PathProx.for_model(model, strength=median, balance=False)
    method.attach(optimizer)
    step_without_loss(optimizer)
    for first, _ in method.pairs:
        assert input_norms(first).tolist() == pytest.approx([1.0] * 8, rel=1e-6)
    shares = torch.cat(unit_path_norms(method.pairs)) == 0
    assert 0 < shares.sum() < len(shares)


def test_pairs_may_be_of_different_precision():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, dtype=dtype) for dtype in (torch.float64, torch.float64, torch.float32, torch.float32)]
    method = PathProx([tuple(layers[:2]), tuple(layers[2:])], strength=0.1, balance=True)
    optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)
    method.attach(optimizer)
    step_without_loss(optimizer)
    assert [p.dtype for layer in layers for p in layer.parameters()] == [torch.float64] * 4 + [torch.float32] * 4
    assert all(p.isfinite().all() for layer in layers for p in layer.parameters())


@pytest.mark.parametrize("lr", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("compiled", [False, True])
def test_zeros_stay_while_the_learning_rate_falls_towards_0(lr, compiled):
    """The gradient brings a zero unit no further than its threshold, so the prox takes it back, however small both."""
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = PathProx.for_model(model, strength=5.0, balance=False, compiled=compiled)
    ((_, second),) = method.pairs
    second.weight.data[:, :3] = 0.0
    method.attach(optimizer)
    optimizer.param_groups[0]["lr"] = lr
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    second.weight.grad[:, 0] = 2.8  # of length 4.8, below the strength; the second unit gets one above it
    second.weight.grad[:, 1] = 3.0
    optimizer.step()
    assert (output_norms(second) == 0).tolist() == [True, False, True] + [False] * 5


def test_a_dead_network_stays_finite():
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    PathProx.for_model(model, strength=1e6).attach(optimizer)
    for _ in range(3):
        step_without_loss(optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_network_with_a_dead_pair_keeps_its_biases():
    model = MLP((1, 4, 4), classes=3, width=8, depth=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = PathProx.for_model(model, strength=1e-9)
    method.attach(optimizer)
    with torch.no_grad():
        for _, second in method.pairs[1:]:
            second.weight.zero_()
    before = [second.bias.clone() for _, second in method.pairs]
    for _ in range(20):
        step_without_loss(optimizer)
    assert all(torch.equal(second.bias, bias) for (_, second), bias in zip(method.pairs, before, strict=True))


def test_weights_outside_the_pairs_get_l2_in_the_loss():
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=3)
    method = PathProx.for_model(model, strength=0.5)
    (last,) = method.other
    assert last is model.layers[-1].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.attach(optimizer)
    old = last.detach().clone()
    step_without_loss(optimizer)
    assert torch.allclose(last, old * (1 - 0.1 * 0.5))


def test_penalty_is_the_path_norm_and_half_the_square_of_the_rest(float64):
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=3)
    first, second = model.layers[1], model.layers[3]
    path = sum((first.weight[i].norm() * second.weight[:, i].norm()).item() for i in range(8))
    expected = 0.2 * (path + model.layers[5].weight.square().sum().item() / 2)
    assert PathProx.for_model(model, strength=0.2).penalty().item() == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_in_force_sets_the_threshold():
    """A scheduler's learning rate, and that of the group the output weights are in, not the one at construction."""
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=2)
    first, second = model.layers[1], model.layers[3]
    groups = [{"params": first.parameters(), "lr": 5.0}, {"params": second.parameters(), "lr": 1.0}]
    optimizer = torch.optim.SGD(groups)
    PathProx.for_model(model, strength=0.1).attach(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the group dicts, as resuming does
    optimizer.param_groups[1]["lr"] = 0.5
    before = output_norms(second)
    step_without_loss(optimizer)
    assert torch.allclose(output_norms(second), (before - 0.05).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "got none"),
        ([(nn.Linear(2, 3), nn.Linear(4, 2))], "has 3 outputs"),
    ],
)
def test_pairs_that_cannot_be_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        PathProx(pairs, strength=1e-3)


def test_overlapping_pairs_are_refused():
    a, b, c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="more than once"):
        PathProx([(a, b), (b, c)], strength=1e-3)


def test_a_model_without_pairs_is_refused():
    with pytest.raises(ValueError, match="has no pair"):
        PathProx.for_model(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), strength=1e-3)


class Branches(nn.Module):
    """Two pairs with something between them that scaling does not commute with."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.between = between

    def forward(self, x):
        x = self.between(self.b(torch.relu(self.a(x))))
        return self.d(torch.relu(self.c(x)))


@pytest.mark.parametrize("between", [nn.Tanh(), nn.LayerNorm(4)], ids=["tanh", "norm"])
def test_pairs_that_cannot_be_balanced_are_refused_unless_balance_is_off(between):
    with pytest.raises(ValueError, match="balance=True: would change the function of Branches"):
        PathProx.for_model(Branches(between), strength=1e-3)
    assert len(PathProx.for_model(Branches(between), strength=1e-3, balance=False).pairs) == 2
    assert PathProx.for_model(Branches(nn.Dropout(0.1)), strength=1e-3).balance


def test_a_pair_without_gradients_is_left_alone_and_nothing_is_balanced():
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    PathProx.for_model(model, strength=0.1).attach(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    first, second = model.layers[5], model.layers[7]
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    expected = (output_norms(second) - 0.1).clamp(min=0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(list(model.parameters())[:4], before[:4], strict=True))
    assert torch.allclose(output_norms(second), expected, atol=1e-6)


def test_frozen_pairs_are_left_out():
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    model.layers[1].weight.requires_grad_(False)
    method = PathProx.for_model(model, strength=0.1)
    assert method.pairs == [(model.layers[5], model.layers[7])] and method.other == [model.layers[3].weight]
    method.attach(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))


def test_a_regularized_bias_counts_to_the_input_weights(float64):
    """The unit's vector (w, b) has length 1 afterwards, the prox is on |v| as before, and nothing is balanced."""
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    method = PathProx.for_model(model, strength=0.1, regularize_bias=True)
    path = sum(
        (torch.cat([first.weight[i], first.bias[i, None]]).norm() * second.weight[:, i].norm()).item()
        for first, second in method.pairs
        for i in range(8)
    )
    assert method.penalty().item() == pytest.approx(0.1 * path, rel=1e-12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method.attach(optimizer)
    second_biases = [second.bias.detach().clone() for _, second in method.pairs]
    expected = [(output_norms(second) - 0.1).clamp(min=0) for _, second in method.pairs]
    step_without_loss(optimizer)
    for (first, second), bias, norms in zip(method.pairs, second_biases, expected, strict=True):
        joined = torch.cat([first.weight, first.bias[:, None]], dim=1)
        assert torch.allclose(joined.norm(dim=1), torch.ones(8))
        assert torch.equal(second.bias, bias) and torch.allclose(output_norms(second), norms)
