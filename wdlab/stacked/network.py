"""The linear layers of several MLPs of one shape as batched tensors, one slice per run."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.metrics import SPLITS, Evaluated
from wdlab.tensors import scale_

ALIGNMENT = 16  # elements: 64 bytes of float32
CHUNK_VALUES = 2**22  # numbers of one layer when whole splits are evaluated


class Network:
    """The linear layers of a stack of MLPs: the weights of each layer as one tensor with a dimension of runs.

    The models' parameters and gradients become views of their runs. A run's weights begin where torch would put them,
    so that its numbers do not depend on how many others are in its stack.

    Args:
        models: of one shape, on one device.

    Attributes:
        runs: number of models.
        weights, biases: per layer, (runs, out, in) and (runs, 1, out).
        weight_gradients, bias_gradients: the gradients, in the same shapes.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        layers = [linear_layers(model) for model in models]
        shapes = [layer.weight.shape for layer in layers[0]]
        self.runs = len(models)
        like = layers[0][0].weight
        self.weights, self.weight_gradients = (_blocks(self.runs, shapes, like) for _ in range(2))
        biases = [(1, out) for out, _ in shapes]
        self.biases, self.bias_gradients = (_blocks(self.runs, biases, like) for _ in range(2))
        modules = list(models[0].layers)
        following = [k + 1 for k, module in enumerate(modules) if isinstance(module, nn.Linear)]
        self._has_relu = [k < len(modules) and isinstance(modules[k], nn.ReLU) for k in following]
        with torch.no_grad():
            for run, model in enumerate(models):
                places, gradients = self.of_run(self.parameters, run), self.of_run(self.gradients, run)
                for p, place, gradient in zip(model.parameters(), places, gradients, strict=True):
                    place.copy_(p)
                    p.data, p.grad = place, gradient

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients in the order of ``parameters``."""
        return [*self.weight_gradients, *self.bias_gradients]

    def in_order_of_a_model(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors like ``parameters`` in the order of one model's parameters."""
        pairs = zip(tensors[: len(self.weights)], tensors[len(self.weights) :], strict=True)
        return [t for pair in pairs for t in pair]

    def of_run(self, tensors: Sequence[Tensor], run: int) -> list[Tensor]:
        """Return views of one run's slices of tensors like ``parameters``, as its model has its parameters."""
        parts = (t[run] for t in self.in_order_of_a_model(tensors))
        return [part if k % 2 == 0 else part[0] for k, part in enumerate(parts)]

    @torch.no_grad()
    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Put the gradient of each run's mean cross-entropy (nats) into ``gradients``; return these losses, (runs,).

        Args:
            inputs: (runs, batch, ...).
            labels: int64, (runs, batch).
        """
        *read, logits = self._forward(inputs.flatten(2))
        logs, labels = torch.log_softmax(logits, 1), labels.unsqueeze(1)
        losses = -logs.gather(1, labels).mean((1, 2))
        slopes = logs.exp_().scatter_add_(1, labels, labels.new_full((), -1).to(logs.dtype).expand_as(labels))
        slopes = slopes.div_(labels.shape[2]).transpose(1, 2)
        for k in reversed(range(len(self.weights))):
            _product(slopes.transpose(1, 2), read[k], self.weight_gradients[k])
            torch.sum(slopes, 1, keepdim=True, out=self.bias_gradients[k])
            if k:
                slopes = torch.bmm(slopes, self.weights[k])
                if self._has_relu[k - 1]:
                    slopes = torch.ops.aten.threshold_backward(slopes, read[k], 0)
        return losses

    def _forward(self, values: Tensor) -> list[Tensor]:
        """Return the input of every layer, (runs, examples, in), and then the logits, (runs, classes, examples).

        In the layout of the logits torch has a fast softmax over few classes.
        """
        read = [values]
        *hidden, last = zip(self.weights, self.biases, self._has_relu, strict=True)
        for weight, bias, relu in hidden:
            values = torch.bmm(read[-1], weight.transpose(1, 2)).add_(bias)
            read.append(values.relu_() if relu else values)
        weight, bias, _ = last
        return [*read, torch.bmm(weight, read[-1].transpose(1, 2)).add_(bias.transpose(1, 2))]

    @torch.no_grad()
    def evaluate(self, data: Data) -> list[Evaluated]:
        """Return loss and accuracy of each run on the three splits, as ``wdlab.metrics.objective.evaluate`` does."""
        found = {name: self._evaluate(getattr(data, name)) for name in SPLITS}
        return [{name: (loss[run], share[run]) for name, (loss, share) in found.items()} for run in range(self.runs)]

    def _evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        widest = max(max(weight.shape[1:]) for weight in self.weights)
        size = max(1, CHUNK_VALUES // (self.runs * widest))
        losses, hits = [], []
        for start in range(0, len(split), size):
            inputs, labels = split.examples(slice(start, start + size))
            *_, logits = self._forward(inputs.flatten(1).expand(self.runs, -1, -1))
            logs = torch.log_softmax(logits.double(), 1)
            losses.append(-logs.gather(1, labels.expand(self.runs, 1, -1)).sum((1, 2)))
            hits.append((logits.argmax(1) == labels).sum(1))
        return torch.stack(losses).sum(0) / len(split), torch.stack(hits).sum(0).double() / len(split)

    @torch.no_grad()
    def clip(self, norm: float) -> None:
        """Scale every run's gradient down to ``norm`` if it is longer, as ``nn.utils.clip_grad_norm_`` does."""
        lengths = torch.stack([torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True) for g in self.gradients])
        lengths = torch.linalg.vector_norm(lengths, dim=0)
        scale_(self.gradients, (norm / (lengths + 1e-6)).clamp_(max=1.0))


def _product(a: Tensor, b: Tensor, place: Tensor) -> None:
    """Write the batched product ``a @ b`` to ``place``."""
    if place.is_contiguous():
        torch.bmm(a, b, out=place)
    else:
        place.copy_(torch.bmm(a, b))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of an MLP in forward order."""
    return [module for module in model.layers if isinstance(module, nn.Linear)]


def _blocks(runs: int, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """Return zeros, (runs, *shape) for each shape."""
    blocks = []
    for shape in shapes:
        count = math.prod(shape)
        rows = torch.zeros(runs, _aligned(count), device=like.device, dtype=like.dtype)
        blocks.append(rows[:, :count].unflatten(1, tuple(shape)))
    return blocks


def _aligned(count: int) -> int:
    """Return ``count`` rounded up so that the next tensor begins where torch would put it.

    Sums depend on the alignment in their last bits.
    """
    return -(-count // ALIGNMENT) * ALIGNMENT
