"""The metrics of a log line that take as long as many steps. Called by ``measure`` where they are due."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdlab.data import Data
from wdlab.homogeneous import weights
from wdlab.metrics import lipschitz
from wdlab.metrics.full_gradient import measure_full_gradient
from wdlab.metrics.sharpness import measure_sharpness

LIPSCHITZ_EXAMPLES = 32  # test examples for the lower bound


def measure_costly(
    models: Sequence[nn.Module], data: Data, examples: int, sharpness: bool, full_gradient: bool
) -> list[dict[str, float]]:
    """Measure the metrics that take as long as many steps, as far as they are asked for.

    Networks that are equal in every parameter and buffer have the same metrics, which are measured once. So are runs of
    one seed before the first step.

    Args:
        models: networks of one shape, on the device of the data.
        data: the splits.
        examples: number of training examples in the loss whose Hessian is measured: the first of the split.
        sharpness: True includes sharpness and Lipschitz bounds.
        full_gradient: True includes the gradient of the whole training split.

    Returns:
        Numbers by name, for each model. The upper Lipschitz bound is left out if there is none, and both bounds if the
            inputs are tokens.
    """
    if not (sharpness or full_gradient):
        return [{} for _ in models]
    measured: list[tuple[list[Tensor], dict[str, float]]] = []
    values = []
    for model in models:
        state = [*model.parameters(), *model.buffers()]
        found = next((numbers for earlier, numbers in measured if all(map(torch.equal, state, earlier))), None)
        if found is None:
            found = _measure(model, data, examples, sharpness, full_gradient)
            measured.append((state, found))
        values.append(found)
    return values


def _measure(model: nn.Module, data: Data, examples: int, sharp: bool, full_gradient: bool) -> dict[str, float]:
    """Return the metrics of one network."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    trained = [w for w in weights(model) if w.requires_grad]
    values = measure_full_gradient(model, data.train, parameters, trained) if full_gradient else {}
    if not sharp:
        return values
    inputs, labels = data.train.examples(slice(0, examples))
    values |= measure_sharpness(model, inputs, labels, parameters, trained)
    images, _ = data.test.examples(slice(0, LIPSCHITZ_EXAMPLES))
    if images.is_floating_point():
        values["lipschitz/lower"] = lipschitz.lower_bound(model, images)
        upper = lipschitz.upper_bound(model, images[:1])
        if upper is not None:
            values["lipschitz/upper"] = upper
    return values
