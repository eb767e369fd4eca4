"""Mean learning curves, and what they say of later times: power laws, weighted by their fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_views.sweep.curves import SECONDS, TOLERANCE
from ssl_views.sweep.results import RunResult
from ssl_views.sweep.study import group_name

Array = NDArray[np.float64]

_STEP = "step"
MIN_POINTS = 4  # evaluations, at least, that a law is fitted to
_DELAYS = np.array([0.0, 0.1, 0.3, 1.0, 3.0])  # of the last time
_EXPONENTS = np.geomspace(0.05, 8.0, 24)
_FLOORS = np.linspace(0.0, 1.0, 51)  # share of the last error that no training takes away
_PRIOR_DEVIATION, _PRIOR_WEIGHT = 0.003, 2.0  # of points from the law; points that it counts as
_MOST_CORRELATED = 0.9


@dataclass(frozen=True)
class PowerLaws:
    """Laws that a learning curve may follow, and how probable each is.

    Math: error(t) = e + b (t + t0)^-c with e, b, t0 >= 0; t0 keeps the error before training
    finite. Written m (s + (1 - s) ((t + t0) / (T + t0))^-c), T the last time, the law has its t0,
    c and s on a grid, where all are equally probable before the curve is seen (c on a logarithmic
    scale). m and the deviation of points from the law are integrated over: with x the law at m = 1,
    residuals r and weights (t / T)^2, for a curve tells of later times by its end, the sums x.x and
    r.r give each law the weight (x.x)^-1/2 (r.r + n0 d0^2)^-(n - 1 + n0)/2, and m is Student t with
    n - 1 + n0 degrees. n0 and d0 are a prior for the deviation, and n counts the independent
    points: (sum w)^2 / sum w^2, times (1 - a) / (1 + a) where neighbors deviate alike, with
    correlation a.

    Attributes:
        last: T, in the unit of the times.
        weights: (L,), of the laws; their sum is 1.
        scales: (L,), most probable m.
        deviations: (L,), standard deviations of m.
        degrees: of freedom.
        residual_deviation: standard deviation of points from the law that fits best.
    """

    last: float
    weights: Array
    scales: Array
    deviations: Array
    degrees: float
    residual_deviation: float

    @classmethod
    def fit(cls, times: Sequence[float] | Array, errors: Sequence[float] | Array) -> "PowerLaws":
        """Weight the laws by how well they fit.

        Args:
            times: (N,), above 0 and rising, in any unit.
            errors: (N,), 1 - accuracy.

        Raises:
            ValueError: if there are fewer than four points, or times do not rise from above 0.

        Example:
            >>> times = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            >>> laws = PowerLaws.fit(times, 0.1 + 0.4 * times**-0.5)
            >>> drawn = laws.draw([12.0], 4000, np.random.default_rng(0))
            >>> low, high = np.quantile(drawn, [0.025, 0.975])
            >>> bool(low < 0.1 + 0.4 * 12**-0.5 < high)
            True
        """
        t, y = np.asarray(times, dtype=np.float64), np.asarray(errors, dtype=np.float64)
        if t.shape != y.shape or t.ndim != 1 or len(t) < MIN_POINTS:
            raise ValueError(
                f"a law needs at least {MIN_POINTS} points, a time and an error each; got times of "
                f"shape {t.shape} and errors of shape {y.shape}. Evaluate more often."
            )
        if not (t[0] > 0 and np.all(np.diff(t) > 0) and np.all(np.isfinite([t, y]))):
            raise ValueError(
                f"times must rise from above 0, and errors be finite; got {t.tolist()} and "
                f"{y.tolist()}. Leave out what was evaluated before training."
            )
        counted = (t / t[-1]) ** 2
        delays, exponents, floors = _grid()
        laws = _at_scale_one(t / t[-1], delays, exponents, floors)
        squares = laws**2 @ counted
        scales = np.maximum(laws @ (counted * y) / squares, 0.0)
        residuals = y - scales[:, None] * laws
        sums = residuals**2 @ counted
        total = float(counted.sum())
        share = total / float(np.sum(counted**2))
        share *= _independent_share(residuals[np.argmin(sums)] * np.sqrt(counted))
        degrees = share * total - 1 + _PRIOR_WEIGHT
        spread = share * sums + _PRIOR_WEIGHT * _PRIOR_DEVIATION**2
        log_weights = -0.5 * np.log(squares) - 0.5 * degrees * np.log(spread)
        weights = np.exp(log_weights - log_weights.max())
        return cls(
            last=float(t[-1]),
            weights=weights / weights.sum(),
            scales=scales,
            deviations=np.sqrt(spread / degrees / (share * squares)),
            degrees=degrees,
            residual_deviation=float(np.sqrt(spread.min() / degrees)),
        )

    def draw(
        self, times: Sequence[float] | Array, num_draws: int, generator: np.random.Generator
    ) -> Array:
        """Draw laws; return their errors, at least 0, at times (T,), as (num_draws, T)."""
        drawn = generator.choice(len(self.weights), num_draws, p=self.weights)
        noise = generator.standard_t(self.degrees, num_draws)
        scales = np.maximum(self.scales[drawn] + self.deviations[drawn] * noise, 0.0)
        delays, exponents, floors = (axis[drawn] for axis in _grid())
        relative = np.asarray(times, dtype=np.float64) / self.last
        errors: Array = scales[:, None] * _at_scale_one(relative, delays, exponents, floors)
        return errors


class GroupCurve:
    """The mean learning curve of runs that differ in their seed only, at the steps they share.

    What was evaluated before training is left out.

    Args:
        runs: finished.
        metric: column of their curves, an accuracy.

    Attributes:
        name: the settings that vary.
        num_runs: R.
        times: (N,), seconds of training, mean over the runs.
        values: (R, N), the metric.
        mean: (N,), its mean over the runs.
    """

    def __init__(self, runs: Sequence[RunResult], metric: str) -> None:
        self.name, self.num_runs = group_name(runs[0].settings), len(runs)
        columns = [_points(run, metric) for run in runs]
        steps = sorted(set.intersection(*(set(points) for points in columns)))
        table = np.array([[points[step] for step in steps] for points in columns], dtype=np.float64)
        table = table.reshape(len(runs), len(steps), 2)
        self.times: Array = table[..., 0].mean(axis=0)
        self.values: Array = table[..., 1]  # (runs, steps)
        self.mean: Array = self.values.mean(axis=0)

    def reaches(self, seconds: float) -> bool:
        """Return whether the curve comes so far."""
        return bool(seconds <= self.times[-1] * (1 + TOLERANCE))

    def fit(self) -> PowerLaws:
        """Return the laws that the mean may follow."""
        return PowerLaws.fit(self.times, 1 - self.mean)

    def missing(self, budget: float, every_point_counts: bool) -> str:
        """Return why nothing is known at the budget; empty if something is."""
        if not len(self.times):
            return "its runs share no evaluation during training"
        if every_point_counts and budget < self.times[0]:
            return f"its first evaluation comes after {self.times[0]:.0f} seconds"
        if not every_point_counts and not budget * (1 + TOLERANCE) >= self.times[-1]:
            return f"it takes {self.times[-1]:.0f} seconds"
        if every_point_counts and not self.reaches(budget) and len(self.times) < MIN_POINTS:
            return f"it ends before the budget, and has fewer than {MIN_POINTS} evaluations"
        return ""

    def draw(self, times: Array, num_draws: int, generator: np.random.Generator) -> Array:
        """Draw metrics at times (T,), seeds left out: (num_draws, T)."""
        drawn = np.tile(np.interp(times, self.times, self.mean), (num_draws, 1))
        later = times > self.times[-1] * (1 + TOLERANCE)
        if later.any():
            drawn[:, later] = 1 - self.fit().draw(times[later], num_draws, generator)
        return drawn


def _grid() -> tuple[Array, Array, Array]:
    """Return the delays, exponents and floors of all laws, (L,) each."""
    delays, exponents, floors = np.meshgrid(_DELAYS, _EXPONENTS, _FLOORS, indexing="ij")
    return delays.ravel(), exponents.ravel(), floors.ravel()


def _at_scale_one(relative: Array, delays: Array, exponents: Array, floors: Array) -> Array:
    """Return laws (L,) with m = 1 at times (T,) relative to the last, as (L, T)."""
    delayed = (relative + delays[:, None]) / (1 + delays[:, None])
    laws: Array = floors[:, None] + (1 - floors[:, None]) * delayed ** -exponents[:, None]
    return laws


def _independent_share(residuals: Array) -> float:
    """Return which share of the points counts, for neighbors deviate alike."""
    total = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1]) / total if total > 0 else 0.0
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    return (1 - correlation) / (1 + correlation)


def _points(run: RunResult, metric: str) -> dict[float, tuple[float, float]]:
    """Return seconds of training and metric by step, where both are known."""
    columns = (run.curve.get(name, ()) for name in (_STEP, SECONDS, metric))
    return {
        step: (seconds, value)
        for step, seconds, value in zip(*columns, strict=False)
        if value is not None and seconds > 0 and math.isfinite(seconds) and math.isfinite(value)
    }
