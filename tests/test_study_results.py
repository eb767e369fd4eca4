"""Results of studies: how they are kept, and what is made of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from ssl_views.cli.study_tables import study_tables
from ssl_views.sweep.analysis import analyse
from ssl_views.sweep.comparing import difference, times_faster
from ssl_views.sweep.curves import Curves, align, first_crossing, frontier_of
from ssl_views.sweep.results import RunResult, append_result, read_results


def result(views, seed, values, seconds=(10, 20, 30), **more):
    count = range(1, len(values) + 1)
    columns = {
        "step": list(count),
        "epoch": [float(number) for number in count],
        "images_seen": [100 * number for number in count],
        "train_seconds": list(seconds),
        "knn": list(values),
    }
    known = {"settings": {"num_views": views, "seed": seed}, "status": "finished"}
    return RunResult(
        key=f"{views}{seed}", name=f"{views}-{seed}", **{"curve": columns, **known, **more}
    )


class TestResults:
    def test_come_back_as_they_were(self, tmp_path):
        results = [result(2, 0, [0.1, 0.2, 0.3]), result(2, 1, [0.1, 0.2, 0.4], error="x\ny")]
        for one in results:
            append_result(tmp_path, one)
        assert read_results(tmp_path) == results
        assert read_results(tmp_path / "results.jsonl") == results

    def test_the_last_line_of_a_run_counts(self, tmp_path):
        append_result(tmp_path, result(2, 0, [0, 0, 0], status="failed"))
        append_result(tmp_path, result(2, 0, [0.1, 0.2, 0.3]))
        (only,) = read_results(tmp_path)
        assert only.finished

    def test_a_line_that_was_cut_short_is_left_out(self, tmp_path):
        append_result(tmp_path, result(2, 0, [0.1, 0.2, 0.3]))
        path = tmp_path / "results.jsonl"
        whole = path.read_bytes()
        for length in (1, 20, len(whole) - 2):
            path.write_bytes(whole + whole[:length])
            assert len(read_results(tmp_path)) == 1
            append_result(tmp_path, result(4, 0, [0.1, 0.2, 0.3]))
            assert [r.settings["num_views"] for r in read_results(tmp_path)] == [2, 4]

    def test_damage_elsewhere_is_told(self, tmp_path):
        append_result(tmp_path, result(2, 0, [0.1, 0.2, 0.3]))
        path = tmp_path / "results.jsonl"
        path.write_text("{damaged\n" + path.read_text())
        with pytest.raises(ValueError, match="line 1 is not"):
            read_results(tmp_path)
        with pytest.raises(ValueError, match=r"must be its results.jsonl; got .*elsewhere"):
            read_results(tmp_path / "elsewhere")


class TestAnalysis:
    def runs(self):
        return [
            result(2, 0, [0.20, 0.30, 0.40]),
            result(2, 1, [0.22, 0.34, 0.42]),
            result(4, 0, [0.30, 0.42, 0.44], (20, 40, 60)),
            result(4, 1, [0.32, 0.46, 0.48], (20, 40, 60)),
        ]

    def test_last_values_with_intervals(self):
        two, four = analyse(self.runs()).groups
        assert (two.name, four.name) == ("num_views 2", "num_views 4")
        values = np.array([0.40, 0.42])
        half = scipy.stats.t.ppf(0.975, 1) * values.std(ddof=1) / math.sqrt(2)
        assert two.last.mean == pytest.approx(0.41)
        assert two.last.high - two.last.mean == pytest.approx(half)
        assert (four.seconds, four.epochs, four.images_seen) == (60, 3, 300)

    def test_equal_seconds_and_epochs(self):
        found = analyse(self.runs(), every_point_counts=True)
        two, four = found.groups
        assert found.equal_seconds == 30
        assert four.at_equal_seconds.mean == pytest.approx((0.36 + 0.39) / 2)  # between 20 and 40 s
        assert four.difference.mean == pytest.approx(np.mean([0.36 - 0.40, 0.39 - 0.42]))
        assert found.equal_epochs == 3
        assert four.at_equal_epochs.mean == pytest.approx(0.46)
        assert two.difference is None

    def test_a_neighbour_that_slows_a_run_for_a_while_does_not_count(self):
        slow = result(4, 1, [0.32, 0.46, 0.48], (20, 70, 90))
        runs = [*self.runs()[:3], slow]
        assert analyse(runs, every_point_counts=True) == analyse(
            self.runs(), every_point_counts=True
        )
        found = align([slow, result(4, 0, [0.1, 0.2, 0.3], (30, 60, 90))])
        rate = np.median([20, 50, 20, 30, 30, 30])
        assert all(run.curve["train_seconds"] == [rate, 2 * rate, 3 * rate] for run in found)

    def test_evaluations_of_one_run_alone_do_not_count(self):
        """Such as those where a run went on after a stop."""
        curve = self.runs()[1].curve
        more = {name: [*v[:1], (v[0] + v[1]) / 2, *v[1:]] for name, v in curve.items()}
        runs = [replace(run, curve=more) if run.key == "21" else run for run in self.runs()]
        assert len(runs[1].curve["step"]) == 4
        known = analyse(self.runs(), targets=[0.3], every_point_counts=True)
        assert analyse(runs, targets=[0.3], every_point_counts=True) == known

    def test_without_them_where_points_are_no_runs(self):
        found = analyse(self.runs())
        assert found.equal_seconds is None
        assert all(g.at_equal_seconds is None and g.difference is None for g in found.groups)

    def test_time_to_what_the_reference_ends_with(self):
        two, four = analyse(self.runs(), targets=[0.3, 0.9], every_point_counts=True).groups
        end, given, never = four.time_to
        assert end.target == pytest.approx(0.41)
        assert two.time_to[0].seconds == 30
        assert two.time_to[0].times_faster is None
        # The mean of four views goes 0.31, 0.44, 0.46; that of two 0.21, 0.32, 0.41.
        assert end.seconds == pytest.approx(20 + 20 * 0.10 / 0.13)
        assert end.times_faster.mean == pytest.approx(30 / (20 + 20 * 0.10 / 0.13))
        assert given.times_faster.mean == pytest.approx((10 + 10 * 0.09 / 0.11) / 20)
        assert (never.seconds, never.times_faster) == (None, None)

    def test_intervals_of_ratios_are_the_jackknifes(self):
        runs = [*self.runs(), result(2, 2, [0.21, 0.30, 0.43]), result(4, 2, [0.30, 0.4, 0.45])]
        two, four = (
            Curves([r for r in runs if r.settings["num_views"] == v], "knn") for v in (2, 4)
        )

        def log_ratio(seeds):
            means = [
                np.mean([r.curve["knn"] for r in c.runs if r.settings["seed"] in seeds], axis=0)
                for c in (two, four)
            ]
            seconds = [
                np.mean(
                    [r.curve["train_seconds"] for r in c.runs if r.settings["seed"] in seeds], 0
                )
                for c in (two, four)
            ]
            target = means[0][-1]
            return np.log(
                first_crossing(seconds[0], means[0], target)
                / first_crossing(seconds[1], means[1], target)
            )

        whole = log_ratio({0, 1, 2})
        pseudo = [3 * whole - 2 * log_ratio({0, 1, 2} - {seed}) for seed in range(3)]
        half = scipy.stats.t.ppf(0.975, 2) * np.std(pseudo, ddof=1) / np.sqrt(3)
        found = times_faster(four, two)
        ends = np.exp([whole, whole - half, whole + half])
        assert (found.mean, found.low, found.high) == pytest.approx(tuple(ends))

    def test_equal_settings_are_equally_fast(self):
        """Of two groups that differ in nothing, neither is the faster one on average."""
        rng, logs, covered = np.random.default_rng(0), [], []
        seconds = np.arange(1, 13) * 10.0
        truth = 0.45 - 0.2 * (seconds / 10) ** -0.5
        for _ in range(300):
            one, other = (
                Curves(
                    [
                        result(v, seed, truth + rng.normal(0, 0.006, 12), seconds)
                        for seed in range(3)
                    ],
                    "knn",
                )
                for v in (2, 4)
            )
            found = times_faster(other, one)
            if found is not None:
                logs.append(np.log(found.mean))
                covered.append(found.low is None or found.low <= 1 <= found.high)
        # Where the second group does not come so far, it is slower: those are left out here.
        assert len(logs) > 100
        assert abs(np.mean(logs)) < 0.12
        assert np.mean(covered) > 0.85

    def test_differences_are_those_of_a_block_design(self):
        rng = np.random.default_rng(0)
        runs = [
            result(v, seed, [0.1, 0.2, 0.3 + 0.01 * v + 0.02 * seed + rng.normal(0, 0.01)])
            for v in (2, 4, 8, 16)
            for seed in range(3)
        ]
        groups = [
            Curves([r for r in runs if r.settings["num_views"] == v], "knn") for v in (2, 4, 8, 16)
        ]
        found = difference(groups[1], groups[0], "epoch", among=groups)
        # The same by least squares, with a column for each group and for all seeds but the first.
        design = np.array(
            [
                [r.settings["num_views"] == v for v in (2, 4, 8, 16)]
                + [r.settings["seed"] == seed for seed in (1, 2)]
                for r in runs
            ],
            dtype=float,
        )
        values = np.array([r.curve["knn"][-1] for r in runs])
        fitted, squares, *_ = np.linalg.lstsq(design, values, rcond=None)
        contrast = np.array([-1.0, 1.0, 0, 0, 0, 0])
        degrees = 12 - 6
        error = np.sqrt(
            squares[0] / degrees * contrast @ np.linalg.inv(design.T @ design) @ contrast
        )
        assert found.mean == pytest.approx(contrast @ fitted)
        half = scipy.stats.t.ppf(0.975, degrees) * error
        assert found.high - found.mean == pytest.approx(half)

    def test_of_two_groups_those_of_the_paired_test(self):
        runs = self.runs()
        two, four = Curves(runs[:2], "knn"), Curves(runs[2:], "knn")
        found = difference(four, two, "epoch")
        known = scipy.stats.ttest_rel([0.44, 0.48], [0.40, 0.42]).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((known.low, known.high))
        assert difference(four, two, "epoch", among=[four, two]) == found
        assert difference(four.without(1), two, "epoch").low is None
        assert difference(four.without(1), two.without(0), "epoch") is None

    def test_smooth_curves_never_fall(self):
        curves = Curves([result(2, 0, [0.2, 0.4, 0.3]), result(2, 1, [0.2, 0.4, 0.3])], "knn")
        assert curves.smooth()[1] == pytest.approx([0.2, 0.35, 0.35])

    def test_without_the_reference_nothing_is_compared_with_it(self):
        runs = [run for run in self.runs() if run.settings["num_views"] == 4]
        found = analyse(runs, reference={"num_views": 2}, targets=[0.4], every_point_counts=True)
        (four,) = found.groups
        assert found.reference is None
        assert four.difference is None
        assert [time.target for time in four.time_to] == [0.4]
        assert "| num_views 4 |" in "\n".join(study_tables(found))

    def test_the_reference_is_what_it_is_told(self):
        found = analyse(self.runs(), reference={"num_views": 4})
        assert found.reference == "num_views 4"
        assert found.groups[0].time_to[0].target == pytest.approx(0.46)

    def test_failed_runs_are_named_and_counted(self):
        failed = result(2, 2, [0, 0, 0], status="failed", error="first\nout of memory", curve={})
        found = analyse([*self.runs(), failed])
        assert found.failed == {"2-2": "out of memory"}
        assert (found.groups[0].num_runs, found.groups[0].num_failed) == (2, 1)
        assert "failed: 2-2: out of memory" in study_tables(found)

    def test_a_curve_crosses_between_its_points(self):
        assert first_crossing([1, 2, 3], [0.5, 0.1, 0.9], 0.4) == 1
        assert first_crossing([1, 2, 3], [0.1, 0.5, 0.4], 0.3) == pytest.approx(1.5)
        assert first_crossing([1, 2, 3], [0.1, 0.5, 0.4], 0.6) is None

    def test_the_frontier_is_what_is_best_at_some_time(self):
        runs = [
            result(2, 0, [0.3, 0.35, 0.36], (5, 10, 15)),  # early
            result(4, 0, [0.1, 0.33, 0.50], (10, 20, 40)),  # late
            result(8, 0, [0.2, 0.30, 0.49], (10, 20, 41)),  # never
        ]
        curves = [Curves([run], "knn") for run in runs]
        assert frontier_of(curves, True) == {"num_views 2", "num_views 4"}
        # By brute force: a point is on it if no point of any curve dominates it.
        points = [
            (t, v, run.settings["num_views"])
            for run in runs
            for t, v in zip(run.curve["train_seconds"], run.curve["knn"], strict=True)
        ]
        best = {
            f"num_views {name}"
            for t, v, name in points
            if not any(t2 <= t and v2 >= v and (t2, v2) != (t, v) for t2, v2, _ in points)
        }
        assert best == {"num_views 2", "num_views 4"}
        assert frontier_of(curves[1:], False) == {"num_views 4"}

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (lambda runs: [replace(r, status="failed") for r in runs], {}, "must have finished"),
            (lambda runs: runs, {"metric": "knnn"}, "'knnn'.*knn"),
        ],
    )
    def test_refuses_what_cannot_be_analysed(self, change, options, message):
        with pytest.raises(ValueError, match=message):
            analyse(change(self.runs()), **options)

    def test_tables_show_intervals_and_units(self):
        text = "\n".join(study_tables(analyse(self.runs(), every_point_counts=True)))
        assert "| num_views 2 (reference) | 2    | 41.0 ± 12.7 %" in text
        assert "x faster" in text
        one = analyse([result(2, 0, [0.1, 0.2, 0.3])])
        assert "| 30.0 % " in "\n".join(study_tables(one))

    def test_pictures_are_drawn(self):
        from ssl_views.sweep.pictures import draw_study

        runs = [*self.runs(), result(8, 0, [0.2, 0.3, 0.5])]
        drawn = draw_study(runs, analyse(runs, every_point_counts=True))
        assert drawn.startswith(b"\x89PNG")

    def test_pictures_of_runs_that_only_fall_are_drawn(self):
        from ssl_views.sweep.pictures import draw_study

        runs = [result(v, 0, [0.4, 0.3, 0.2], (0, 10, 20)) for v in (2, 4)]
        for run in runs:
            run.curve["step"][:] = [0, 1, 2]
        assert draw_study(runs, analyse(runs, every_point_counts=True)).startswith(b"\x89PNG")
