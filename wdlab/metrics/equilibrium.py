"""Decay as a rate: its time scale, and the rotation of scale-invariant weights in its steady state.

The methods concerned take the same share rho of every weight away in each update. So the weights are a moving average
of the updates over 1/rho steps, the *time scale* (Wang and Aitchison 2024, arXiv 2405.13698).

A scale-invariant weight w is perpendicular to its gradient, so that the updates lengthen it while the decay shortens
it. In the steady state both are equal, ``E|d|^2 = 2 rho E|w|^2`` for the sum d of all steps that a gradient causes
later on. Let a gradient cause steps of the relative sizes c_0, c_1, ..., and let the gradients of different updates be
uncorrelated. An update then has the mean square ``E|d|^2 sum(c_k^2) / sum(c_k)^2``, and w turns in an update by

    sqrt(2 rho sum(c_k^2) / sum(c_k)^2)    radians, as a root mean square.

For AdamW this is ``sqrt(2 a s (1 - b1) / (1 + b1))``, for SGD with momentum m and L2 ``sqrt(2 a s / (1 + m))`` (Kosson
et al. 2023, arXiv 2305.17212, for the weights of a neuron). It holds for a tensor of neurons if it holds for each of
them. Called by the programs that write log lines.
"""

import math
from collections.abc import Mapping
from typing import Any

from wdlab.regularizers import L2, DecoupledDecay, Regularizer, ScheduledDecay
from wdlab.regularizers.checks import is_adam_group, is_sgd_group

TIME_SCALE = "decay/timescale_epochs"
ROTATION = "scale_invariant/rotation"
OVER_PREDICTED = "scale_invariant/rotation_over_predicted"


def of_line(
    method: Regularizer, group: dict[str, Any], steps_per_epoch: int, line: Mapping[str, Any]
) -> dict[str, float]:
    """Return the metrics of a log line that follow from its learning rate, its strength and its rotation.

    Args:
        method: the method that decays the weights.
        group: the optimizer's group of the weights.
        steps_per_epoch: the number of updates in an epoch.
        line: the log line, with the ``lr`` and ``strength`` of the last update. Its rotation may be missing.

    Returns:
        Numbers by name: the time scale of the decay in epochs, and the measured rotation over that of the steady
            state. Left out is what has no meaning: both if the decay has no rate (see ``rate``), the second if a factor
            acts on other weights than the first, whose strength the line has.
    """
    share = rate(method, group, line["lr"], line["strength"])
    if share is None:
        return {}
    values, predicted = {TIME_SCALE: 1 / share / steps_per_epoch}, predicted_rotation(group, share)
    of_others = not all(schedule.acts_on(method.params[0]) for schedule in method.over_time)  # the strength in force
    if predicted is not None and ROTATION in line and not of_others:
        values[OVER_PREDICTED] = line[ROTATION] / predicted
    return values


def rate(method: Regularizer, group: dict[str, Any], lr: float, strength: float) -> float | None:
    """Return the share of every weight that a method takes away per update in the long run.

    For decoupled decay, and L2 on the route ``decoupled``, it is ``lr * strength``. For L2 with SGD it is divided by
    ``1 - momentum`` and multiplied by ``1 - dampening``, since the decay passes through the momentum.

    Args:
        method: a method.
        group: the optimizer's group of the weights.
        lr: the learning rate.
        strength: the strength in force.

    Returns:
        The share; None if it is 0 or not finite, or if the method does not take one share of every weight, as L2
            through Adam's moments, a penalty other than ``|w|^2 / 2`` and cautious decay.
    """
    if type(method) in (DecoupledDecay, ScheduledDecay):
        shrinks = 0.0 if method.cautious else 1.0
    elif type(method) is L2 and method.route == "decoupled":
        shrinks = 1.0
    elif type(method) is L2 and method.route == "both" and is_sgd_group(group):
        momentum = group["momentum"]  # without momentum, torch's SGD does not use the dampening
        shrinks = (1 - group["dampening"]) / (1 - momentum) if momentum else 1.0
    else:
        shrinks = 0.0
    share = lr * strength * shrinks
    return share if math.isfinite(share) and share > 0 else None


def predicted_rotation(group: dict[str, Any], share: float) -> float | None:
    """Return the angle in radians by which a scale-invariant weight turns in an update of the steady state.

    Args:
        group: the optimizer's group of the weight.
        share: the share of every weight that the decay takes away per update, see ``rate``.

    Returns:
        The root mean square of the angle; None for an optimizer other than SGD, Adam and their kin.
    """
    if is_adam_group(group):
        momentum, nesterov = group["betas"][0], False
    elif is_sgd_group(group):
        momentum, nesterov = group["momentum"], group.get("nesterov", False)
    else:
        return None
    squares = (1 - momentum) / (1 + momentum)  # sum(c_k^2) / sum(c_k)^2 for c_k = m^k
    if nesterov:  # c_0 = 1 + m, c_k = m^(k+1)
        squares *= (1 + momentum) ** 2 * (1 - momentum**2) + momentum**4
    return math.sqrt(2 * share * squares)
