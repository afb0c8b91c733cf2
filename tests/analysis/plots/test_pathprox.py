"""The plots of PathProx against weight decay: what is marked, and that no seed is hidden."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import pathprox

PANEL = {"panel": "mlp", "title": "Digits"}

# Test accuracy and validation loss of three seeds by method and strength. At 0.1 the losses of weight decay have the
# lowest median, at 0.2 the lowest mean; at 0.3 two of its seeds have collapsed.
RUNS = {
    ("l2", 0.1): ((0.95, 0.95, 0.80), (0.10, 0.10, 0.90)),
    ("l2", 0.2): ((0.94, 0.94, 0.94), (0.20, 0.20, 0.20)),
    ("l2", 0.3): ((0.10, 0.93, 0.10), (2.30, 0.30, 2.30)),
    ("pathprox", 0.1): ((0.97, 0.96, 0.98), (0.10, 0.10, 0.10)),
    ("pathprox", 0.2): ((0.95, 0.95, 0.95), (0.20, 0.20, 0.20)),
    ("pathprox", 0.3): ((0.94, 0.94, 0.94), (0.30, 0.30, 0.30)),
}


@pytest.fixture
def removal():
    """Axes of fig2: accuracy by units, accuracy by strength, size by strength."""
    rows, pruned = [], []
    for (regularizer, strength), values in RUNS.items():
        for seed, (accuracy, loss) in enumerate(zip(*values, strict=True)):
            run = {"panel": "mlp", "run": f"{regularizer}-{strength}-{seed}", "regularizer": regularizer, "seed": seed}
            run |= {"regularizer.strength": strength, "step": 10}
            rows.append(run | {"val/loss": loss})
            left = {"units": 1 - strength, "parameters": 1 - strength, "latency": 0.9 + seed / 100}
            pruned += [run | left | {"share": share, "test_accuracy": accuracy} for share in (0, pathprox.SMALL)]
    figure = pathprox.fig2(pd.DataFrame(rows), pd.DataFrame(pruned), [PANEL])
    yield figure.axes
    mpl.pyplot.close(figure)


def test_a_ring_is_at_the_lowest_mean_validation_loss_not_the_lowest_median(removal):
    rings = [line for line in removal[1].lines if "validation loss" in str(line.get_label())]
    assert [ring.get_xydata().tolist() for ring in rings] == [[[0.2, 0.94]], [[0.1, 0.97]]]


def test_the_band_is_within_a_point_of_the_best_mean(removal):
    for axes in removal[:2]:
        (band,) = [patch for patch in axes.patches if "within a point" in str(patch.get_label())]
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.96, 0.97))
    (level,) = [line for line in removal[0].lines if "best mean" in str(line.get_label())]
    assert set(level.get_ydata()) == {0.94}


def test_seeds_far_below_the_best_are_drawn_under_the_dotted_line_with_their_number(removal):
    by_units, by_strength, _ = removal
    assert [(text.xy[0], text.get_text()) for text in by_strength.texts] == [(0.1, "↓1"), (0.3, "↓2")]
    assert "↓3" in [text.get_text() for text in by_units.texts]  # small units removed: all strengths in one number
    floor = 0.97 - pathprox.FRAME
    (pale,) = [line for line in by_strength.lines if line.get_marker() == "o" and line.get_alpha()]
    under = [line for line in by_strength.lines if line.get_marker() == "o" and line.get_markersize() == 3]
    assert len(pale.get_xdata()) + len(under[0].get_xdata()) == 9
    assert by_strength.get_ylim()[0] < under[0].get_ydata().min() and under[0].get_ydata().max() < floor


def test_strengths_at_which_a_method_fails_are_named_where_their_size_is_left_out(removal):
    (text,) = [text.get_text() for text in removal[2].texts]
    assert text == "not drawn, median accuracy below 87%:\nweight decay (SGD), small units removed: s = 0.3"


def test_bars_of_latency_run_from_the_least_to_the_most_seed(removal):
    bars = removal[2].collections
    segments = [
        segment for bar in bars if isinstance(bar, mpl.collections.LineCollection) for segment in bar.get_segments()
    ]
    assert len(segments) == 2 + 3 + 3
    assert all(segment[:, 1] == pytest.approx([0.9, 0.92]) for segment in segments)


@pytest.mark.parametrize("spike", [None, 50.0])
def test_a_spike_of_one_seed_does_not_set_the_range_of_the_objective_and_is_named(spike):
    steps = np.arange(0, 101, 10)
    rows = pd.concat(
        pd.DataFrame({"step": steps, "objective/path_norm": np.linspace(2, 1, 11) + seed / 10}).assign(
            panel="mlp", run=f"{name}-{seed}", regularizer=name, seed=seed, **{"sparsity/active_units": 1.0}
        )
        for name in ("l2", "pathprox")
        for seed in (4, 5, 6)
    ).reset_index(drop=True)
    if spike:
        rows.loc[(rows["run"] == "pathprox-5") & (rows["step"] == 80), "objective/path_norm"] = spike
    figure = pathprox.fig3(rows, [PANEL])
    objective = figure.axes[0]
    assert objective.get_ylim() == pytest.approx((0.9 * 1.4, 1.1 * 2.5))
    assert [text.get_text() for text in objective.texts] == (["PathProx, seed 5, to 50 ↑"] if spike else [])
    mpl.pyplot.close(figure)
