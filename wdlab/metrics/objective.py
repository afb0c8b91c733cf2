"""Loss and accuracy on whole splits, and the objectives that regularization minimizes."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wdlab.data import Split

CHUNK = 5000  # examples per forward pass of an evaluation at most
CHUNK_VALUES = 4_000_000  # numbers in their inputs at most; both bound its memory
Autocast = Callable[[], contextlib.AbstractContextManager]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (..., classes) for labels (...)."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, autocast: Autocast = contextlib.nullcontext) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats and accuracy in [0, 1] over a whole split, in evaluation mode; 0-dim tensors."""
    training = model.training
    model.eval()
    device = split.labels.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    predictions, done = 0, 0
    values = split.examples(slice(0, 1))[0].numel()
    size = min(CHUNK, max(1, CHUNK_VALUES // values))
    while done < len(split):
        inputs, labels = split.examples(slice(done, done + size))
        with autocast():
            logits = model(inputs)
        loss += cross_entropy(logits.double(), labels, reduction="sum")
        correct += (logits.argmax(dim=-1) == labels).sum()
        predictions += labels.numel()
        done += size
    model.train(training)
    return loss / predictions, correct.double() / predictions


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
