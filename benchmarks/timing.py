"""Interleaved timing: every round runs every method, in shuffled order."""

import gc
import random
import time
from statistics import median


def cpu_microseconds(methods, rounds, seconds):
    """Return CPU microseconds of this process per unit of work, by method and round.

    Args:
        methods: name -> (function without arguments, units of work of one call).
        rounds: how often each is measured, after one call to warm up.
        seconds: that each runs at least, per round.
    """
    for function, _ in methods.values():
        function()
    order, shuffle = list(methods), random.Random(0)
    times = {name: [] for name in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            function, units = methods[name]
            gc.collect()
            calls, start, wall = 0, time.process_time(), time.perf_counter()
            while time.perf_counter() - wall < seconds:
                function()
                calls += 1
            times[name].append(1e6 * (time.process_time() - start) / (calls * units))
    return times


def median_ratio(times, name, base):
    """Return the median over rounds of one method's time relative to another's."""
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def show(times, base):
    """Print medians, ranges, and ratios to one of the methods."""
    for name, values in times.items():
        spread = f"[{min(values):.2f} .. {max(values):.2f}]"
        ratio = median_ratio(times, name, base)
        print(f"{name:28s} {median(values):10.2f} us {spread:26s} x {ratio:.2f}", flush=True)
