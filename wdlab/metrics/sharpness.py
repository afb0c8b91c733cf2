"""Sharpness: the largest eigenvalue and the trace of the Hessian of the training loss, by products with vectors.

The numerical part knows a matrix ``H`` only as a function ``v -> H v`` on flat vectors.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wdlab.metrics.objective import cross_entropy
from wdlab.metrics.scale_invariant import in_units_of_layers
from wdlab.models.modes import evaluation

ITERATIONS = 60  # products for an eigenvalue, at most
TOLERANCE = 1e-4  # residual |Hv - mu v| relative to |mu| at which an eigenvalue is good enough
PROBES = (20, 100)  # products for a trace, at least and at most
TRACE_ERROR = 0.05  # standard error relative to the trace at which it is good enough

SHARPNESS = ("sharpness/top_eigenvalue", "sharpness/trace", "sharpness/trace_error")
SCALE_INVARIANT = ("scale_invariant/sharpness", "scale_invariant/trace", "scale_invariant/trace_error")

Product = Callable[[Tensor], Tensor]


def measure(
    model: nn.Module, inputs: Tensor, labels: Tensor, parameters: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, float]:
    """Sharpness of the mean cross-entropy of ``inputs`` and ``labels``, which are taken as one batch.

    The traces are estimates, and stand beside their standard errors. The graph of the gradient of all examples is held
    at once: about 15 MiB for each of them with a ResNet-18 of width 64.

    Batch norm normalizes by that batch, for only then is the loss the same when a layer before it is scaled; dropout is
    off. Nothing of the model changes: modes, buffers, ``p.grad``.

    Args:
        model: of any device and type.
        inputs, labels: examples as the model reads them.
        parameters: trainable parameters; ``sharpness/top_eigenvalue`` and ``sharpness/trace`` are by all of them.
        weights: those of ``parameters`` that are decayed; ``scale_invariant/sharpness`` and ``scale_invariant/trace``
            are by these, in units of their layers' norms.
    """
    with torch.enable_grad():
        loss = training_loss(model, inputs, labels)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    gradients = dict(zip(parameters, slopes, strict=True))
    values = _spectrum(hessian_product(gradients, parameters), parameters)
    found = dict(zip(SHARPNESS, values, strict=True))
    if weights:
        values = _spectrum(in_units_of_layers(hessian_product(gradients, weights), weights), weights)
        found |= dict(zip(SCALE_INVARIANT, values, strict=True))
    return found


def training_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of one batch, normalized by it, in a form that can be differentiated twice."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # the running statistics are moved
    with evaluation(model, batch_statistics=True), sdpa_kernel(SDPBackend.MATH):  # fused attention: once only
        return cross_entropy(torch.func.functional_call(model, buffers, (inputs,)), labels)


def hessian_product(gradients: dict[Tensor, Tensor], parameters: Sequence[Tensor]) -> Product:
    """``v -> H v`` by ``parameters``, from the gradient by each of them, whose graph is kept."""
    sizes = [p.numel() for p in parameters]
    live = [i for i, p in enumerate(parameters) if gradients[p].requires_grad]
    outputs = [gradients[parameters[i]] for i in live]

    def product(vector: Tensor) -> Tensor:
        pieces = vector.split(sizes)
        along = [pieces[i].view_as(parameters[i]) for i in live]
        images = torch.autograd.grad(outputs, parameters, along, retain_graph=True, materialize_grads=True)
        return torch.cat([image.reshape(-1) for image in images])

    return product


def _spectrum(product: Product, parameters: Sequence[Tensor]) -> tuple[float, float, float]:
    like = torch.cat([p.detach().reshape(-1)[:1] for p in parameters])
    size = sum(p.numel() for p in parameters)
    return top_eigenvalue(product, size, like, ITERATIONS), *trace(product, size, like, PROBES)


def top_eigenvalue(product: Product, size: int, like: Tensor, iterations: int) -> float:
    """The largest (most positive) eigenvalue of a symmetric matrix; nan if it is not finite.

    By the Lanczos recurrence with three vectors: of all vectors that power iteration makes on its way it finds the best
    combination, and no large negative eigenvalue stands in its way. It starts from the same random vector each time.

    Args:
        product: ``v -> H v``.
        size: of ``v``.
        like: a tensor of the type and on the device of ``v``.
        iterations: how many products at most.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(like)
    vector /= vector.norm()
    before, beta = torch.zeros_like(vector), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    largest = float("nan")
    for _ in range(iterations):
        image = product(vector).sub_(before, alpha=beta)
        diagonal.append(torch.dot(image, vector).item())
        image.sub_(vector, alpha=diagonal[-1])
        beta = image.norm().item()
        largest, residual, scale = _top_of_tridiagonal(diagonal, beside, beta)
        if not residual > TOLERANCE * abs(largest) or beta <= torch.finfo(like.dtype).eps * scale:
            break
        beside.append(beta)
        before, vector = vector, image.div_(beta)
    return largest


def _top_of_tridiagonal(diagonal: list[float], beside: list[float], beta: float) -> tuple[float, float, float]:
    """The largest eigenvalue, the residual of its vector in the whole space, the matrix's norm; nan if not finite."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    if not torch.isfinite(matrix).all():
        return float("nan"), float("nan"), float("nan")
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return eigenvalues[-1].item(), beta * abs(vectors[-1, -1].item()), eigenvalues.abs().max().item()


def trace(product: Product, size: int, like: Tensor, probes: tuple[int, int] = PROBES) -> tuple[float, float]:
    """The trace of a matrix and its standard error: the mean of ``z . H z`` over random signs z (Hutchinson).

    Always the same signs. There are as many as it takes for a standard error of 5 %, within ``probes``. Exact, over the
    basis, where the matrix has no more rows than the smallest number of probes. Arguments as above.
    """
    least, most = probes
    if size <= least:
        basis = torch.eye(size, dtype=like.dtype, device=like.device)
        return sum(product(e)[i].item() for i, e in enumerate(basis)), 0.0
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    mean = error = float("nan")
    while len(found) < most:
        signs = torch.randint(2, (size,), generator=generator).mul_(2).sub_(1).to(like)
        found.append(torch.dot(signs, product(signs)).item())
        if len(found) >= least:
            values = torch.tensor(found, dtype=torch.float64)
            mean, error = values.mean().item(), values.std().item() / math.sqrt(len(found))
            if not error > TRACE_ERROR * abs(mean):
                break
    return mean, error
