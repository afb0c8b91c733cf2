"""The layers of several MLPs of one shape as batched tensors, with one slice per run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.metrics import SPLITS, ResultsBySplit
from wdlab.stacked.norm import StackedBatchNorm
from wdlab.tensors import scale_

ALIGNMENT_ELEMENTS = 16  # elements: 64 bytes of float32
MAX_ACTIVATION_VALUES = 2**22  # largest number of values in one layer's activations when whole splits are evaluated


class StackedTensors:
    """A tensor for each parameter of a model, with the values of all runs: zeros at first.

    Args:
        runs: the number of runs.
        shapes: the shapes of one run's tensors.
        like: a tensor with the device and dtype to use.

    Attributes:
        rows: the memory of each tensor, contiguous (runs, n). The n values of a run are those of its tensor and zeros
            up to a multiple of ``ALIGNMENT_ELEMENTS``, so that the row of the next run is aligned. The last bits of a
            sum depend on the alignment of its operands.
        views: the tensors, (runs, *shape).
    """

    def __init__(self, runs: int, shapes: Sequence[Sequence[int]], like: Tensor) -> None:
        counts = [math.prod(shape) for shape in shapes]
        aligned = [-(-count // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS for count in counts]
        self.rows = [torch.zeros(runs, n, device=like.device, dtype=like.dtype) for n in aligned]
        of_parameter = zip(self.rows, counts, shapes, strict=True)
        self.views = [rows[:, :count].unflatten(1, tuple(shape)) for rows, count, shape in of_parameter]


@dataclass
class _Layer:
    """A linear layer of all MLPs, and what follows it."""

    weight: Tensor  # (runs, out, in)
    bias: Tensor | None  # (runs, 1, out)
    norm: StackedBatchNorm | None = None
    relu: bool = False


class StackedNetwork:
    """The layers of several MLPs; the weights of one layer in all MLPs form one tensor.

    The parameters of the models and their gradients become views of these tensors. The slice of a run begins at an
    address with torch's alignment, so that the run's numbers do not depend on how many runs are in its stack.

    Args:
        models: the MLPs, one for each run, of one shape and on one device.

    Attributes:
        runs: the number of models.
        parameters: the tensors of a model's parameters in their order, weights of linear layers as (runs, out, in),
            biases and the parameters of batch norms as (runs, 1, out). The ``grad`` of each holds its gradients.
        memory: the memory of the parameters, see ``StackedTensors``.
        gradient_memory: the memory of the gradients.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.runs, self._model = len(models), models[0]
        self._like = next(models[0].parameters())
        self.memory, self.gradient_memory = self.zeros(), self.zeros()
        self.parameters = self.memory.views
        for tensor, gradient in zip(self.parameters, self.gradient_memory.views, strict=True):
            tensor.grad = gradient
        self._by_parameter = dict(zip(map(id, models[0].parameters()), self.parameters, strict=True))
        with torch.no_grad():
            for run, model in enumerate(models):
                places, gradients = (self.views_of_run(m, run) for m in (self.memory, self.gradient_memory))
                for p, place, gradient in zip(model.parameters(), places, gradients, strict=True):
                    place.copy_(p)
                    p.data, p.grad = place, gradient
            self._layers = self._make_layers(models)

    def _make_layers(self, models: Sequence[nn.Module]) -> list[_Layer]:
        """Return the linear layers of the models, each with the batch norm and the ReLU that follow it."""
        layers: list[_Layer] = []
        for place, module in enumerate(models[0].layers):
            if isinstance(module, nn.Linear):
                bias = None if module.bias is None else self.tensor(module.bias)
                layers.append(_Layer(self.tensor(module.weight), bias))
            elif isinstance(module, nn.BatchNorm1d):
                of_runs = [model.layers[place] for model in models]
                layers[-1].norm = StackedBatchNorm(of_runs, self.tensor(module.weight), self.tensor(module.bias))
            elif isinstance(module, nn.ReLU):
                layers[-1].relu = True
        return layers

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor that holds ``p``, a parameter of the first model, of all models."""
        return self._by_parameter[id(p)]

    def zeros(self) -> StackedTensors:
        """Return tensors of zeros in the shapes of the parameters."""
        shapes = [p.shape if p.dim() == 2 else (1, *p.shape) for p in self._model.parameters()]
        return StackedTensors(self.runs, shapes, self._like)

    def views_of_run(self, tensors: StackedTensors, run: int) -> list[Tensor]:
        """Return views of one run's values, in the order and the shapes of its model's parameters.

        Args:
            tensors: tensors in the shapes of the parameters.
            run: the position of the run in the stack.
        """
        return [t[run].view_as(p) for t, p in zip(tensors.views, self._model.parameters(), strict=True)]

    @torch.no_grad()
    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each run on its batch and put the gradients into the ``grad`` of ``parameters``.

        Args:
            inputs: the batch of each run, (runs, batch, ...).
            labels: the labels of each batch, int64, (runs, batch).

        Returns:
            The mean cross-entropy of each run in nats, (runs,).
        """
        *read, logits = self._forward(inputs.flatten(2), training=True)
        logs, labels = torch.log_softmax(logits, 1), labels.unsqueeze(1)
        losses = -logs.gather(1, labels).mean((1, 2))
        slopes = logs.exp_().scatter_add_(1, labels, logs.new_full((), -1).expand_as(labels))
        slopes = slopes.div_(labels.shape[2]).transpose(1, 2)
        for k, layer in reversed(list(enumerate(self._layers))):
            if layer.norm is not None:
                slopes = layer.norm.backward(slopes)
            _product(slopes.transpose(1, 2), read[k], layer.weight.grad)
            if layer.bias is not None:
                torch.sum(slopes, 1, keepdim=True, out=layer.bias.grad)
            if k:
                slopes = torch.bmm(slopes, layer.weight)
                if self._layers[k - 1].relu:
                    torch.ops.aten.threshold_backward.grad_input(slopes, read[k], 0, grad_input=slopes)
        return losses

    def _forward(self, values: Tensor, training: bool = False) -> list[Tensor]:
        """Return the input of every layer, (runs, examples, in), and as the last item the logits.

        The logits are (runs, classes, examples), a layout in which torch's softmax over few classes is faster.

        Args:
            values: the flattened inputs, (runs, examples, in).
            training: True normalizes by the statistics of each batch and updates the running ones.
        """
        read, last = [values], self._layers[-1]
        for layer in self._layers[:-1]:
            values = torch.bmm(read[-1], layer.weight.transpose(1, 2))
            if layer.bias is not None:
                values.add_(layer.bias)
            if layer.norm is not None:
                values = layer.norm.train(values) if training else layer.norm.evaluate(values)
            read.append(values.relu_() if layer.relu else values)
        return [*read, torch.bmm(last.weight, read[-1].transpose(1, 2)).add_(last.bias.transpose(1, 2))]

    @torch.no_grad()
    def evaluate(self, data: Data) -> ResultsBySplit:
        """Return losses and accuracies (runs,) on each of the three splits.

        They are computed as by ``wdlab.metrics.objective.evaluate_split``.
        """
        return {name: self._evaluate(getattr(data, name)) for name in SPLITS}

    def _evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy (nats) and the accuracy (in [0, 1]) of every run on a split, each (runs,)."""
        widest = max(max(layer.weight.shape[1:]) for layer in self._layers)
        size = max(1, MAX_ACTIVATION_VALUES // (self.runs * widest))
        losses, hits = [], []
        for start in range(0, len(split), size):
            inputs, labels = split.examples(slice(start, start + size))
            *_, logits = self._forward(inputs.flatten(1).expand(self.runs, -1, -1))
            logs = torch.log_softmax(logits.double(), 1)
            losses.append(-logs.gather(1, labels.expand(self.runs, 1, -1)).sum((1, 2)))
            hits.append((logits.max(1).indices == labels).sum(1))  # much faster than argmax
        loss, accuracy = torch.stack(losses).sum(0) / len(split), torch.stack(hits).sum(0).double() / len(split)
        return loss, torch.where(loss.isfinite(), accuracy, torch.nan)

    @torch.no_grad()
    def clip(self, norm: float) -> None:
        """Scale each run's gradient to ``norm`` if its norm is larger, as ``nn.utils.clip_grad_norm_`` does."""
        gradients = self.gradient_memory.rows
        lengths = torch.stack([torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in gradients])
        lengths = torch.linalg.vector_norm(lengths, dim=0)
        scale_(gradients, (norm / (lengths + 1e-6)).clamp_(max=1.0))


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the batched product ``a @ b`` to ``out``."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))
