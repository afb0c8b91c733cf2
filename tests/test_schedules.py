"""Learning-rate schedules at their corners."""

import pytest

from wdlab import schedules


def test_constant_is_one():
    assert schedules.constant(7, 10, 2) == 1.0


def test_multistep_drops_at_its_epochs():
    factors = [schedules.multistep(step, 100, 10, milestones=[2, 5], gamma=0.1) for step in (0, 19, 20, 49, 50, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_warms_up_then_falls_to_its_final_value():
    factors = [schedules.cosine(step, 101, 10, warmup_epochs=1, final=0.01) for step in range(102)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == pytest.approx(1.0)
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[101] == pytest.approx(0.01)
