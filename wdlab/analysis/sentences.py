"""A judged claim in plain sentences. Called by ``figures``; printed by ``make reproduce-figN`` and in notebooks."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# What a verdict means, by the kind of claim; {size} is the smallest difference that counts.
MEANINGS = {
    "reproduced": {
        "lower": "so it holds, by at least {size}",
        "higher": "so it holds, by at least {size}",
        "not_worse": "so it is not worse by more than {size}",
        "equal": "so it holds within {size}",
    },
    "direction only": "so the direction is sure, but not a difference of {size}",
    "no difference": "so any difference is smaller than {size}",
    "contradicted": {
        "lower": "so it is the other way round",
        "higher": "so it is the other way round",
        "not_worse": "so it is worse by more than {size}",
        "equal": "so it differs by more than {size}",
    },
    "inconclusive": "which does not decide it (a difference of {size} would count)",
}

# Why a value could not be read between two settings, by what the tuning of a group tells.
OUTSIDE = {
    "early": "at the first of them, which is past the level already,",
    "late": "at the last of them, before the level is reached,",
    "never": "never at the level",
}


def sentence(judged: Mapping[str, Any], over: str) -> str:
    """Return what was claimed, what was measured and what it means.

    Args:
        judged: a claim with its numbers, as ``claims.judge`` and ``figures.verdicts`` add them.
        over: what the seeds are called, see ``claims.judge``.
    """
    claimed = " ".join(judged["statement"].split())
    return f"{claimed} {_measured(judged, over)}, {_meaning(judged)}{_remarks(judged)}."


def _meaning(judged: Mapping[str, Any]) -> str:
    """Return what the verdict says."""
    text = MEANINGS[judged["verdict"]]
    text = text if isinstance(text, str) else text[judged["kind"]]
    smallest = judged["smallest_difference"]
    text = text.format(size=size(judged, -smallest if judged["kind"] == "lower" else smallest))
    if judged["verdict"] == "no difference" and judged["interval"][0] * judged["interval"][1] > 0:
        text += ", though the interval leaves out zero"
    if judged["verdict"] == "reproduced" and not judged.get("holm", True):
        text += ", though not after Holm's correction for the number of claims"
    return text


def _measured(judged: Mapping[str, Any], over: str) -> str:
    """Return the measured difference and its interval, in words."""
    count = f"{judged['n']} {over}"
    if judged["interval"] is None:
        return f"Measured on {count}"
    kind = "95 % interval" if over == "seeds" else "range"
    low, high = judged["interval"]
    if isinstance(judged["b"], int | float) and not judged.get("difference"):
        ends = [_value(judged, judged["b"] + end) for end in (low, high)]
        told, between = _value(judged, judged["a_mean"]), f"{ends[0]} to {ends[1]}"
    else:
        told, between = _difference(judged, judged["mean_difference"]), _between(judged, low, high)
    return f"Measured: {told} ({kind} {between}; {count})"


def _difference(judged: Mapping[str, Any], difference: float) -> str:
    """Return a difference in words: ``12 % lower``, ``0.8 points higher``, ``equal``."""
    if difference == 0:
        return "equal"
    return f"{size(judged, difference)} {'lower' if difference < 0 else 'higher'}"


def _between(judged: Mapping[str, Any], low: float, high: float) -> str:
    """Return an interval in words: ``2 % to 5 % higher``, ``1 % lower to 5 % higher``."""
    if low == high:
        return _difference(judged, low)
    near, far = (low, high) if low >= 0 else (high, low)
    if low * high > 0:
        return f"{size(judged, near)} to {_difference(judged, far)}"
    return f"{_difference(judged, low)} to {_difference(judged, high)}"


def size(claim: Mapping[str, Any], difference: float) -> str:
    """Return the absolute size of a difference with its unit.

    For logarithms it is the change of the ratio in percent, or the ratio if that is above 10.
    """
    if claim.get("difference") and difference > math.log(10) + 1e-9:
        return f"a factor of {np.exp(difference):,.0f}"
    if claim.get("difference"):
        return f"{100 * abs(np.expm1(difference)):.3g} %"
    if claim.get("unit") == "points":
        number = f"{100 * abs(difference):.3g}"
        return f"{number} {'point' if number == '1' else 'points'}"
    return f"{abs(difference):.3g} {claim.get('unit', '')}".strip()


def _value(judged: Mapping[str, Any], value: float) -> str:
    """Return a value of the metric with its unit."""
    return f"{100 * value:.3g} %" if judged.get("unit") == "points" else f"{value:.3g}"


def _remarks(judged: Mapping[str, Any]) -> str:
    """Return remarks on tuning and exploratory claims, each with a leading separator."""
    parts = []
    for side, found in judged.get("tuning", {}).items():
        name, count = _name(judged[side]), f"{found['settings']} settings"
        if "chosen" in found:
            edge = "" if found["inside"] else ", at the edge of their range"
            parts.append(f"{name} at the best of {count}{edge}")
        elif "grid" in found:
            edge = "" if found["inside"] else ", with the best at the edge of their range"
            parts.append(f"{name} over {count}{edge}")
        else:
            past = [f"but {text} in {found[key]} seeds" for key, text in OUTSIDE.items() if key in found]
            parts.append(", ".join([f"{name} read between {count}", *past]))
    if judged["exploratory"]:
        parts.append("exploratory")
    return "".join(f"; {part}" for part in parts)


def _name(where: Mapping[str, Any]) -> str:
    """Return a group's name: ``pathprox``, ``pnorm (p = 0.8)``."""
    values = {key.rpartition(".")[2]: value for key, value in where.items()}
    name = str(values.pop("regularizer", "")) or "group"
    rest = ", ".join(
        f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}" for key, value in values.items()
    )
    return f"{name} ({rest})" if rest else name
