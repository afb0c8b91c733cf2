"""fig4's plot: ends and critical strengths where the simulation has them, and exponents in the legend."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots.one_weight import fig4
from wdlab.studies import quartic
from wdlab.studies.one_weight import one_weight

PANELS = ("paths", "shrinkage", "end_points", "critical")


@pytest.fixture
def table():
    parts = (
        one_weight([0.5], [1.0], [0.02, 0.5], 0.1, 0.3, 40, 1),
        one_weight([0.5, 1.5], [0.2, 0.9], None, 0.1, 0.3, 200, 50),
        quartic.end_points(0.7, [1e-2, 1.0], [0.05, 0.3], 0.9, 100),
        quartic.critical_strengths([0.5, 0.8], [1e-4, 1e-3, 1e-2], 1e-2, 0.9, 300, 1e-2),
    )
    return pd.concat([part.assign(panel=name) for name, part in zip(PANELS, parts, strict=True)], ignore_index=True)


def test_the_last_row_shows_ends_over_strength_and_critical_strengths_over_the_start(table):
    figure = fig4(table, [{"panel": name, "title": name} for name in PANELS])
    over_strength, critical = figure.axes[4:]
    ends = {line.get_label(): line.get_ydata() for line in over_strength.lines}
    assert ends["from 0.01"][1] == 0 < ends["from 1"][1] < ends["from 1"][0]
    points = {str(line.get_label()): line.get_ydata() for line in critical.lines if line.get_marker() != "None"}
    exponents = table.dropna(subset=["exponent"]).groupby("p")["exponent"].first()
    assert list(points) == [f"p = {p:g}: exponent {exponent:.3f}" for p, exponent in exponents.items()]
    for p, drawn in zip((0.5, 0.8), points.values(), strict=True):
        exact = [quartic.critical_strength(p, start) for start in (1e-4, 1e-3, 1e-2)]
        np.testing.assert_allclose(drawn, exact, rtol=2e-2)
    plt.close(figure)
