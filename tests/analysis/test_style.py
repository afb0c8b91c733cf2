"""The looks of methods, those from outside the repository included."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from wdlab.analysis import style
from wdlab.analysis.plots import pathprox


def small_table(*methods: str) -> pd.DataFrame:
    """Two seeds of each method in one panel, with the columns that fig3's plot needs."""
    rows = [
        {"panel": "mlp", "run": f"{method}-{seed}", "regularizer": method, "seed": seed, "step": step}
        for method in methods
        for seed in (0, 1)
        for step in (0, 10, 20)
    ]
    return pd.DataFrame(rows).assign(**{"objective/path_norm": 1.0, "sparsity/active_units": 0.5})


def test_a_method_from_outside_the_repository_is_drawn_in_fig3s_plot():
    figure = pathprox.fig3(small_table("l2", "mine"), [{"panel": "mlp", "title": "Digits"}])
    medians = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]  # the others are seeds
    lines = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in medians}
    assert list(lines) == ["weight decay (SGD)", "mine"] and len(set(lines.values())) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    plt.close(figure)


def test_methods_that_are_not_in_the_table_of_looks_differ_and_depend_on_no_order():
    names = ["another", "mine", "yet_another"]
    found = style.looks_by_method(small_table("pathprox", *names))
    assert list(found) == [("pathprox", None), *((name, None) for name in names)]
    assert found == style.looks_by_method(small_table(*reversed(names), "pathprox"))
    assert [look.label for look in found.values()][1:] == names
    for part in ("color", "marker"):
        assert len({getattr(look, part) for look in found.values()}) == 4


def test_a_method_with_a_p_is_named_by_both():
    table = small_table("mine", "pnorm", "l2").assign(**{"regularizer.p": [0.3] * 6 + [0.8] * 6 + [None] * 6})
    found = style.looks_by_method(table)
    assert [look.label for look in found.values()] == ["weight decay (SGD)", "p = 0.8", "mine, p = 0.3"]
    parts = {name: part for name, _, part in style.by_method(table.iloc[3:9], found)}
    assert {name: len(part) for name, part in parts.items()} == {"pnorm": 3, "mine": 3}


@pytest.mark.parametrize(
    "methods", [("none", "l2", "pathprox"), ("pnorm", "decoupled", "magnitude_pruning", "pnorm_prox", "lp")]
)
def test_methods_that_are_shown_together_look_different(methods):
    looks = [look[:3] for (name, _), look in style.LOOKS.items() if name in methods]
    assert len(set(looks)) == len(looks) > 2
