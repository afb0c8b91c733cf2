"""Loss and accuracy on whole splits, and the objectives that regularization minimizes."""

import torch
from torch import Tensor, nn

from wdlab.data import Split

CHUNK = 5000  # examples per forward pass of an evaluation; bounds its memory


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats and accuracy in [0, 1] over a whole split, in evaluation mode; 0-dim tensors."""
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for inputs, labels in zip(split.inputs.split(CHUNK), split.labels.split(CHUNK), strict=True):
        logits = model(inputs)
        loss += nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
    model.train(training)
    return loss / len(split), correct.double() / len(split)


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
