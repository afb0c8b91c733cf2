"""Eigenvalues and traces against dense matrices."""

import math

import pytest
import torch
from torch import nn

from wdlab.metrics import sharpness
from wdlab.models import GPT, MLP, FactorizedMLP, ResNet


def symmetric(*eigenvalues, seed=0):
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize(
    "eigenvalues",
    [(3.0, 1.0, 2.0), (-10.0, 3.0, 1.0), (-5.0, 5.0, 0.1), (-1.0, -2.0, -3.0), (2.0, 2.0, 2.0), (0.0, 0.0), (4.0,)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_top_eigenvalue_is_the_most_positive_one(eigenvalues, dtype):
    matrix = symmetric(*eigenvalues).to(dtype)
    found = sharpness.top_eigenvalue(lambda v: matrix @ v, len(matrix), matrix, iterations=20)
    assert found == pytest.approx(max(eigenvalues), rel=1e-4, abs=1e-12)


def test_the_top_eigenvalue_of_a_larger_matrix_takes_few_products():
    matrix, calls = symmetric(*torch.linspace(-1, 1, 300).tolist(), 2.0, -4.0), []

    def product(vector):
        calls.append(1)
        return matrix @ vector

    assert sharpness.top_eigenvalue(product, 302, matrix, iterations=5) < 2.0
    assert len(calls) == 5
    assert sharpness.top_eigenvalue(product, 302, matrix, iterations=100) == pytest.approx(2.0, rel=1e-6)
    assert len(calls) < 40


def test_what_is_not_finite_has_no_eigenvalue():
    assert math.isnan(sharpness.top_eigenvalue(lambda v: v * math.nan, 3, torch.zeros(1), iterations=5))
    assert math.isnan(sharpness.estimate_trace(lambda v: v * math.nan, 30, torch.zeros(1), (5, 5))[0])


def test_the_trace_is_exact_for_small_matrices_and_close_for_large_ones():
    matrix = symmetric(*range(-3, 9))
    assert sharpness.estimate_trace(lambda v: matrix @ v, 12, matrix, (12, 99)) == (
        pytest.approx(sum(range(-3, 9))),
        0.0,
    )
    matrix = symmetric(*torch.linspace(0, 2, 200).tolist())
    assert sharpness.estimate_trace(lambda v: matrix @ v, 200, matrix, (20, 20))[0] == pytest.approx(200, rel=0.05)
    diagonal = torch.arange(50.0)
    assert sharpness.estimate_trace(lambda v: diagonal * v, 50, diagonal, (2, 9))[0] == pytest.approx(
        diagonal.sum().item()
    )


def network(normalized):
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(4)] if normalized else []
    model = nn.Sequential(nn.Linear(3, 4), *norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[-1].weight.mul_(2.0)
    return model


def dense_hessian(model, names, inputs, labels):
    """By the named parameters; batch norm uses the batch, dropout is off."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    named = dict(model.named_parameters())
    shapes = [named[name].shape for name in names]

    def loss(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        given = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, given, (inputs,)), labels)

    flat = torch.cat([named[name].detach().reshape(-1) for name in names])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sharpness_is_that_of_the_dense_hessian(normalized, dtype, monkeypatch):
    monkeypatch.setattr(sharpness, "TRACE_PROBES", (100, 100))  # more than parameters: exact
    model, inputs, labels = network(normalized), torch.randn(10, 3).double(), torch.randint(3, (10,))
    names = [name for name, _ in model.named_parameters()]
    whole = dense_hessian(model, names, inputs, labels)
    decayed = [name for name in names if name in ("0.weight", f"{len(model) - 1}.weight")]
    part = dense_hessian(model, decayed, inputs, labels)
    named = dict(model.named_parameters())
    scale = torch.cat([named[name].norm().expand(named[name].numel()) for name in decayed]).detach()
    scaled = scale[:, None] * part * scale
    model = model.to(dtype).train()
    weights = [named[name] for name in decayed]
    found = sharpness.measure_sharpness(model, inputs.to(dtype), labels, list(model.parameters()), weights)
    expected = {
        "sharpness/top_eigenvalue": torch.linalg.eigvalsh(whole)[-1].item(),
        "sharpness/trace": whole.trace().item(),
        "sharpness/trace_error": 0.0,
        "scale_invariant/sharpness": torch.linalg.eigvalsh(scaled)[-1].item(),
        "scale_invariant/trace": scaled.trace().item(),
        "scale_invariant/trace_error": 0.0,
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_trace_takes_as_many_probes_as_its_error_asks_for():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(300, 300, generator=generator, dtype=torch.float64)
    matrix = noise + noise.T + 10 * torch.eye(300, dtype=torch.float64)
    calls = []

    def product(v):
        calls.append(1)
        return matrix @ v

    mean, error = sharpness.estimate_trace(product, 300, matrix, (10, 400))
    assert 10 < len(calls) < 400 and 0 < error <= 0.05 * mean
    assert abs(mean - matrix.trace().item()) < 3 * error
    calls.clear()
    assert sharpness.estimate_trace(product, 300, matrix, (10, 12))[1] > 0.05 * mean and len(calls) == 12


def gradients_of(loss, parameters):
    slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    return dict(zip(parameters, slopes, strict=True))


def test_rows_are_multiplied_by_a_known_hessian():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    unread = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    a, b = symmetric(1.0, 2.0, -3.0, 0.5, 4.0, 0.0), torch.tensor([[2.0, 0.0, -1.0], [5.0, 1.0, 3.0]]).double()
    hessian = torch.block_diag(a, torch.diag(b.flatten()), torch.zeros(2, 2))
    gradients = gradients_of(x @ a @ x / 2 + (b * y.square()).sum() / 2, [x, y, unread])
    product = sharpness.hessian_product(gradients, [x, y, unread])
    rows = torch.randn(5, 14, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(product(rows), rows @ hessian)
    torch.testing.assert_close(torch.stack([product(row) for row in rows]), rows @ hessian)
    estimate = sharpness.estimate_trace(product, 14, rows, (4, 30), together=7)
    assert estimate == pytest.approx(sharpness.estimate_trace(lambda v: hessian @ v, 14, rows, (4, 30)), rel=1e-12)
    diagonal = sharpness.hessian_product(gradients, [y])  # z . H z is the trace for every z of signs
    assert sharpness.estimate_trace(diagonal, 6, rows, (4, 30), together=7) == pytest.approx((10.0, 0.0))


KINDS = {
    "plain": lambda: MLP((1, 4, 4), 3, 8, 3),
    "batch norm": lambda: MLP((1, 4, 4), 3, 8, 3, norm="batch"),
    "factorized": lambda: FactorizedMLP((1, 4, 4), 3, 8, 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_sharpness_of_an_mlp_is_that_of_products_one_by_one(kind, monkeypatch):
    torch.manual_seed(0)
    model, inputs, labels = KINDS[kind](), torch.randn(12, 1, 4, 4), torch.randint(3, (12,))
    parameters, weights = list(model.parameters()), [p for p in model.parameters() if p.dim() == 2]
    rows, grad = [], torch.autograd.grad

    def counting(*args, **kwargs):
        rows.append(len(args[2][0]) if kwargs.get("is_grads_batched") else 1)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    together = sharpness.measure_sharpness(model, inputs, labels, parameters, weights)
    assert max(rows) >= 20
    rows.clear()
    monkeypatch.setattr(sharpness, "TOGETHER_VALUES", 0)
    one_by_one = sharpness.measure_sharpness(model, inputs, labels, parameters, weights)
    assert max(rows) == 1
    for key, value in together.items():
        rounding = 1e-5 * abs(one_by_one[key.removesuffix("_error")])
        assert value == pytest.approx(one_by_one[key], rel=1e-5, abs=rounding)


def test_only_small_mlps_have_vectors_multiplied_together():
    class Own(MLP):
        pass

    def together(model, examples=100):
        return sharpness._vectors_together(model, list(model.parameters()), examples)

    small = ((1, 8, 8), 10, 64, 3)
    assert together(MLP(*small, norm="batch")) == 2**21 // (9098 + 100 * 404) >= sharpness.TRACE_PROBES[0]
    for other in (Own(*small), MLP((1, 28, 28), 10, 400, 6), ResNet((3, 8, 8), 3, 2, 8), GPT((6,), 5, 8, 1, 2)):
        assert together(other) == 1
    assert together(MLP(*small), examples=10_000) == 1


@pytest.mark.parametrize("together", [1, 3, 8, 400])
def test_a_trace_does_not_depend_on_how_many_vectors_are_multiplied_together(together):
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randint(-3, 4, (300, 300), generator=generator).double()
    matrix = matrix + matrix.T + 9 * torch.eye(300, dtype=torch.float64)  # whole numbers: no rounding
    counts = []

    def product(v):
        counts.append(len(v) if v.dim() == 2 else 1)
        return v @ matrix

    signs = torch.Generator().manual_seed(0)
    naive, needed = [], 0
    while not needed:
        z = torch.randint(2, (300,), generator=signs).double() * 2 - 1
        naive.append((z @ matrix @ z).item())
        values = torch.tensor(naive, dtype=torch.float64)
        if len(naive) >= 8 and values.std() / len(naive) ** 0.5 <= 0.05 * values.mean():
            needed = len(naive)
    assert needed > 30
    found = sharpness.estimate_trace(product, 300, matrix, (8, 400), together)
    assert found == (values.mean().item(), values.std().item() / math.sqrt(needed))
    assert counts[0] == min(together, 8) and max(counts) <= together
    assert needed <= sum(counts) < 1.5 * needed + 1
    if together == 1:
        assert sum(counts) == needed
    counts.clear()
    sharpness.estimate_trace(product, 300, matrix, (8, 12), together)
    assert sum(counts) == 12


def test_parameters_that_the_loss_does_not_read_have_no_curvature():
    model, inputs, labels = network(False), torch.randn(10, 3).double(), torch.randint(3, (10,))
    used = list(model.parameters())
    model.unused = nn.Linear(2, 2).double()
    model.forward = nn.Sequential(*list(model)[:-1]).forward
    everything = sharpness.measure_sharpness(model, inputs, labels, list(model.parameters()), [model[0].weight])
    expected = sharpness.measure_sharpness(model, inputs, labels, used, [model[0].weight])
    key = "sharpness/top_eigenvalue"
    assert everything[key] == pytest.approx(expected[key], rel=1e-4)
