"""Loss and accuracy on whole splits, and the objectives that regularization minimizes."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.models.modes import evaluation

# Limits of one forward pass of an evaluation, to bound its memory.
MAX_EXAMPLES_PER_PASS = 5000  # largest number of examples
MAX_INPUT_VALUES_PER_PASS = 4_000_000  # largest number of values in the inputs of a pass
VALUES_PER_TOKEN = 256  # values that one token counts as, since an embedding turns a token into a vector

SPLITS = ("train", "val", "test")

Autocast = Callable[[], contextlib.AbstractContextManager]
ResultsBySplit = Mapping[str, tuple[Tensor, Tensor]]  # name of a split -> loss and accuracy, 0-dim or (runs,) each


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy in nats of logits against labels, 0-dim.

    Args:
        logits: (b, classes), or (b, t, classes) for text.
        labels: int64 (b,), or (b, t) for text.
        reduction: ``mean`` or ``sum`` over all labels.
        label_smoothing: share in [0, 1] of every label that is spread evenly over all classes. Training alone uses it.
    """
    if labels.dim() > 1:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    return nn.functional.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)


@torch.no_grad()
def evaluate_split(
    model: nn.Module, split: Split, autocast: Autocast = contextlib.nullcontext
) -> tuple[Tensor, Tensor]:
    """Evaluate a network in evaluation mode on all labels of a split.

    Args:
        model: a network on the device of the split.
        split: the examples to evaluate on.
        autocast: returns the context in which each forward pass runs.

    Returns:
        Mean cross-entropy in nats and accuracy in [0, 1], as 0-dim tensors. The accuracy is nan if the loss is not
        finite: argmax over nans returns class 0, whose share would look like an accuracy.
    """
    size, count = _chunk(split), 0
    losses, hits = [], []
    with evaluation(model):
        for start in range(0, len(split), size):
            inputs, labels = split.examples(slice(start, start + size))
            with autocast():
                logits = model(inputs)
            losses.append(cross_entropy(logits.double(), labels, reduction="sum"))
            hits.append((logits.argmax(dim=-1) == labels).sum())
            count += labels.numel()
    loss, accuracy = torch.stack(losses).sum() / count, torch.stack(hits).sum().double() / count
    return loss, torch.where(loss.isfinite(), accuracy, torch.nan)


def evaluate_splits(model: nn.Module, data: Data, autocast: Autocast = contextlib.nullcontext) -> ResultsBySplit:
    """Return the result of ``evaluate_split`` on each of the three splits, by the split's name."""
    return {name: evaluate_split(model, getattr(data, name), autocast) for name in SPLITS}


def _chunk(split: Split) -> int:
    """Return the number of examples per forward pass when ``split`` is evaluated."""
    inputs, _ = split.examples(slice(0, 1))
    values = inputs.numel() * (1 if inputs.is_floating_point() else VALUES_PER_TOKEN)
    return min(MAX_EXAMPLES_PER_PASS, max(1, MAX_INPUT_VALUES_PER_PASS // values))


def objectives(train_loss: Tensor, strength: Tensor, weight_l2: Tensor, path: Tensor | None, penalty: Tensor) -> dict:
    """Return the objectives of a log line, in nats (P1). All tensors have the shape (runs,).

    Args:
        train_loss: mean cross-entropy on the training split.
        strength: the regularizer's strength, called s below.
        weight_l2: L2 norm |w| of all decayed weights.
        path: path-norm of the homogeneous pairs, or None for a network without pairs.
        penalty: the regularizer's own penalty, multiplied by its strength.

    Returns:
        Tensors by name: ``objective/weight_decay`` = train loss + s/2 |w|^2, ``objective/total`` = train loss +
        penalty, and if ``path`` is given, ``objective/path_norm`` = train loss + s * path-norm.
    """
    values = {
        "objective/weight_decay": train_loss + strength / 2 * weight_l2.square(),
        "objective/total": train_loss + penalty,
    }
    if path is not None:
        values["objective/path_norm"] = train_loss + strength * path
    return values
