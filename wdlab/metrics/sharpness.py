"""Sharpness: the largest eigenvalue and the trace of the Hessian of the training loss.

No Hessian is stored. The numerical methods use a matrix ``H`` only through the function ``v -> H v`` on flat vectors,
or on the rows of a matrix of several vectors.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wdlab.metrics.objective import cross_entropy
from wdlab.metrics.scale_invariant import in_units_of_layers
from wdlab.models.modes import evaluation

EIGENVALUE_PRODUCTS = 60  # largest number of products H v for an eigenvalue
EIGENVALUE_TOLERANCE = 1e-4  # iteration stops once the residual |Hv - mu v| is at most this share of |mu|
TRACE_PROBES = (20, 100)  # smallest and largest number of products H z for a trace
TOGETHER_VALUES = 2**21  # largest number of values that the products of several vectors at once compute, roughly
RELATIVE_TRACE_ERROR = 0.05  # probing stops once the standard error is at most this share of the trace

SHARPNESS_METRICS = ("sharpness/top_eigenvalue", "sharpness/trace", "sharpness/trace_error")
SCALE_INVARIANT_METRICS = ("scale_invariant/sharpness", "scale_invariant/trace", "scale_invariant/trace_error")

MatrixVectorProduct = Callable[[Tensor], Tensor]  # v -> H v, (n,); or every row v of (k, n) -> H v


def measure_sharpness(
    model: nn.Module, inputs: Tensor, labels: Tensor, parameters: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, float]:
    """Measure the sharpness of the mean cross-entropy of one batch.

    Batch norm normalizes by the batch, since otherwise the loss would change when the layer before a batch norm is
    scaled. Dropout is off. The model's modes, buffers and ``p.grad`` do not change.

    The autograd graph of the gradient of all examples is in memory at once: about 15 MiB per example with a ResNet-18
    of width 64.

    Args:
        model: a network on any device, of any floating-point type.
        inputs: inputs of the batch, as the model reads them.
        labels: int64 labels of the batch.
        parameters: all trainable parameters of the model.
        weights: the decayed ones among ``parameters``; may be empty.

    Returns:
        Numbers by name: those of ``SHARPNESS_METRICS``, for the Hessian by ``parameters``. If ``weights`` is not empty,
            also those of ``SCALE_INVARIANT_METRICS``, for the Hessian by ``weights`` in units of the layers' norms (see
            ``in_units_of_layers``). The traces are estimates with standard errors.
    """
    with torch.enable_grad():
        loss = training_loss(model, inputs, labels)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    gradients = dict(zip(parameters, slopes, strict=True))
    together = _vectors_together(model, parameters, len(labels))
    values = _spectrum(hessian_product(gradients, parameters), parameters, together)
    named = dict(zip(SHARPNESS_METRICS, values, strict=True))
    if weights:
        product = in_units_of_layers(hessian_product(gradients, weights), weights)
        values = _spectrum(product, weights, together)
        named |= dict(zip(SCALE_INVARIANT_METRICS, values, strict=True))
    return named


def training_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of one batch, in a form that can be differentiated twice.

    Batch norm normalizes by the batch; the model's running statistics do not change.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # the forward updates these copies
    # The MATH backend of attention, since fused attention can be differentiated only once.
    with evaluation(model, batch_statistics=True), sdpa_kernel(SDPBackend.MATH):
        return cross_entropy(torch.func.functional_call(model, buffers, (inputs,)), labels)


def _vectors_together(model: nn.Module, parameters: Sequence[Tensor], examples: int) -> int:
    """Return the largest number of vectors that are multiplied by the Hessian at once; 1 for one by one.

    Several at once save time where an operation takes longer to start than to compute: a third of the time per vector
    for an MLP of width 64 and 100 examples, nothing with 250 images of MNIST. Convolutions, attention and large
    networks only take more memory. So it is 1 for what is no MLP, and for an MLP for which fewer vectors than every
    trace takes have at most ``TOGETHER_VALUES``.

    Args:
        model: the network.
        parameters: all its trainable parameters.
        examples: the number of examples in the loss.
    """
    if not vars(type(model)).get("stackable", False):
        return 1
    # One value per element, and one per example and unit for every parameter of a layer.
    together = TOGETHER_VALUES // sum(p.numel() + examples * len(p) for p in parameters)
    return together if together >= TRACE_PROBES[0] else 1


def hessian_product(gradients: dict[Tensor, Tensor], parameters: Sequence[Tensor]) -> MatrixVectorProduct:
    """Return the function ``v -> H v`` for the Hessian H of the loss by ``parameters``.

    It also takes a matrix whose rows are vectors, if the operations of the network have a batched form.

    Args:
        gradients: gradient of the loss by each parameter, with its autograd graph, which every call keeps.
        parameters: some keys of ``gradients``. A vector v has one value for each element of the parameters, in order.
    """
    sizes = [p.numel() for p in parameters]
    # A gradient without a graph is constant: its rows of H are 0.
    differentiable = [i for i, p in enumerate(parameters) if gradients[p].requires_grad]
    outputs = [gradients[parameters[i]] for i in differentiable]

    def product(vectors: Tensor) -> Tensor:
        *rows, _ = vectors.shape
        pieces = vectors.split(sizes, dim=-1)
        along = [pieces[i].view(*rows, *parameters[i].shape) for i in differentiable]
        images = torch.autograd.grad(
            outputs, parameters, along, retain_graph=True, materialize_grads=True, is_grads_batched=bool(rows)
        )
        # A zero that ``materialize_grads`` makes has the shape of one parameter even if there are rows.
        whole = [image.expand(*rows, *p.shape) for image, p in zip(images, parameters, strict=True)]
        return torch.cat([image.reshape(*rows, -1) for image in whole], dim=-1)

    return product


def _spectrum(product: MatrixVectorProduct, parameters: Sequence[Tensor], together: int) -> tuple[float, float, float]:
    """Return the largest eigenvalue, the trace and its standard error, of the matrix that ``product`` applies."""
    like = torch.cat([p.detach().reshape(-1)[:1] for p in parameters])
    size = sum(p.numel() for p in parameters)
    top = top_eigenvalue(product, size, like, EIGENVALUE_PRODUCTS)
    return top, *estimate_trace(product, size, like, TRACE_PROBES, together)


def top_eigenvalue(product: MatrixVectorProduct, size: int, like: Tensor, iterations: int) -> float:
    """Return the largest (most positive) eigenvalue of a symmetric matrix; nan if a product is not finite.

    The method is the Lanczos recurrence, which keeps three vectors. It finds the best combination of all vectors that
    power iteration computes, and, unlike power iteration, does not converge to a large negative eigenvalue. It always
    starts from the same random vector. It stops once the result is accurate to ``EIGENVALUE_TOLERANCE``.

    Args:
        product: the function ``v -> H v``.
        size: number of elements of ``v``.
        like: any tensor with the type and device of ``v``.
        iterations: largest number of products ``H v``.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(like)
    vector /= vector.norm()
    previous, beta = torch.zeros_like(vector), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    largest = float("nan")
    for _ in range(iterations):
        image = product(vector).sub_(previous, alpha=beta)
        diagonal.append(torch.dot(image, vector).item())
        image.sub_(vector, alpha=diagonal[-1])
        beta = image.norm().item()
        largest, residual, scale = _top_of_tridiagonal(diagonal, off_diagonal, beta)
        if not residual > EIGENVALUE_TOLERANCE * abs(largest) or beta <= torch.finfo(like.dtype).eps * scale:
            break
        off_diagonal.append(beta)
        previous, vector = vector, image.div_(beta)
    return largest


def _top_of_tridiagonal(diagonal: list[float], off_diagonal: list[float], beta: float) -> tuple[float, float, float]:
    """Return the largest eigenvalue of Lanczos's tridiagonal matrix, its residual, and the matrix's norm.

    Args:
        diagonal: the n numbers on the matrix's diagonal.
        off_diagonal: the n - 1 numbers next to the diagonal.
        beta: norm of Lanczos's next vector before its normalization, which would be the next off-diagonal number.

    Returns:
        The eigenvalue mu, the residual ``|H v - mu v|`` of its vector v in the whole space, and the spectral norm of
        the tridiagonal matrix. All are nan if an entry of the matrix is not finite.
    """
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        off = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    if not torch.isfinite(matrix).all():
        return float("nan"), float("nan"), float("nan")
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return eigenvalues[-1].item(), beta * abs(vectors[-1, -1].item()), eigenvalues.abs().max().item()


def estimate_trace(
    product: MatrixVectorProduct, size: int, like: Tensor, probes: tuple[int, int] = TRACE_PROBES, together: int = 1
) -> tuple[float, float]:
    """Estimate the trace of a matrix as the mean of ``z . H z`` over vectors z of random signs (Hutchinson).

    The vectors are the same in every call. Their number is the smallest within ``probes`` for which the standard error
    is at most 5 % of the trace, or else ``probes[1]``. For a matrix with at most ``probes[0]`` rows the exact trace is
    computed, with error 0.

    Args:
        product: the function ``v -> H v``.
        size: number of elements of ``v``.
        like: any tensor with the type and device of ``v``.
        probes: smallest and largest number of vectors z.
        together: largest number of vectors that ``product`` gets at once, as rows; with 1 it gets flat vectors. The
            result does not depend on it, except for the rounding of ``product``.

    Returns:
        The trace and its standard error.
    """
    least = probes[0]
    if size <= least:
        basis = torch.eye(size, dtype=like.dtype, device=like.device)
        return sum(product(e)[i].item() for i, e in enumerate(basis)), 0.0
    samples: list[float] = []
    mean = error = float("nan")
    for sample in _trace_samples(product, size, like, probes, together):
        samples.append(sample)
        if len(samples) >= least:
            values = torch.tensor(samples, dtype=torch.float64)
            mean, error = values.mean().item(), values.std().item() / math.sqrt(len(samples))
            if not error > RELATIVE_TRACE_ERROR * abs(mean):
                break
    return mean, error


def _trace_samples(
    product: MatrixVectorProduct, size: int, like: Tensor, probes: tuple[int, int], together: int
) -> Iterator[float]:
    """Yield ``z . H z`` for the vectors z of ``estimate_trace``, with its arguments: ``probes[1]`` numbers.

    The ``probes[0]`` vectors that are always needed are multiplied first, then half as many as before at a time, so
    that most of those multiplied are needed.
    """
    generator, (least, most), done = torch.Generator().manual_seed(0), probes, 0
    while done < most:
        count = min(max(least - done, done // 2, 1), most - done, together)
        signs = torch.randint(2, (count, size), generator=generator).mul_(2).sub_(1).to(like)
        images = product(signs) if together > 1 else product(signs[0]).unsqueeze(0)
        yield from torch.stack([torch.dot(z, image) for z, image in zip(signs, images, strict=True)]).tolist()
        done += count
