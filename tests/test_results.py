"""The committed results follow from the committed declarations, and the headline from the released curves."""

import json

import pandas as pd
import pytest

from wdlab.analysis import declaration, figures, selection, tables
from wdlab.records.identity import PROJECT

RESULTS = PROJECT / "results"
MADE = [
    (name, scale)
    for name in declaration.names()
    for scale in declaration.SCALES
    if tables.FigureFiles.of(name, scale, RESULTS).verdicts.exists()
]


# Declared; the README's index says that they are not made yet.
NOT_MADE: set[tuple[str, str]] = set()


def test_every_figure_is_there_at_both_scales():
    assert {(name, scale) for name in declaration.names() for scale in ("quick", "cpu")} - set(MADE) == NOT_MADE


@pytest.mark.parametrize("scale", declaration.SCALES)
@pytest.mark.parametrize("name", declaration.names())
def test_every_figure_declares_every_scale(name, scale):
    declared = declaration.read(name, scale)
    names = [(job.panel, job.directory.name) for job in declaration.figure_runs(declared, "anywhere")]
    simulated = [panel for panel in declared["at"]["panels"] if "simulate" in panel]
    assert (names or simulated) and len(set(names)) == len(names)
    assert declared["at"]["scale_down"] and declared["claims"]


@pytest.mark.parametrize(("name", "scale"), MADE)
def test_the_table_holds_exactly_the_declared_runs(name, scale):
    declared, files = declaration.read(name, scale), tables.FigureFiles.of(name, scale, RESULTS)
    assert tables.holds_the_declared_runs(declared, files)
    if not trains(declared):
        table = pd.read_csv(files.table)
        assert_simulated_alike(tables.run_table(declared, []), table)


def trains(declared) -> bool:
    """Whether a figure has runs, and not only simulations."""
    return any(declaration.first_overrides(panel) for panel in declared["at"]["panels"])


def assert_simulated_alike(found: pd.DataFrame, committed: pd.DataFrame) -> None:
    """Where a path settles agrees up to rounding. A path that never does is another one on every processor, since
    each of its jumps magnifies rounding. The tolerances are twice the largest deviation from the mean in 30 paths of
    each target whose starts differ by one part in 10^13."""
    chaotic = {"jumps": 0.18, "step_size": 0.05, "low": 0.11, "high": 0.14}
    settled = [column for column in committed if column not in chaotic]
    pd.testing.assert_frame_equal(found[settled], committed[settled], rtol=1e-6, atol=1e-8)
    for column, tolerance in chaotic.items():
        assert (found[column] - committed[column]).abs().max() < tolerance, column
    quiet = committed["jumps"] == 0
    assert (found.loc[quiet, list(chaotic)] - committed.loc[quiet, list(chaotic)]).abs().to_numpy().max() < 1e-7


@pytest.mark.parametrize("name", declaration.names())
def test_figures_at_cpu_scale_are_declared_in_float32(name):
    """Where bf16 is emulated it takes many times as long."""
    panels = declaration.read(name, "cpu")["at"]["panels"]
    lines = [line for panel in panels for line in (panel.get("shared", []), *panel.get("vary", []))]
    assert not any("precision" in override for line in lines for override in line)


@pytest.mark.parametrize(("name", "scale"), MADE)
def test_the_verdicts_follow_from_the_table(name, scale):
    declared, files = declaration.read(name, scale), tables.FigureFiles.of(name, scale, RESULTS)
    table, measured = tables.read(declared, files)
    committed = json.loads(files.verdicts.read_text())
    again = json.loads(json.dumps(figures.verdicts(declared, table, [], measured)))
    for of_the_runs in ("runs", "devices", "code"):
        assert committed.pop(of_the_runs) or not trains(declared)
        del again[of_the_runs]
    assert again.pop("compute") == {} != committed.pop("compute", None)
    assert words(again) == words(committed)
    assert numbers(again) == pytest.approx(numbers(committed), rel=1e-9, abs=1e-12)  # logarithms differ in last digits
    assert files.picture.exists() and files.print_picture.exists()


@pytest.mark.parametrize(
    ("name", "scale"), [made for made in MADE if made[0] in ("fig1", "fig3", "fig8", "fig14", "fig17")]
)
def test_the_verdicts_do_not_depend_on_the_order_of_the_runs(name, scale):
    declared = declaration.read(name, scale)
    ordered = tables.read(declared, tables.FigureFiles.of(name, scale, RESULTS))
    shuffled = [rows if rows is None else rows.sample(frac=1, random_state=0) for rows in ordered]
    before, after = (
        json.loads(json.dumps(figures.verdicts(declared, rows, [], probes))) for rows, probes in (ordered, shuffled)
    )
    assert words(after) == words(before)
    assert numbers(after) == pytest.approx(numbers(before), rel=1e-9, abs=1e-12)  # sums round in another order


def leaves(value, place=""):
    """Every number and word in nested lists and dicts, by its place."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in inner for key, leaf in leaves(item, f"{place}/{name}").items()}
    return {place: value}


def numbers(value) -> dict[str, float]:
    return {place: leaf for place, leaf in leaves(value).items() if isinstance(leaf, float)}


def words(value) -> dict[str, object]:
    return {place: leaf for place, leaf in leaves(value).items() if not isinstance(leaf, float)}


@pytest.mark.parametrize("method", ["l2", "pathprox"])
def test_on_mnist_the_median_of_fig3_is_within_three_percent_of_the_released_curves(method):
    declared = declaration.read("fig3", "cpu")
    table = pd.read_csv(tables.FigureFiles.of("fig3", "cpu", RESULTS).table)
    rows = selection.select(table, {"panel": "mlp", "regularizer": method})
    medians = rows.groupby("step")["objective/path_norm"].agg(["median", "count"])
    reference = declared["released"]["objective/path_norm"][method]
    for step, value in reference.items():
        assert medians.loc[step, "count"] == 5
        assert medians.loc[step, "median"] == pytest.approx(value, rel=0.03), step
