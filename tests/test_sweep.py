"""Studies: the grid, running it through kills and failures, and what is made of the results."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from PIL import Image

from ssl_views.cli import main
from ssl_views.cli.arguments import make_parser, parse_weight, read_arguments
from ssl_views.cli.pretrain import ARGUMENTS
from ssl_views.cli.setup import make_config
from ssl_views.cli.study_tables import study_tables
from ssl_views.cli.sweep import check_flags
from ssl_views.data.image_limits import ImageLimits
from ssl_views.sweep.analysis import analyse
from ssl_views.sweep.comparing import difference, times_faster
from ssl_views.sweep.curves import Curves, first_crossing, frontier_of, with_steady_times
from ssl_views.sweep.locks import locked
from ssl_views.sweep.results import RunResult, append_result, read_results
from ssl_views.sweep.room import Room
from ssl_views.sweep.runner import Sweep, SweepError
from ssl_views.sweep.study import Study, group_name

ROOM = Room(jobs=2, threads=1)
STUDIES = Path(__file__).parents[1] / "examples" / "studies"

# A run that counts to ten, keeps what it has counted on the disk, and ends as it is told to.
CHILD = """
import json, os, signal, sys, threading, time
from pathlib import Path
import yaml

folder = Path(sys.argv[1])
flags = yaml.safe_load((folder / "pretrain.yaml").read_text())
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

def end_with_parent():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_parent, daemon=True).start()
(folder / "starts.txt").open("a").write("start\\n")
behaviour = flags.get("behaviour", "good")
if behaviour == "wrong":
    sys.exit(2)
if behaviour == "broken":
    print("out of memory"); sys.exit(1)
if behaviour == "broken once" and len((folder / "starts.txt").read_text().split()) == 1:
    sys.exit(1)
count = folder / "count.txt"
for step in range(int(count.read_text()) if count.exists() else 0, 10):
    if stopped:
        sys.exit(75)
    time.sleep(float(flags.get("seconds", 0)))
    count.write_text(str(step + 1))
    (folder / "all.txt").open("a").write(f"{step}\\n")
log = [{"step": s, "epoch": s / 10, "images_seen": 100 * s, "train_seconds": 2.0 * s,
        "eval_knn": flags["seed"] / 100 + s / 20} for s in (5, 10)]
(folder / "trainer_state.json").write_text(
    json.dumps({"log_history": log, "global_step": 10, "max_steps": 10}))
(folder / "run.json").write_text(json.dumps({"seed": flags["seed"], "data": {"images": 100}}))
"""


@pytest.fixture
def child(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return [sys.executable, str(script)]


def write_study(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def make_study(tmp_path, grid=None, **base):
    grid = grid or {"num_views": [2, 4], "seed": [0, 1]}
    return Study.read(write_study(tmp_path / "study.yaml", base=base, grid=grid))


class TestStudy:
    def test_is_the_product_of_its_lists_and_whole_seeds_come_first(self, tmp_path):
        grid = {"seed": [0, 1], "num_views": [2, 4], "projector_dim": [8, 16]}
        study = make_study(tmp_path, grid, learning_rate=0.1)
        assert len(study.runs) == 8
        assert [run.flags["seed"] for run in study.runs] == [0] * 4 + [1] * 4
        settings = [(r.settings["num_views"], r.settings["projector_dim"]) for r in study.runs]
        assert settings[:4] == [(2, 8), (2, 16), (4, 8), (4, 16)]
        assert all(run.flags["learning_rate"] == 0.1 for run in study.runs)
        assert len({run.name for run in study.runs}) == len({run.key for run in study.runs}) == 8

    def test_several_grids_are_added(self, tmp_path):
        grids = [{"num_views": [2], "seed": [0]}, {"num_views": [4, 8], "fraction": [0.5]}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [dict(run.settings) for run in runs] == [
            {"num_views": 2, "seed": 0},
            {"num_views": 4, "fraction": 0.5},
            {"num_views": 8, "fraction": 0.5},
        ]

    def test_one_value_in_a_grid_is_for_its_runs_and_does_not_name_them(self, tmp_path):
        grids = [{"num_views": [2], "max_steps": 9}, {"num_views": [4], "max_steps": 5}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [dict(run.settings) for run in runs] == [{"num_views": 2}, {"num_views": 4}]
        assert [run.flags["max_steps"] for run in runs] == [9, 5]

    def test_a_run_is_what_all_its_flags_are(self, tmp_path):
        def keys(**base):
            return [run.key for run in make_study(tmp_path, **base).runs]

        assert keys() == keys()
        assert not set(keys()) & set(keys(learning_rate=0.1))
        assert not set(keys(dataset="/a/photos")) & set(keys(dataset="/b/photos"))
        places = [str(tmp_path), "user/name"]
        here = make_study(tmp_path, dataset=places).runs[0]
        (tmp_path / "b").mkdir()
        assert here.key == make_study(tmp_path, dataset=places).runs[0].key
        assert here.flags["dataset"] == str(tmp_path)

    def test_takes_the_first_place_of_images_that_exists(self, tmp_path):
        (tmp_path / "here").mkdir()
        places = [str(tmp_path / "not here"), str(tmp_path / "here"), "user/name"]
        assert make_study(tmp_path, dataset=places).runs[0].flags["dataset"] == places[1]
        places.pop(1)
        assert make_study(tmp_path, dataset=places).runs[0].flags["dataset"] == "user/name"

    def test_names_are_folders(self, tmp_path):
        grid = {"recipe_args": [{"crop_scale": [0.2, 1.0]}, {"crop_scale": [0.1, 1.0]}]}
        for run in make_study(tmp_path, grid).runs:
            assert "/" not in run.name
            assert (tmp_path / run.name).mkdir() is None

    def test_knows_whether_a_point_of_a_curve_is_a_run(self, tmp_path):
        assert make_study(tmp_path, lr_scheduler_type="constant").every_point_counts
        warmup = {"lr_scheduler_type": "constant_with_warmup"}
        assert make_study(tmp_path, **warmup, warmup_steps=30).every_point_counts
        assert not make_study(tmp_path, **warmup, warmup_steps=0.1).every_point_counts
        assert not make_study(tmp_path, **warmup).every_point_counts
        assert not make_study(tmp_path, lr_scheduler_type="cosine").every_point_counts
        assert not make_study(tmp_path).every_point_counts

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"base": {}}, "must hold a grid of settings"),
            ({"grid": {"seed": [0]}, "metrc": "knn"}, "unknown key 'metrc'.*metric"),
            ({"grid": {"seed": 0}}, "must hold lists of values by flag"),
            ({"grid": {"seed": []}}, "must hold lists of values by flag"),
            ({"grid": {}}, "must hold lists of values by flag"),
            ({"grid": {"seed": [0, 0]}}, "must come once"),
            ({"grid": {"output_dir": ["a"]}}, "must not set 'output_dir'"),
            (
                {"grid": {"num_views": [2]}, "reference": {"num_views": 4}},
                "must be settings that vary in its grid",
            ),
            (  # the same in all runs
                {
                    "grid": {"num_views": [2]},
                    "base": {"loss": "kernel"},
                    "reference": {"loss": "kernel"},
                },
                "must be settings that vary in its grid",
            ),
            ({"grid": {"seed": [0]}, "targets": 0.8}, "must be a list of numbers; got 0.8"),
        ],
    )
    def test_refuses_what_is_no_study(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=message):
            Study.read(write_study(tmp_path / "study.yaml", **content))

    def test_one_seed_for_a_grid_is_no_list(self, tmp_path):
        grids = [{"num_views": [2, 4], "seed": 0}, {"num_views": [2], "seed": [1]}]
        runs = Study.read(write_study(tmp_path / "s.yaml", grid=grids)).runs
        assert [run.flags["seed"] for run in runs] == [0, 0, 1]

    def test_refuses_what_is_no_yaml(self, tmp_path):
        (tmp_path / "s.yaml").write_text("grid: [")
        with pytest.raises(ValueError, match="a study must be YAML"):
            Study.read(tmp_path / "s.yaml")

    def test_refuses_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            Study.read(tmp_path / "no.yaml")

    def test_groups_have_names_without_the_seed(self):
        settings = {"fraction": 0.5, "seed": 1, "model_args": {"a": 1}}
        assert group_name(settings) == 'fraction 0.5, model_args {"a": 1}'
        assert group_name({"seed": 1}) == "all runs"

    @pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
    def test_those_of_the_examples_can_be_run(self, path, tmp_path):
        study = Study.read(path, {"dataset": "digits"})
        check_flags(study)
        assert study.about
        assert study.every_point_counts
        assert {run.flags["seed"] for run in study.runs} == {0, 1, 2}
        for run in study.runs[: len(study.runs) // 3]:  # of the first seed
            file = tmp_path / "flags.yaml"
            file.write_text(yaml.safe_dump({**run.flags, "output_dir": str(tmp_path)}))
            parser = make_parser("pretrain", "", *ARGUMENTS)
            source, views, model, watch, args = read_arguments(parser, [str(file)])
            assert args.max_grad_norm == 0
            rows = [{"image": Image.new("RGB", (160, 160))}]
            config = make_config(rows, source.dataset, views, model, limits=ImageLimits())
            assert config.num_views == run.flags["num_views"]
            assert watch.probe_test

    def test_flags_are_checked_before_anything_is_run(self, tmp_path):
        with pytest.raises(ValueError, match=r"'num_vews' is none.*num_views"):
            check_flags(make_study(tmp_path, num_vews=3))
        study = replace(make_study(tmp_path), evaluate={"kk": 3})
        with pytest.raises(ValueError, match="flags of ssl-views evaluate; 'kk' is none"):
            check_flags(study)


class TestWeightOverD:
    def test_is_divided_by_the_width(self):
        assert parse_weight("4/D", 64) == 1 / 16
        assert parse_weight("0.5", 64) == 0.5
        assert parse_weight("auto", 64) == "auto"

    @pytest.mark.parametrize("text", ["4/d2", "4/D2", "1/De2", "x/D", "/D", "4/D/D"])
    def test_refuses_others(self, text):
        with pytest.raises(ValueError, match="a number over D such as '4/D'"):
            parse_weight(text, 64)


class TestSweep:
    def test_runs_everything_once(self, tmp_path, child):
        study, folder, seen = make_study(tmp_path), tmp_path / "out", []
        sweep = Sweep(study, folder, child, room=ROOM, on_end=seen.append)
        results = sweep.run()
        assert [r.key for r in results] == [run.key for run in study.runs]
        assert all(r.finished and r.num_images == 100 and r.attempts == 1 for r in results)
        assert results[0].curve == {
            "step": [5, 10], "epoch": [0.5, 1.0], "images_seen": [500, 1000],
            "train_seconds": [10.0, 20.0], "knn": [0.25, 0.5],
        }  # fmt: skip
        assert sweep.num_left == 0
        assert [p.num_done for p in seen] == [1, 2, 3, 4]
        assert seen[-1].seconds_left == 0
        Sweep(study, folder, child, room=ROOM).run()  # nothing is left
        for starts in folder.glob("runs/*/starts.txt"):
            assert starts.read_text().split() == ["start"]

    def test_new_settings_are_added_to_old_results(self, tmp_path, child):
        Sweep(make_study(tmp_path), tmp_path / "out", child, room=ROOM).run()
        wider = make_study(tmp_path, {"num_views": [2, 4, 8], "seed": [0, 1]})
        results = Sweep(wider, tmp_path / "out", child, room=ROOM).run()
        assert len(results) == 6
        assert len(list((tmp_path / "out").glob("runs/*/starts.txt"))) == 6

    def test_settings_that_begin_to_vary_are_known_of_old_results(self, tmp_path, child):
        narrow = make_study(tmp_path, {"num_views": [2], "seed": [0]}, projector_dim=8)
        Sweep(narrow, tmp_path / "out", child, room=ROOM).run()
        grid = {"num_views": [2], "projector_dim": [8, 16], "seed": [0]}
        results = Sweep(make_study(tmp_path, grid), tmp_path / "out", child, room=ROOM).run()
        settings = [dict(result.settings) for result in results]
        assert settings == [{"num_views": 2, "projector_dim": d, "seed": 0} for d in (8, 16)]
        assert len(list((tmp_path / "out").glob("runs/*/starts.txt"))) == 2

    def test_a_run_in_flight_is_found_again_by_its_key(self, tmp_path, child):
        narrow = make_study(tmp_path, {"seed": [0]}, projector_dim=8, seconds=0.2)
        Sweep(narrow, tmp_path / "out", child, room=ROOM, max_seconds=1.0).run()
        (counted,) = (tmp_path / "out").glob("runs/*/count.txt")
        assert 0 < int(counted.read_text()) < 10
        grid = {"projector_dim": [8], "seed": [0]}
        wider = make_study(tmp_path, grid, seconds=0.2)
        assert wider.runs[0].name != narrow.runs[0].name
        Sweep(wider, tmp_path / "out", child, room=ROOM).run()
        (steps,) = (tmp_path / "out").glob("runs/*/all.txt")
        assert steps.read_text().split() == [str(s) for s in range(10)]

    def test_runs_without_the_metric_have_failed(self, tmp_path, child):
        study = replace(make_study(tmp_path), metric="knnn")
        with pytest.raises(SweepError, match=r"'knnn'.* Did you mean.*knn"):
            Sweep(study, tmp_path / "out", child, room=ROOM).run()

    def test_failures_are_recorded_and_not_repeated_forever(self, tmp_path, child):
        grid = {"behaviour": ["good", "broken", "broken once", "wrong"], "seed": [0]}
        study = make_study(tmp_path, grid)
        sweep = Sweep(study, tmp_path / "out", child, room=Room(1, 1))
        good, broken, once, wrong = sweep.run()
        assert good.finished
        assert once.finished
        assert once.attempts == 2
        assert not broken.finished
        assert broken.attempts == 2
        assert broken.error == "out of memory\nout of memory"  # the log of both
        assert not wrong.finished
        starts = {
            run.settings["behaviour"]: (tmp_path / "out" / "runs" / run.name / "starts.txt")
            for run in study.runs
        }
        assert len(starts["wrong"].read_text().split()) == 1
        assert sweep.num_left == 0
        sweep.run()
        assert len(starts["broken"].read_text().split()) == 2
        again = Sweep(study, tmp_path / "out", child, room=ROOM, retry_failed=True)
        again.run()
        assert again.num_left == 0
        assert len(starts["broken"].read_text().split()) == 4
        assert len(starts["good"].read_text().split()) == 1

    def test_ends_where_all_runs_fail(self, tmp_path, child):
        grid = {"behaviour": ["broken"], "seed": list(range(9))}
        sweep = Sweep(make_study(tmp_path, grid), tmp_path / "out", child, room=ROOM)
        with pytest.raises(SweepError, match=r"must not all fail; 3 did.*out of memory"):
            sweep.run()
        assert len(read_results(tmp_path / "out")) <= 4

    def test_stops_when_its_time_is_over_and_goes_on(self, tmp_path, child):
        study = make_study(tmp_path, seconds=0.15)
        sweep = Sweep(study, tmp_path / "out", child, room=ROOM, max_seconds=1.0)
        assert sweep.run() == []
        assert sweep.num_left == 4
        counts = list((tmp_path / "out").glob("runs/*/count.txt"))
        assert len(counts) == 2
        results = Sweep(study, tmp_path / "out", child, room=ROOM).run()
        assert len(results) == 4
        for steps in (tmp_path / "out").glob("runs/*/all.txt"):
            assert steps.read_text().split() == [str(s) for s in range(10)]  # none twice

    @pytest.mark.parametrize(
        "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
    )
    def test_survives_being_killed(self, tmp_path, child, number):
        study = make_study(tmp_path, seconds=0.1)
        program = (
            "import sys; from pathlib import Path\n"
            "from ssl_views.sweep.runner import Sweep\n"
            "from ssl_views.sweep.room import Room\n"
            "from ssl_views.sweep.study import Study\n"
            f"study = Study.read({str(tmp_path / 'study.yaml')!r})\n"
            f"Sweep(study, Path({str(tmp_path / 'out')!r}), {child!r}, room=Room(2, 1)).run()"
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        counts = wait_for(lambda: list((tmp_path / "out").glob("runs/*/count.txt")))
        assert counts
        process.send_signal(number)
        process.wait(30)
        running = tmp_path / "out" / "runs"
        wait_for(lambda: not alive(running))  # children end with their parent
        before = sum(int(path.read_text()) for path in counts)
        assert before >= 1
        results = Sweep(study, tmp_path / "out", child, room=ROOM).run()
        assert len(results) == 4
        for steps in (tmp_path / "out").glob("runs/*/all.txt"):
            assert steps.read_text().split() == [str(s) for s in range(10)]

    def test_one_at_a_time_works_in_a_folder(self, tmp_path, child):
        (tmp_path / "out").mkdir()
        with locked(tmp_path / "out" / ".lock", what="sweep"):
            sweep = Sweep(make_study(tmp_path), tmp_path / "out", child, room=ROOM)
            with pytest.raises(RuntimeError, match="one sweep at a time"):
                sweep.run()
        sweep.run()

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [("max_attempts", 0, "max_attempts must be"), ("max_seconds", 0, "max_seconds must be")],
    )
    def test_refuses_limits_that_are_none(self, tmp_path, child, name, value, message):
        with pytest.raises(ValueError, match=message):
            Sweep(make_study(tmp_path), tmp_path, child, room=ROOM, **{name: value})


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def alive(folder):
    """Processes whose command names a folder below this one."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if str(folder) in line]


class TestRoom:
    def test_shares_the_cores(self, monkeypatch):
        monkeypatch.setattr("ssl_views.sweep.room._usable_cores", lambda: 8)
        monkeypatch.setattr("ssl_views.sweep.room._visible_gpus", list)
        assert Room.of_this_machine() == Room(8, 1)
        assert Room.of_this_machine(3) == Room(3, 2)
        assert Room(3, 2).environment(1) == {"OMP_NUM_THREADS": "2"}

    def test_spreads_over_gpus(self, monkeypatch):
        monkeypatch.setattr("ssl_views.sweep.room._usable_cores", lambda: 16)
        monkeypatch.setattr("ssl_views.sweep.room._visible_gpus", lambda: ["3", "5"])
        assert Room.of_this_machine().jobs == 2
        room = Room.of_this_machine(4)
        devices = [room.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
        assert devices == ["3", "5", "3", "5"]

    def test_has_none_without_memory(self, monkeypatch):
        class Memory:
            available = 1e9

        monkeypatch.setattr("psutil.virtual_memory", Memory)
        room = Room(4, 1)
        assert room.free([]) == 0  # one is always started
        assert room.free([0]) is None
        Memory.available = 1e12
        assert room.free([0]) == 1
        assert room.free([0, 1, 2, 3]) is None

    def test_refuses_none(self):
        with pytest.raises(ValueError, match="jobs must be at least 1"):
            Room.of_this_machine(0)


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
        with pytest.raises(ValueError, match="there is no file"):
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
        found = with_steady_times([slow, result(4, 0, [0.1, 0.2, 0.3], (30, 60, 90))])
        rate = np.median([20, 50, 20, 30, 30, 30])
        assert all(run.curve["train_seconds"] == [rate, 2 * rate, 3 * rate] for run in found)

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


TINY = {
    "about": "Two views or four?",
    "base": {
        "dataset": "digits", "backbone": "test_resnet", "max_steps": 6, "projector_dim": 8,
        "per_device_train_batch_size": 64, "lr_scheduler_type": "constant", "eval_steps": 3,
        "before_and_after": False, "probe_images": 200, "probe_test": True, "eval_images": 64,
        "save_strategy": "steps", "save_steps": 1, "fraction": 0.3,
    },
    "evaluate": {"report": False, "feature_cache": "none"},
    "reference": {"num_views": 4},
    "grid": {"num_views": [2, 4], "seed": [0]},
}  # fmt: skip


@pytest.mark.slow
class TestCommand:
    def sweep(self, tmp_path, *words):
        study = write_study(tmp_path / "tiny.yaml", **TINY)
        return [sys.executable, "-m", "ssl_views", "sweep", str(study), *words]

    def test_ends_with_tables_and_a_picture(self, tmp_path):
        out = tmp_path / "out"
        words = ["--output_dir", str(out)]
        found = subprocess.run(
            self.sweep(tmp_path, *words), capture_output=True, text=True, timeout=300, check=False
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "2/2 num_views=" in found.stdout
        assert "| num_views 4 (reference) | 1 " in found.stdout
        assert "linear probe, test split" in found.stdout
        results = read_results(out)
        assert [r.num_images for r in results] == [431, 431]
        assert all(r.curve["step"] == [3, 6] and len(r.curve["knn"]) == 2 for r in results)
        stored = json.loads((out / "study.json").read_text())
        assert stored["every_point_counts"]
        assert (out / "study.png").is_file()
        assert "Two views or four?" in (out / "study.md").read_text()
        assert not list(out.glob("runs/*/checkpoint-*"))  # of runs that have ended
        assert all(r.evaluation["linear_probe"] > 0.3 for r in results)

    def test_a_torn_file_costs_no_run(self, tmp_path):
        out = tmp_path / "out"
        words = self.sweep(tmp_path, "--output_dir", str(out), "--jobs", "1")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        wait_for(lambda: list(out.glob("runs/*/checkpoint-*")), 120)
        process.kill()
        process.wait()
        (folder,) = out.glob("runs/*")
        wait_for(lambda: not alive(out / "runs"), 120)
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "trainer_state.json").write_text("{")
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True, timeout=300)
        assert [result.finished for result in read_results(out)] == [True, True]

    def test_a_run_ends_as_if_the_sweep_had_not_been_killed(self, tmp_path):
        weights = {}
        for name, killed in (("whole", False), ("killed", True)):
            out = tmp_path / name
            command = self.sweep(tmp_path, "--output_dir", str(out), "--jobs", "1")
            if killed:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                wait_for(lambda: list((tmp_path / "killed").glob("runs/*/checkpoint-*")), 120)
                process.kill()
                process.wait()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=300)
            weights[name] = {
                path.parent.name: path.read_bytes() for path in out.glob("runs/*/model.safetensors")
            }
        assert len(weights["whole"]) == 2
        assert weights["whole"] == weights["killed"]

    def test_a_run_ends_when_its_sweep_is_gone(self, tmp_path):
        with locked(tmp_path / ".lock", what="run"):  # which it waits for, minutes if need be
            words = [sys.executable, "-m", "ssl_views.cli.study_run", str(tmp_path)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(15)
            process.stdin.close()
            assert process.wait(30) == -signal.SIGTERM

    def test_wrong_flags_are_told_before_anything_runs(self, tmp_path, capsys):
        content = {**TINY, "base": {**TINY["base"], "num_vews": 3}}
        study = write_study(tmp_path / "wrong.yaml", **content)
        assert main(["sweep", str(study), "--output_dir", str(tmp_path / "out")]) == 2
        assert "num_views" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_goes_on_after_sigterm(self, tmp_path):
        command = self.sweep(tmp_path, "--output_dir", str(tmp_path / "out"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: list((tmp_path / "out").glob("runs/*/log.txt")), 120)
        os.kill(process.pid, signal.SIGTERM)
        text = process.communicate(timeout=120)[0]
        assert process.returncode == 75
        assert "2 runs are left" in text
