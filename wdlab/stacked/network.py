"""The linear layers of several MLPs of one shape as batched tensors, with one slice per run."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.metrics import SPLITS, ResultsBySplit
from wdlab.tensors import scale_

ALIGNMENT_ELEMENTS = 16  # elements: 64 bytes of float32
MAX_ACTIVATION_VALUES = 2**22  # largest number of values in one layer's activations when whole splits are evaluated


class StackedNetwork:
    """The linear layers of several MLPs; the weights of one layer in all MLPs form one tensor.

    The parameters of the models and their gradients become views of these tensors. The slice of a run begins at an
    address with torch's alignment, so that the run's numbers do not depend on how many runs are in its stack.

    Args:
        models: the MLPs, one for each run, of one shape and on one device.

    Attributes:
        runs: the number of models.
        weights: one tensor for each layer, (runs, out, in).
        biases: one tensor for each layer, (runs, 1, out).
        weight_gradients: the gradients of ``weights``, in their shapes.
        bias_gradients: the gradients of ``biases``, in their shapes.
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
                places, gradients = self.views_of_run(self.parameters, run), self.views_of_run(self.gradients, run)
                for p, place, gradient in zip(model.parameters(), places, gradients, strict=True):
                    place.copy_(p)
                    p.data, p.grad = place, gradient

    @property
    def parameters(self) -> list[Tensor]:
        """The batched tensors of all weights, then of all biases."""
        return [*self.weights, *self.biases]

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients in the order of ``parameters``."""
        return [*self.weight_gradients, *self.bias_gradients]

    def in_model_order(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors that are in the order of ``parameters`` in the order of a model's parameters instead.

        A model's order is weight and bias of the first layer, weight and bias of the second layer, and so on.
        """
        pairs = zip(tensors[: len(self.weights)], tensors[len(self.weights) :], strict=True)
        return [t for pair in pairs for t in pair]

    def views_of_run(self, tensors: Sequence[Tensor], run: int) -> list[Tensor]:
        """Return views of one run's slices, in the order and the shapes of its model's parameters.

        Args:
            tensors: batched tensors in the order and the shapes of ``parameters``.
            run: the position of the run in the stack.
        """
        parts = (t[run] for t in self.in_model_order(tensors))
        return [part if k % 2 == 0 else part[0] for k, part in enumerate(parts)]

    @torch.no_grad()
    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each run on its batch and put the gradients into ``gradients``.

        Args:
            inputs: the batch of each run, (runs, batch, ...).
            labels: the labels of each batch, int64, (runs, batch).

        Returns:
            The mean cross-entropy of each run in nats, (runs,).
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
        """Return the input of every layer, (runs, examples, in), and as the last item the logits.

        The logits are (runs, classes, examples), a layout in which torch's softmax over few classes is faster.

        Args:
            values: the flattened inputs, (runs, examples, in).
        """
        read = [values]
        *hidden, last = zip(self.weights, self.biases, self._has_relu, strict=True)
        for weight, bias, relu in hidden:
            values = torch.bmm(read[-1], weight.transpose(1, 2)).add_(bias)
            read.append(values.relu_() if relu else values)
        weight, bias, _ = last
        return [*read, torch.bmm(weight, read[-1].transpose(1, 2)).add_(bias.transpose(1, 2))]

    @torch.no_grad()
    def evaluate(self, data: Data) -> list[ResultsBySplit]:
        """Return loss and accuracy on each of the three splits, one dict for each run.

        They are computed as by ``wdlab.metrics.objective.evaluate_split``.
        """
        by_split = {name: self._evaluate(getattr(data, name)) for name in SPLITS}
        return [{name: (loss[run], share[run]) for name, (loss, share) in by_split.items()} for run in range(self.runs)]

    def _evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy (nats) and the accuracy (in [0, 1]) of every run on a split, each (runs,)."""
        widest = max(max(weight.shape[1:]) for weight in self.weights)
        size = max(1, MAX_ACTIVATION_VALUES // (self.runs * widest))
        losses, hits = [], []
        for start in range(0, len(split), size):
            inputs, labels = split.examples(slice(start, start + size))
            *_, logits = self._forward(inputs.flatten(1).expand(self.runs, -1, -1))
            logs = torch.log_softmax(logits.double(), 1)
            losses.append(-logs.gather(1, labels.expand(self.runs, 1, -1)).sum((1, 2)))
            hits.append((logits.argmax(1) == labels).sum(1))
        loss, accuracy = torch.stack(losses).sum(0) / len(split), torch.stack(hits).sum(0).double() / len(split)
        return loss, torch.where(loss.isfinite(), accuracy, torch.nan)

    @torch.no_grad()
    def clip(self, norm: float) -> None:
        """Scale each run's gradient to ``norm`` if its norm is larger, as ``nn.utils.clip_grad_norm_`` does."""
        lengths = torch.stack([torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True) for g in self.gradients])
        lengths = torch.linalg.vector_norm(lengths, dim=0)
        scale_(self.gradients, (norm / (lengths + 1e-6)).clamp_(max=1.0))


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the batched product ``a @ b`` to ``out``."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of an MLP in forward order."""
    return [module for module in model.layers if isinstance(module, nn.Linear)]


def _blocks(runs: int, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """Return a tensor of zeros for each shape, (runs, *shape).

    Args:
        runs: the number of runs.
        shapes: the shapes of one run's tensors.
        like: a tensor with the device and dtype to use.
    """
    blocks = []
    for shape in shapes:
        count = math.prod(shape)
        rows = torch.zeros(runs, _aligned(count), device=like.device, dtype=like.dtype)
        blocks.append(rows[:, :count].unflatten(1, tuple(shape)))
    return blocks


def _aligned(count: int) -> int:
    """Return ``count`` rounded up to a multiple of ``ALIGNMENT_ELEMENTS``, which aligns the slice of the next run.

    The last bits of a sum depend on the alignment of its operands.
    """
    return -(-count // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS
