"""A judged claim in plain sentences. Called by ``figures``; printed by ``make reproduce-figN`` and in notebooks."""

import math
from collections.abc import Mapping
from typing import Any

# What a verdict means, by the kind of claim; {size} is the smallest difference that counts, {word} a direction.
MEANINGS = {
    "reproduced": {
        "lower": "so it holds, by at least {size}",
        "higher": "so it holds, by at least {size}",
        "not_worse": "so it is not {word} by more than {size}",
        "equal": "so it holds within {size}",
    },
    "direction only": "so the direction is sure, but not a difference of {size}",
    "no difference": "so any difference is smaller than {size}",
    "contradicted": {
        "lower": "so it is the other way round",
        "higher": "so it is the other way round",
        "not_worse": "so it is {word} by more than {size}",
        "equal": "so it differs by more than {size}",
    },
    "inconclusive": {
        "lower": "which does not decide it (a difference of {size} would count)",
        "higher": "which does not decide it (a difference of {size} would count)",
        "not_worse": "which does not decide whether it is {word} by more than {size}",
        "equal": "which does not decide it (up to {size} would count as equal)",
    },
}
# The same for a value that is to be at most, or at least, a number; {bound} includes what is tolerated.
BOUNDS = {
    "reproduced": "so it is {at} {bound}",
    "contradicted": "so it is not {at} {bound}",
    "inconclusive": "which does not decide whether it is {at} {bound}",
}
# Why numbers that would decide a claim do not, see ``claims.judge``; {of} is a group, or a number of seeds.
DOUBTS = {
    "ended": "no setting of {of} has only runs that ended well",
    "beyond": "{of} could not be read at the level in every seed",
    "lost": "neither group has a value for {of} seeds",
}
# Why a value could not be read between two settings, by what the tuning of a group tells; {stand_in} is the value that
# takes its place.
OUTSIDE = {
    "early": "at the first of them, which is past the level already,",
    "late": "at the last of them, which is not past the level,",
    "never": "never at the level, and counted as {stand_in},",
}
OF_THE_GRID = "% of the grid"  # a unit
FACTOR = 1.99  # a ratio from which on differences of logarithms are told as factors
ROUNDING = 1e-12  # a mean of differences up to this size is rounding, and told as equal


def sentence(judged: Mapping[str, Any], over: str, names: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return what was claimed, what was measured and what it means.

    Args:
        judged: a claim with its numbers, as ``claims.judge`` and ``figures.verdicts`` add them.
        over: what the seeds are called, see ``claims.judge``.
        names: names of groups, each with the values by which its group is selected, or some of them. A group has the
            first name of which it has all values.
    """
    claimed = " ".join(judged["statement"].split())
    groups = _names(judged, names or {})
    return f"{claimed} {_measured(judged, over)}, {_meaning(judged, groups)}{_remarks(judged, groups)}."


def _meaning(judged: Mapping[str, Any], groups: Mapping[str, str]) -> str:
    """Return what the verdict says."""
    verdict, smallest, is_number = judged["verdict"], judged["smallest_difference"], _is_number(judged)
    if judged.get("doubts"):
        reasons = [DOUBTS[kind].format(of=groups.get(of, of)) for kind, of in judged["doubts"].items()]
        return f"which does not decide it, since {' and '.join(reasons)}"
    falls = judged["kind"] == "lower" or judged.get("better") == "higher"
    words = {"size": size(judged, -smallest if falls else smallest, 2), "word": "lower" if falls else "higher"}
    if judged["kind"] == "not_worse" and is_number:
        bound = _value(judged, judged["b"] + (-smallest if falls else smallest))
        text = BOUNDS[verdict].format(at="at least" if falls else "at most", bound=bound)
    else:
        text = MEANINGS[verdict]
        text = (text if isinstance(text, str) else text[judged["kind"]]).format(**words)
    if verdict == "no difference" and judged["interval"][0] * judged["interval"][1] > 0:
        text += ", though the interval leaves out zero"
    if verdict == "reproduced" and not judged.get("holm", True):
        text += ", though not after Holm's correction for the number of claims"
    return text


def _measured(judged: Mapping[str, Any], over: str) -> str:
    """Return the measured difference and its interval in words, or say that a rule sets it in all seeds."""
    count = f"{judged['n']} {over}"
    if judged["interval"] is None:
        return f"Measured on {count}"
    stood_in = any(found.get("never") == judged["n"] for found in judged.get("tuning", {}).values())
    start, kind = "Not measured; by rule" if stood_in else "Measured", "95 % interval" if over == "seeds" else "range"
    low, high = judged["interval"]
    if _is_number(judged):
        ends = [_value(judged, judged["b"] + end) for end in (low, high)]
        told, between = _value(judged, judged["a_mean"]), f"{ends[0]} to {ends[1]}"
    else:
        told, between = _difference(judged, judged["mean_difference"]), _between(judged, low, high)
        if judged.get("unit") == OF_THE_GRID:
            told += f", {100 * judged['a_mean']:.3g} against {100 * judged['b_mean']:.3g} %"
    return f"{start}: {told} in each of {count}" if low == high else f"{start}: {told} ({kind} {between}; {count})"


def _is_number(judged: Mapping[str, Any]) -> bool:
    """Return whether a value is told, and not a difference or a ratio."""
    return isinstance(judged["b"], int | float) and not judged.get("difference")


def _difference(judged: Mapping[str, Any], difference: float) -> str:
    """Return a difference in words: ``12 % lower``, ``0.8 points higher``, ``3 times as high``, ``equal``."""
    return " ".join(_words(judged, difference)) if abs(difference) > ROUNDING else "equal"


def _words(judged: Mapping[str, Any], difference: float) -> tuple[str, str]:
    """Return the number of a difference, and its unit and direction."""
    if judged.get("difference") and math.exp(difference) >= FACTOR:
        return _number(math.exp(difference), 3), "times as high"
    number, _, unit = size(judged, difference).partition(" ")
    down, up = ("less", "more") if unit == OF_THE_GRID else ("lower", "higher")
    return number, f"{unit} {down if difference < 0 else up}".strip()


def _between(judged: Mapping[str, Any], low: float, high: float) -> str:
    """Return an interval in words: ``2 to 5 % higher``, ``1 % lower to 5 % higher``."""
    near, far = (low, high) if low >= 0 else (high, low)
    if low * high > 0:
        (number, unit), (_, last) = _words(judged, near), _words(judged, far)
        alike = unit in (last, last.replace("points", "point"))
        return f"{number if alike else _difference(judged, near)} to {_difference(judged, far)}"
    return f"{_difference(judged, low)} to {_difference(judged, high)}"


def size(claim: Mapping[str, Any], difference: float, digits: int = 3) -> str:
    """Return the absolute size of a difference with its unit.

    For logarithms it is the change of the ratio in percent, or the ratio if that is at least ``FACTOR``.
    """
    if claim.get("difference") and math.exp(difference) >= FACTOR:
        return f"a factor of {_number(math.exp(difference), digits)}"
    if claim.get("difference"):
        return f"{_number(100 * abs(math.expm1(difference)), digits)} %"
    if claim.get("unit") == "points":
        number = _number(100 * abs(difference), digits)
        return f"{number} {'point' if number == '1' else 'points'}"
    if claim.get("unit") == OF_THE_GRID:
        return f"{_number(100 * abs(difference), digits)} {OF_THE_GRID}"
    return f"{_number(abs(difference), digits)} {claim.get('unit', '')}".strip()


def _number(value: float, digits: int) -> str:
    """Return a positive number, rounded to some digits, but never in front of the decimal point."""
    return f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def _value(judged: Mapping[str, Any], value: float) -> str:
    """Return a value of the metric with its unit. A metric that is a change of shares is in points."""
    if judged.get("unit") != "points":
        return f"{value:.3g}"
    return f"{100 * value:.3g} {'points' if judged['metric'].endswith('_change') else '%'}"


def _remarks(judged: Mapping[str, Any], groups: Mapping[str, str]) -> str:
    """Return remarks on tuning and exploratory claims, each with a leading separator."""
    stand_ins = {"a": _value(judged, judged["worst"]), "b": "the best of all settings"}
    told = {groups[side]: _tuning(found, stand_ins[side]) for side, found in judged.get("tuning", {}).items()}
    if len(told) == 2 and len(set(told.values())) == 1:
        told = {f"{' and '.join(told)} each": next(iter(told.values()))}
    parts = [f"{name} {text}" for name, text in told.items()] + ["exploratory"] * judged["exploratory"]
    return "".join(f"; {part}" for part in parts)


def _tuning(found: Mapping[str, Any], stand_in: str) -> str:
    """Return what the tuning of a group tells, and what counts where a level is never reached."""
    count = f"{found['settings']} settings"
    if "chosen" in found:
        return f"at the best of {count}" + ("" if found["inside"] else ", at the edge of their range")
    if "mean" in found:
        return f"as the mean of {count}"
    if "grid" in found:
        over = f" with {found['over']}" if "over" in found else ""
        return f"on a grid of {count}{over}" + ("" if found["inside"] else ", with the best at the edge of their range")
    seeds = {key: f"{found[key]} seed{'s' * (found[key] > 1)}" for key in OUTSIDE if key in found}
    outside = (f"but {OUTSIDE[key].format(stand_in=stand_in)} in {count}" for key, count in seeds.items())
    return ", ".join([f"read between {count}", *outside])


def _names(judged: Mapping[str, Any], names: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of each group: ``AdamW``; without a declared name ``pnorm (p = 0.8)``.

    In parentheses are the values that are not in the name, unless both groups have them. Lists are left out: they hold
    the values of several scales.
    """
    found, rest = {}, {}
    for side in ("a", "b"):
        where = judged[side] if isinstance(judged[side], Mapping) else {}
        name = next((name for name, values in names.items() if values.items() <= where.items()), None)
        known = names[name] if name else {"regularizer": None}
        found[side] = name or str(where.get("regularizer", "group"))
        rest[side] = {key: v for key, v in where.items() if key not in known and not isinstance(v, list)}
    for side, other in (("a", "b"), ("b", "a")):
        own = {key.rpartition(".")[2]: v for key, v in rest[side].items() if rest[other].get(key) != v}
        if own:
            found[side] += f" ({', '.join(f'{key} = {_plain(value)}' for key, value in own.items())})"
    return found


def _plain(value: Any) -> str:
    """Return a value of a setting as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)
