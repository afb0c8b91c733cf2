"""Verdicts on intervals, Holm's correction, and the rates at which the rules err."""

import numpy as np
import pytest
from scipy import stats

from wdlab.analysis import error_rates, verdicts
from wdlab.records.identity import PROJECT


@pytest.mark.parametrize(
    ("interval", "higher"),
    [
        ((0.10, 0.30), "reproduced"),
        ((0.01, 0.30), "direction only"),
        ((0.01, 0.09), "no difference"),
        ((-0.09, 0.09), "no difference"),
        ((-0.09, -0.01), "no difference"),
        ((-0.10, -0.01), "contradicted"),
        ((-0.30, -0.20), "contradicted"),
        ((-0.09, 0.11), "inconclusive"),
        ((-0.30, 0.01), "inconclusive"),
    ],
)
def test_higher_and_its_mirror(interval, higher):
    low, high = interval
    assert verdicts.verdict("higher", interval, 0.1) == higher
    assert verdicts.verdict("lower", (-high, -low), 0.1) == higher


@pytest.mark.parametrize(
    ("interval", "not_worse", "equal"),
    [
        ((-0.1, 0.1), "reproduced", "reproduced"),
        ((-0.1, 0.5), "reproduced", "inconclusive"),
        ((0.2, 0.5), "reproduced", "contradicted"),
        ((-0.2, 0.0), "inconclusive", "inconclusive"),
        ((-0.3, -0.2), "contradicted", "contradicted"),
    ],
)
def test_not_worse_and_equal(interval, not_worse, equal):
    assert verdicts.verdict("not_worse", interval, 0.1) == not_worse
    assert verdicts.verdict("equal", interval, 0.1) == equal


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=(4, 5))
    low, high = verdicts.student_interval(values)
    for row, ends in zip(values, zip(low, high, strict=True), strict=True):
        expected = stats.ttest_1samp(row, 0.0).confidence_interval(0.95)
        assert ends == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("kind", list(verdicts.KINDS))
def test_a_claim_is_reproduced_exactly_if_its_p_value_is_at_most_a_fortieth(kind):
    rng = np.random.default_rng(1)
    for _ in range(300):
        values = rng.normal(rng.normal(), 0.3, size=4)
        low, high = verdicts.student_interval(values)
        reproduced = verdicts.verdict(kind, (low, high), 0.4) == "reproduced"
        assert reproduced == (verdicts.p_value(kind, values, 0.4) <= 0.025)


def test_p_values_of_equal_differences():
    assert verdicts.p_value("higher", [0.5, 0.5], 0.4) == 0.0
    assert verdicts.p_value("higher", [0.3, 0.3], 0.4) == 1.0


def test_holm_on_a_worked_example():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.5, 0.9]) == [1.0, 1.0] and verdicts.holm([]) == []


@pytest.mark.parametrize("seeds", error_rates.SEEDS)
@pytest.mark.parametrize("name", ["normal", "both groups exponential", "both groups with spikes"])
@pytest.mark.parametrize("margin", error_rates.MARGINS)
def test_false_verdicts_are_rare(name, seeds, margin):
    rates = error_rates.rates(error_rates.DIFFERENCES[name], seeds, margin, draws=4000)
    noise = 3 * np.sqrt(0.03 * 0.97 / 4000)
    assert 0.94 - noise < rates.coverage < 0.98
    assert rates.tie <= 0.03
    assert rates.boundary <= 0.03 + noise and rates.opposite <= 0.03 + noise


def test_power_at_twice_what_counts():
    normal = error_rates.DIFFERENCES["normal"]
    assert error_rates.rates(normal, 5, 2.0, draws=4000).power == pytest.approx(0.91, abs=0.02)
    assert error_rates.rates(normal, 10, 1.0, draws=4000).power == pytest.approx(0.80, abs=0.03)


def test_one_skewed_group_errs_more_often_and_the_page_says_so():
    rates = error_rates.rates(error_rates.DIFFERENCES["one group exponential"], 5, 1.0, draws=4000)
    assert rates.boundary > 0.08 and rates.tie <= 0.03


def test_one_setting_for_all_seeds_keeps_the_interval_and_a_choice_by_the_other_seeds_does_not():
    for means in error_rates.SETTINGS.values():
        assert max(error_rates.tuned_errors(means, 5, "all", draws=20_000)) < 0.033
    assert min(error_rates.tuned_errors((0, 0, 0, 0), 10, "others", draws=20_000)) > 0.035


def test_the_page_holds_the_table_of_the_command():
    first_rows = [error_rates.row(name, 3, 0.5) for name in error_rates.DIFFERENCES]
    page = (PROJECT / "docs" / "verdicts.md").read_text()
    assert all(row in page for row in first_rows) and error_rates.tuned_table() in page
