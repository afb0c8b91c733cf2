"""The gradient of the loss on the whole training split, which a logged gradient of one batch only estimates (P5)."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from wdlab.data import Split
from wdlab.metrics.sharpness import training_loss

EXAMPLES_PER_CHUNK = 250  # about 2.5 GB of activations with a ResNet-18 of width 64


def measure_full_gradient(
    model: nn.Module, split: Split, parameters: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, float]:
    """Measure the gradient ``g`` of the mean cross-entropy on a whole split, without penalty and label smoothing.

    The split is read in chunks, see :func:`loss_and_gradient`. Besides one chunk's activations this takes a float64
    copy of the parameters, and as much time as an epoch of training.

    Args:
        model: a network on the device of the split. Its modes, buffers and ``p.grad`` do not change.
        split: the examples.
        parameters: all trainable parameters of the model.
        weights: the decayed ones among ``parameters``.

    Returns:
        ``gradient/full_norm``, the norm of ``g`` over all parameters; ``gradient/full_weights_norm``, over the decayed
            weights alone, since biases keep a gradient where all units are dead; and
            ``scale_invariant/full_gradient_times_weight``, the sum of ``|g_l||w_l|`` over the decayed weights ``w_l``.
    """
    _, slopes = loss_and_gradient(model, split, parameters)
    gradient_of = dict(zip(parameters, slopes, strict=True))
    return {
        "gradient/full_norm": norm_of(slopes),
        "gradient/full_weights_norm": norm_of(gradient_of[w] for w in weights),
        "scale_invariant/full_gradient_times_weight": times_weights(gradient_of, weights),
    }


@torch.enable_grad()
def loss_and_gradient(model: nn.Module, split: Split, parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """Return the mean cross-entropy on a whole split, and its gradient by each parameter, in float64.

    The split is read in chunks of at most 250 examples, and dropout is off. Without batch norm the result is exact up
    to rounding. Batch norm normalizes each chunk by the statistics of the chunk, so that scaling a layer before it does
    not change the loss.

    Args:
        model: a network on the device of the split. Its modes, buffers and ``p.grad`` do not change.
        split: the examples.
        parameters: parameters of the network.
    """
    loss, slopes, labels_seen = 0.0, [torch.zeros_like(p, dtype=torch.float64) for p in parameters], 0
    chunks = math.ceil(len(split) / EXAMPLES_PER_CHUNK)
    for rows in torch.arange(len(split), device=split.labels.device).tensor_split(chunks):
        inputs, labels = split.examples(rows)
        of_chunk = training_loss(model, inputs, labels)
        for total, slope in zip(slopes, torch.autograd.grad(of_chunk, parameters, materialize_grads=True), strict=True):
            total.add_(slope, alpha=labels.numel())
        loss += of_chunk.item() * labels.numel()
        labels_seen += labels.numel()
    return loss / labels_seen, [total / labels_seen for total in slopes]


def norm_of(gradients: Iterable[Tensor]) -> float:
    """Return the norm of several tensors taken as one vector."""
    return math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))


def times_weights(gradient_of: dict[Tensor, Tensor], weights: Iterable[Tensor]) -> float:
    """Return the sum of ``|g_l||w_l|`` over those weights that have a gradient in ``gradient_of``."""
    present = [w for w in weights if w in gradient_of]
    return sum((gradient_of[w].norm() * w.detach().double().norm()).item() for w in present)
