"""Student's interval against other formulas, and how often it holds the mean."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from ssl_views.evaluation.intervals import Interval, interval_of_mean

# Two-sided 95 % quantiles of Student's t as printed in tables, by degrees of freedom.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("degrees", TABLE)
def test_the_half_width_is_that_of_tables(degrees):
    values = np.random.default_rng(degrees).normal(0.5, 0.1, degrees + 1).tolist()
    found = interval_of_mean(values)
    assert found.n == degrees + 1
    assert found.mean == pytest.approx(statistics.fmean(values))
    half = TABLE[degrees] * statistics.stdev(values) / math.sqrt(found.n)
    assert found.high - found.mean == pytest.approx(half, rel=3e-4)
    assert found.mean - found.low == pytest.approx(half, rel=3e-4)
    reference = stats.t.interval(0.95, degrees, statistics.fmean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(reference)


def test_it_holds_the_mean_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    intervals = [interval_of_mean(rng.normal(3, 2, 3).tolist()) for _ in range(4000)]
    held = sum(interval.low <= 3 <= interval.high for interval in intervals)
    assert held / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_a_single_value_has_no_interval():
    assert interval_of_mean([0.25]) == Interval(0.25, None, None, 1)


def test_equal_values_have_an_interval_without_width():
    assert interval_of_mean([0.1] * 3) == pytest.approx((0.1, 0.1, 0.1, 3))


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_other_values_get_a_sentence(values):
    with pytest.raises(ValueError, match="values must be at least one finite number; got "):
        interval_of_mean(values)
