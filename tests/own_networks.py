"""Networks as people write them, for ``model._target_=tests.own_networks.<name>``; all are one small MLP."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Plain(nn.Module):
    """The network that the others are variants of."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(inputs.flatten(1))))


class Asserts(Plain):
    """Reads a value of its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert torch.isfinite(inputs).all()
        return super().forward(inputs)


class Reads(Plain):
    """Reads a value of its activations, and goes one way or another."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs.flatten(1)))
        return self.last(hidden if hidden.mean().item() > 0 else -hidden)


class Masks(Plain):
    """Has a tensor that is no buffer."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.mask = torch.ones(64)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1) * self.mask.to(inputs.device))


class Keeps(Plain):
    """Keeps its activations."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.hidden = torch.relu(self.first(inputs.flatten(1)))
        return self.last(self.hidden)


class Normalizes(Plain):
    """Has batch norm, and reads a value."""

    def __init__(self, *arguments: object, width: int, **options: object) -> None:
        super().__init__(*arguments, width=width, **options)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        assert torch.isfinite(inputs).all()
        return self.last(torch.relu(self.norm(self.first(inputs.flatten(1)))))


class Complains(Plain):
    """Raises a ValueError of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        raise ValueError("not with me")


def averaged(**options: object) -> nn.Module:
    return AveragedModel(Plain(**options))


def parallel(**options: object) -> nn.Module:
    return nn.DataParallel(Plain(**options))


def compiled(**options: object) -> nn.Module:
    return torch.compile(Plain(**options))


def partly_compiled(**options: object) -> nn.Module:
    model = Plain(**options)
    model.first = torch.compile(model.first)
    return model
