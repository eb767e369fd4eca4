"""What is known of a mean from a few values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

_CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: of the values.
        low: end of the interval; None for a single value, which says nothing of its spread.
        high: likewise.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Return the mean of values and its 95 % interval, by Student's t with n - 1 degrees.

    It covers what the values were drawn from, and no more: accuracies over draws of labels, or
    over seeds of training, do not say how other test images would do.

    Args:
        values: at least one, finite, drawn independently, such as accuracies of several seeds.

    Raises:
        ValueError: if there is no value, or one is not finite.

    Example:
        >>> [round(x, 3) for x in interval_of_mean([0.5, 0.6, 0.7])]
        [0.6, 0.352, 0.848, 3]
    """
    n = len(values)
    if not n or not all(map(math.isfinite, values)):
        raise ValueError(
            f"values must be at least one finite number; got {list(values)}. Leave out runs that "
            "have none."
        )
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = half_interval(deviation / math.sqrt(n), n - 1)
    return Interval(mean, mean - half, mean + half, n)


def half_interval(standard_error: float, degrees: int) -> float:
    """Return half of the 95 % interval about a mean, by Student's t.

    Example:
        >>> round(half_interval(1.0, 2), 2)
        4.3
    """
    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2)) * standard_error
