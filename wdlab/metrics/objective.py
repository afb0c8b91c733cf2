"""Loss and accuracy on whole splits, and the objectives that regularization minimizes."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.models.modes import evaluation

CHUNK = 5000  # examples per forward pass of an evaluation, at most
CHUNK_VALUES = 4_000_000  # numbers in their inputs, at most; both bound the memory it takes
VALUES_OF_TOKEN = 256  # a token counts as that many numbers, since an embedding makes a vector of it

SPLITS = ("train", "val", "test")

Autocast = Callable[[], contextlib.AbstractContextManager]
Evaluated = Mapping[str, tuple[Tensor, Tensor]]  # of every split loss and accuracy


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of logits (b, classes) for labels (b,), or of (b, t, classes) for (b, t).

    The mean is over all labels. It is the training loss too, there with ``label_smoothing``: that share of every label
    spread evenly over all classes.
    """
    if labels.dim() > 1:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    return nn.functional.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, autocast: Autocast = contextlib.nullcontext) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats and accuracy in [0, 1] over all labels of a split, in evaluation mode; 0-dim tensors.

    Where the loss is not finite the accuracy is nan, since a network of nans would have that of its first class.
    ``autocast`` gives the context of a forward pass.
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


def evaluate_all(model: nn.Module, data: Data, autocast: Autocast = contextlib.nullcontext) -> Evaluated:
    """``evaluate`` on the three splits."""
    return {name: evaluate(model, getattr(data, name), autocast) for name in SPLITS}


def _chunk(split: Split) -> int:
    inputs, _ = split.examples(slice(0, 1))
    values = inputs.numel() * (1 if inputs.is_floating_point() else VALUES_OF_TOKEN)
    return min(CHUNK, max(1, CHUNK_VALUES // values))


def objectives(train_loss: Tensor, strength: float, weight_l2: Tensor, path: Tensor | None, penalty: Tensor) -> dict:
    """The three objectives of a log line, in nats (P1).

    ``objective/weight_decay`` = train loss + s/2 |w|^2, ``objective/path_norm`` = train loss + s * path-norm (both with
    the regularizer's strength s), ``objective/total`` = train loss + the regularizer's own penalty.
    """
    values = {
        "objective/weight_decay": train_loss + strength / 2 * weight_l2.square(),
        "objective/total": train_loss + penalty,
    }
    if path is not None:
        values["objective/path_norm"] = train_loss + strength * path
    return values
