"""A figure in a notebook: its committed picture, verdicts and scale-downs, without training or drawing anything."""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from IPython.display import display
from PIL import Image

from wdlab.analysis import figures
from wdlab.analysis.tables import FigureFiles
from wdlab.errors import ConfigError
from wdlab.records.identity import PROJECT

COLORS = 256  # in the palette of a picture, which takes a third of the space of true colours


def show(name: str, scale: str, results: str | Path = PROJECT / "results") -> None:
    """Display a figure: a heading, the picture, then for each claim its verdict, and the scale-downs.

    Args:
        name: the figure, such as ``fig3``.
        scale: ``quick``, ``cpu`` or ``paper``.
        results: the folder of the figure's files.

    Raises:
        ConfigError: if the figure has not been made at this scale.
    """
    files, judged = _made(name, scale, results)
    png = base64.b64encode(picture(files)).decode()
    _display_text(heading(judged, files))
    display({"image/png": png, "text/plain": f"{name} at {scale} scale"}, raw=True)
    _display_text(verdict_list(judged))


def show_explanations(name: str, scale: str, whose: Sequence[str], results: str | Path = PROJECT / "results") -> None:
    """Display for each of several explanations whether the claims that follow from it are reproduced.

    Args:
        name: the figure.
        scale: as in :func:`show`.
        whose: what the statements of an explanation's claims begin with, before a colon.
        results: as in :func:`show`.

    Raises:
        ConfigError: if the figure has not been made at this scale.
    """
    _, judged = _made(name, scale, results)
    _display_text("\n\n".join(explanation(judged, name) for name in whose))


def explanation(judged: Mapping[str, Any], whose: str) -> str:
    """Return in Markdown whether all claims of an explanation are reproduced, and those that are not."""
    claims = [claim for claim in judged["claims"] if claim["statement"].startswith(f"{whose}: ")]
    failed = [claim for claim in claims if claim["verdict"] != "reproduced" or not claim.get("holm", True)]
    confirmed = "not confirmed" if failed or not claims else "confirmed"
    shown = f"{len(claims) - len(failed)} of {len(claims)} claims are reproduced after Holm's correction"
    lines = [f"**The explanation of {whose} is {confirmed} here**: {shown}."]
    for claim in failed:
        statement = " ".join(claim["statement"].split()).removeprefix(f"{whose}: ").rstrip(".")
        verdict = claim["verdict"] + ", not after Holm's correction" * (claim["verdict"] == "reproduced")
        lines.append(f"- {judged['panels'][claim['panel']]['title']}: {statement}: *{verdict}*.")
    return "\n".join([lines[0], "", *lines[1:]]) if failed else lines[0]


def _made(name: str, scale: str, results: str | Path) -> tuple[FigureFiles, dict[str, Any]]:
    """Return the files of a figure, and its verdicts. Raise a ConfigError if it has not been made."""
    files = FigureFiles.of(name, scale, results)
    if not files.verdicts.exists():
        raise ConfigError(f"{name} at {scale} scale: not made yet; run make reproduce-{name} SCALE={scale}")
    return files, json.loads(files.verdicts.read_text())


def _display_text(markdown: str) -> None:
    """Display a text in Markdown, and as it is where Markdown is not rendered."""
    display({"text/markdown": markdown, "text/plain": markdown}, raw=True)


def picture(files: FigureFiles) -> bytes:
    """Return the picture of a figure as a PNG with a palette."""
    file = BytesIO()
    with Image.open(files.picture) as image:
        image.convert("RGB").quantize(COLORS).save(file, "png", optimize=True)
    return file.getvalue()


def heading(judged: Mapping[str, Any], files: FigureFiles) -> str:
    """Return figure, scale, number of seeds and numbers of verdicts in a line of Markdown.

    Args:
        judged: the content of the figure's file of verdicts.
        files: the figure's files.
    """
    counts = set()
    for panel in judged["panels"].values():
        over = next(key for key in panel if key != "title")  # such as seeds
        counts.add(len(panel[over]))
    shown = " to ".join(str(count) for count in dict.fromkeys((min(counts), max(counts))))
    title = f"**{judged['figure']} at `{judged['scale']}` scale, {shown} {over}: {judged['title']}**"
    return f"{title}  \n{figures.verdict_counts(files)}"


def verdict_list(judged: Mapping[str, Any]) -> str:
    """Return the claims of each panel in Markdown, each with verdict, sentence and numbers, then the scale-downs."""
    lines = []
    for title, claims in figures.claims_by_panel(judged):
        lines += [f"{title}:", ""]
        for claim in claims:
            sentence, numbers = " ".join(claim["sentence"].split()), figures.verdict_numbers(claim)
            lines.append(f"- **{claim['verdict']}**: {sentence} ({numbers})")
        lines.append("")
    return "\n".join([*lines, f"*Scale-downs: {judged['scale_down']}. Tried before these runs: {judged['tried']}.*"])
