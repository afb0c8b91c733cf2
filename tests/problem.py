"""A tiny training problem for the tests of methods and optimizers."""

import copy
import io

import torch
from torch import nn

from wdlab.models import MLP


def problem(seed: int = 0, dtype: torch.dtype = torch.float32):
    """A 4-layer MLP (two homogeneous pairs), 16 inputs and their labels."""
    torch.manual_seed(seed)
    model = MLP((1, 4, 4), classes=3, width=8, depth=4).to(dtype)
    return model, torch.randn(16, 1, 4, 4, dtype=dtype), torch.randint(3, (16,))


def steps(model, optimizer, inputs, labels, count: int, without_gradient=()) -> None:
    """Train for ``count`` steps; ``without_gradient`` are parameters that take no part in the loss."""
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for parameter in without_gradient:
            parameter.grad = None
        optimizer.step()


def zero_gradients(optimizer) -> None:
    """Gradients of a loss that is flat, so that what a step does is the method's own doing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have bitwise the same parameters."""
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def close(model: nn.Module, other: nn.Module, **tolerance) -> bool:
    """Whether two models have the same parameters up to a tolerance."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(p.double(), q.double(), **tolerance) for p, q in pairs)


def through_a_file(state):
    """A state after ``torch.save`` and ``torch.load(weights_only=True)``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def twin_of(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own."""
    return copy.deepcopy(model)
