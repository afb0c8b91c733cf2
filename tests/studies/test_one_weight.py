"""One weight: fixed points against closed forms, and paths against the fixed points."""

import numpy as np
import pytest

from wdlab.studies.one_weight import fixed_point, one_weight


@pytest.mark.parametrize("target", [0.1, 0.3, 0.9])
def test_fixed_points_with_a_closed_form(target):
    assert fixed_point(2, 0.3, target, 1.0) == pytest.approx(target / 1.6, abs=1e-12)
    assert fixed_point(1, 0.3, target, 1.0) == pytest.approx(max(0.0, target - 0.3), abs=1e-12)
    root = (-0.45 + np.sqrt(0.45**2 + 4 * target)) / 2  # of w + 1.5 s sqrt(w) - target in sqrt(w)
    assert fixed_point(1.5, 0.3, target, 1.0) == pytest.approx(root**2, abs=1e-12)


def test_below_1_the_start_decides_between_zero_and_the_larger_root():
    roots = np.roots([1, 0, -1, 0.15])  # of w^(3/2) - w^(1/2) + s p for s = 0.3, p = 0.5, target 1, in sqrt(w)
    small, large = sorted(r.real**2 for r in roots if r.real > 0)
    assert fixed_point(0.5, 0.3, 1.0, 0.99 * small) == 0
    assert fixed_point(0.5, 0.3, 1.0, 1.01 * small) == pytest.approx(large, abs=1e-12)
    assert fixed_point(0.5, 0.3, 0.4, 0.4) == 0  # no root at all
    with pytest.raises(ValueError, match="must be >= 0"):
        fixed_point(0.5, 0.3, -1.0, 0.1)


def test_decoupled_paths_settle_at_the_fixed_point_and_gradient_ones_do_not_for_p_below_1():
    rows = one_weight([0.5, 1.5], [0.2, 0.9], None, 0.1, 0.3, 1000, 10)
    assert len(rows) == 2 * 2 * 2 * 101 and set(rows["seed"]) == {0, 1}
    late = rows[rows["step"] >= 500]
    restless = (late["regularizer"] == "lp") & (late["p"] == 0.5) & (late["target"] == 0.2)
    settled = late[~restless]
    assert settled["distance"].max() < 1e-9 and (settled["jumps"] == 0).all() and settled["step_size"].max() < 1e-12
    assert (late.loc[restless, "jumps"] > 0.2).all() and (late.loc[restless, "step_size"] > 0.02).all()
    assert (late.loc[restless, "low"] < 0).all() and (late.loc[restless, "high"] > 0).all()
    zeros = late[(late["regularizer"] == "pnorm") & (late["p"] == 0.5) & (late["target"] == 0.2)]
    assert (zeros["weight"] == 0).all()


def test_nothing_is_kept_of_a_path_that_does_not_settle_after_its_first_jump():
    path = one_weight([0.5], [0.2], None, 0.1, 0.3, 400, 1).query("regularizer == 'lp'")
    known = path["weight"].notna()
    first = int(known.sum())
    assert 1 < first < 20 and known.iloc[:first].all() and path["distance"].isna().equals(~known)
    assert (path["weight"].iloc[: first - 1] > 0).all()
    assert (path[["jumps", "step_size", "low", "high"]].nunique() == 1).all()
