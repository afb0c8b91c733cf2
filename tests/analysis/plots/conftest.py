"""What several tests of plots use: a fixture that draws a figure and closes it, and the lines of axes by label."""

import matplotlib.pyplot as plt
import numpy as np
import pytest


@pytest.fixture
def drawn(request):
    """Return the axes of a figure of one panel, by default ``PANEL`` of the test's module."""
    figures = []

    def draw(plot, table, panel=request.module.PANEL):
        figures.append(plot(table, [panel]))
        return figures[-1].axes

    yield draw
    for figure in figures:
        plt.close(figure)


def named(axes: plt.Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The places of the lines of the axes that have a label."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    return {
        line.get_label(): ([*np.atleast_1d(line.get_xdata())], [*np.atleast_1d(line.get_ydata())]) for line in lines
    }
