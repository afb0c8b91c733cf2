"""A judged claim in one plain sentence. Called by ``claims``; printed by ``make reproduce-figN`` and in notebooks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

MEANINGS = {
    "reproduced": "the claim holds by at least what counts",
    "direction only": "the direction is sure, but not that it is as much as counts",
    "no difference": "any difference is smaller than what counts",
    "contradicted": "the opposite of the claim holds",
    "inconclusive": "these runs do not decide it",
}


def sentence(judged: Mapping[str, Any], over: str) -> str:
    """Return what was claimed, what was measured and what it means, as text of one or two sentences.

    Args:
        judged: a claim with its numbers, as ``claims.judge`` adds them.
        over: what the seeds are called, see ``claims.judge``.
    """
    claimed = " ".join(judged["statement"].split())
    return f"{claimed} {_measured(judged, over)}: {MEANINGS[judged['verdict']]}{_remarks(judged)}."


def _measured(judged: Mapping[str, Any], over: str) -> str:
    """Return the measured difference, its interval and what counts, in words."""
    count = f"{judged['n']} {over}"
    if judged["interval"] is None:
        return f"Measured on {count}"
    told = _difference(judged, judged["mean_difference"])
    if judged["kind"] == "equal" and isinstance(judged["b"], int | float):
        told = f"{_value(judged, judged['a_mean'])}, where {_value(judged, judged['b'])} is claimed"
    kind = "95 % interval" if over == "seeds" else "range"
    counts = size(judged, judged["smallest_difference"])
    return f"Measured: {told} ({kind} {_between(judged, *judged['interval'])}; {count}; {counts} would count)"


def _difference(judged: Mapping[str, Any], difference: float) -> str:
    """Return a difference in words: ``12 % lower``, ``0.8 points higher``, ``no difference``."""
    if difference == 0:
        return "no difference"
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
    """Return the absolute size of a difference with its unit; for logarithms the change of the ratio in percent."""
    if claim.get("difference"):
        return f"{100 * abs(np.expm1(difference)):.3g} %"
    if claim.get("unit") == "points":
        return f"{100 * abs(difference):.3g} points"
    return f"{abs(difference):.3g} {claim.get('unit', '')}".strip()


def _value(judged: Mapping[str, Any], value: float) -> str:
    """Return a value of the metric with its unit."""
    return f"{100 * value:.4g} %" if judged.get("unit") == "points" else f"{value:.4g}"


def _remarks(judged: Mapping[str, Any]) -> str:
    """Return remarks on a sure sign, tuning and exploratory claims, each with a leading separator."""
    parts = []
    if judged["verdict"] == "no difference" and judged["interval"][0] * judged["interval"][1] > 0:
        parts.append("though its sign is sure")
    for side, found in judged.get("tuning", {}).items():
        what = "the best of" if "chosen" in found else "the level among"
        inside = "inside" if found["inside"] else "not inside"
        parts.append(f"{side}: {what} {found['settings']} settings is {inside} their range")
    if judged["exploratory"]:
        parts.append("exploratory")
    return "".join(f"; {part}" for part in parts)
