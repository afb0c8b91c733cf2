r"""A picture of any runs' curves over epochs, and the table that it shows. For runs that belong to no figure.

The command:

    python -m wdlab.analysis.curves results/runs/<run> [results/runs/<run> ...] --metrics test/accuracy train/loss \
        --out results/examples/resnet18_cifar10
"""

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import style
from wdlab.analysis.load import load
from wdlab.errors import ConfigError, WdlabError, explain
from wdlab.records.directory import RunDirectory

METRIC_UNITS = {"loss": "nats", "accuracy": "share of examples", "active_units": "share of units"}
CHARACTERS_PER_INCH = 17  # in a line of the note under the picture


def draw(table: pd.DataFrame, metrics: Sequence[str], note: str = "") -> Figure:
    """Draw one panel per metric over epochs, one line per run, labelled by the settings in which the runs differ.

    Each of the first six runs has its own colour, and each metric of a panel its own line style. Further runs have the
    same colours in other line styles.

    Args:
        table: the rows of the runs, as ``wdlab.analysis.load`` returns them.
        metrics: columns of the table, one for each panel; metrics joined by a plus sign (``train/loss+test/loss``)
            share a panel.
        note: a text to print below the panels.

    Raises:
        ConfigError: if a metric is not in the table.
    """
    with style.context():
        size = (3.2 * len(metrics) + 0.4, 3.0)
        figure, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False, layout="constrained")
        for panel, joined in zip(axes[0], metrics, strict=True):
            _panel(panel, table, joined.split("+"))
        if note:
            width = int(CHARACTERS_PER_INCH * figure.get_figwidth())
            figure.supxlabel(textwrap.fill(note, width), fontsize=7, color="0.3")
    return figure


def _panel(axes: Axes, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Draw one panel, with a line for each run and metric."""
    for place, (run, label) in enumerate(_labels(table).items()):
        turn, color = divmod(place, len(style.PALETTE))
        for k, metric in enumerate(metrics, turn * len(metrics)):
            if metric not in table:
                known = ", ".join(column for column in table if "/" in column)
                raise ConfigError(f"--metrics {metric}: was not recorded; recorded are {known}")
            points = table[table["run"] == run].dropna(subset=[metric])
            names = [label, metric if len(metrics) > 1 else ""]
            label_here = ", ".join(name for name in names if name)
            looks = {"color": style.PALETTE[color], "linestyle": style.LINES[k % len(style.LINES)], "marker": "."}
            axes.plot(points["epoch"], points[metric], label=label_here, **looks)
    axes.set_ylabel(_y_label(metrics))
    axes.set_xlabel("epoch")
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend()


def _y_label(metrics: Sequence[str]) -> str:
    """Return the label of the y axis: the metrics with units, or their last word if all have the same one."""
    last_words = {metric.rpartition("/")[2] for metric in metrics}
    shown = last_words if len(last_words) == 1 < len(metrics) else metrics
    units = [METRIC_UNITS.get(name.rpartition("/")[2]) for name in shown]
    return "\n".join(name + (f" ({unit})" if unit else "") for name, unit in zip(shown, units, strict=True))


def _labels(table: pd.DataFrame) -> dict[str, str]:
    """Return the label of each run by its name: the settings in which the runs differ, with the values of the run."""
    settings = [c for c in table.columns[: list(table).index("step")] if c != "run"]
    first = table.groupby("run", sort=False)[settings].first()
    differing = [c for c in settings if first[c].map(repr).nunique() > 1]
    last_words = Counter(column.rpartition(".")[2] for column in differing)
    names = {c: word if last_words[word := c.rpartition(".")[2]] == 1 else c for c in differing}
    return {
        str(run): ", ".join(f"{name} {row[column]}" for column, name in names.items()) for run, row in first.iterrows()
    }


def provenance(folders: Sequence[Path]) -> str:
    """Return a text with device, threads, precision and commit of all sessions of the runs in ``folders``."""
    sessions = set()
    for folder in folders:
        for session in RunDirectory(folder.parent, folder.name).read("provenance.json").get("sessions", []):
            commit = session["code"].get("commit", "unknown")[:10]
            sessions.add(f"{session['device']}, threads: {session['threads']}, {session['precision']}, commit {commit}")
    return "; ".join(sorted(sessions))


def main() -> None:
    """Run the command line. For bad input it exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m wdlab.analysis.curves",
        description="Draw runs as curves over epochs: a picture and its table.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, all in one folder")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["train/loss+test/loss", "test/accuracy"],
        metavar="METRIC",
        help="one plot each, + draws several in one (train/loss+test/loss test/accuracy); see docs/metrics.md",
    )
    parser.add_argument("--out", type=Path, required=True, help="<out>.png and <out>.csv are written")
    parser.add_argument("--note", default="", help="text below the picture, before the machine and commit")
    arguments = parser.parse_args()
    folders = arguments.runs
    try:
        if len({folder.parent for folder in folders}) > 1:
            raise ConfigError("runs: must be in one folder")
        table = load(folders[0].parent, [folder.name for folder in folders])
        note = " ".join(part for part in (arguments.note, provenance(folders)) if part)
        figure = draw(table, arguments.metrics, note)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(f"{arguments.out}.csv", index=False)
        with style.context():
            figure.savefig(f"{arguments.out}.png", metadata={"Software": None})
    except (WdlabError, OSError) as error:
        print(f"error: {explain(error) or error}", file=sys.stderr)
        sys.exit(2)
    mpl.pyplot.close(figure)
    print(f"picture  {arguments.out}.png\ntable    {arguments.out}.csv")


if __name__ == "__main__":
    main()
