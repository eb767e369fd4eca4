"""Sweeps: running the runs of a study through kills and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from study_cases import make_study, write_study

from ssl_views.cli import main
from ssl_views.sweep.locks import locked
from ssl_views.sweep.results import read_results
from ssl_views.sweep.room import Room
from ssl_views.sweep.runner import Sweep, SweepError

ROOM = Room(jobs=2, threads=1)

CHILD = """
import fcntl, json, os, signal, sys, threading, time
from pathlib import Path
import yaml

folder = Path(sys.argv[1])
flags = yaml.safe_load((folder / "pretrain.yaml").read_text())

def end_with_parent():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_parent, daemon=True).start()
lock = (folder / ".lock").open("a")
fcntl.flock(lock, fcntl.LOCK_EX)  # a killed sweep may have left a process here
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
(folder / "starts.txt").open("a").write("start\\n")
behaviour = flags.get("behaviour", "good")
if behaviour == "wrong" or behaviour == "no disk" and not (folder.parents[2] / "disk").exists():
    sys.exit(2)
if behaviour == "broken":
    print("out of memory"); sys.exit(1)
if behaviour == "broken once" and len((folder / "starts.txt").read_text().split()) == 1:
    sys.exit(1)
count = folder / "count.txt"
for step in range(int(count.read_text()) if count.exists() else 0, 10):
    if stopped:
        (folder / "stopped.txt").touch()  # the checkpoint
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
        narrow = make_study(tmp_path, {"seed": [0]}, projector_dim=8, seconds=0.3)
        Sweep(narrow, tmp_path / "out", child, room=ROOM, max_seconds=2.0).run()
        (counted,) = (tmp_path / "out").glob("runs/*/count.txt")
        assert 0 < int(counted.read_text()) < 10
        grid = {"projector_dim": [8], "seed": [0]}
        wider = make_study(tmp_path, grid, seconds=0.3)
        assert wider.runs[0].name != narrow.runs[0].name
        Sweep(wider, tmp_path / "out", child, room=ROOM).run()
        (steps,) = (tmp_path / "out").glob("runs/*/all.txt")
        assert steps.read_text().split() == [str(s) for s in range(10)]

    def test_runs_without_the_metric_have_failed(self, tmp_path, child):
        study = replace(make_study(tmp_path), metric="knnn")
        with pytest.raises(SweepError, match=r"'knnn'.* Did you mean.*It has knn: set"):
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

    def test_what_kept_all_runs_from_working_may_be_mended(self, tmp_path, child):
        grid = {"behaviour": ["no disk"], "seed": list(range(4))}
        sweep = Sweep(make_study(tmp_path, grid), tmp_path / "out", child, room=ROOM)
        with pytest.raises(SweepError, match="must not all fail; 3 did"):
            sweep.run()
        (tmp_path / "disk").touch()
        assert [result.finished for result in sweep.run()] == [True] * 4

    def test_failed_runs_that_wait_to_be_repeated_are_left(self, tmp_path, child):
        grid = {"behaviour": ["good", "no disk"], "seed": [0]}
        study, out = make_study(tmp_path, grid), tmp_path / "out"
        first = Sweep(study, out, child, room=ROOM)
        first.run()
        assert first.num_left == 0
        again = Sweep(study, out, child, room=ROOM, retry_failed=True, max_seconds=1e-9)
        again.run()
        assert again.num_left == 1

    def test_stops_when_its_time_is_over_and_goes_on(self, tmp_path, child):
        study = make_study(tmp_path, seconds=0.3)
        sweep = Sweep(study, tmp_path / "out", child, room=ROOM, max_seconds=2.0)
        assert sweep.run() == []
        assert sweep.num_left == 4
        counts = list((tmp_path / "out").glob("runs/*/count.txt"))
        assert len(counts) == 2
        assert all((count.parent / "stopped.txt").exists() for count in counts)
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
        process.send_signal(number)
        process.wait(30)
        running = tmp_path / "out" / "runs"
        wait_for(lambda: not alive(running), 30)  # children end with their parent
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


def wait_for(condition, seconds=120):  # the imports of a fresh environment may take 30
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not happen within {seconds} seconds")


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


TINY = {
    "about": "Two views or four?",
    "base": {
        "dataset": "digits", "backbone": "test_resnet", "max_steps": 6, "projector_dim": 8,
        "per_device_train_batch_size": 64, "lr_scheduler_type": "constant", "eval_steps": 3,
        "before_and_after": False, "probe_images": 200, "probe_test": True, "eval_images": 64,
        "save_strategy": "steps", "save_steps": 1, "fraction": 0.3,
    },
    "reference": {"num_views": 4},
    "grid": {"num_views": [2, 4], "seed": [0]},
}  # fmt: skip
ONE_RUN = {"grid": {"num_views": [2], "seed": [0]}, "reference": {}}


@pytest.mark.slow
class TestCommand:
    def sweep(self, tmp_path, *words, **more):
        study = write_study(tmp_path / "tiny.yaml", **{**TINY, **more})
        return [sys.executable, "-m", "ssl_views", "sweep", str(study), *words]

    def test_ends_with_tables_and_a_picture(self, tmp_path):
        out = tmp_path / "out"
        evaluate = {"report": False, "feature_cache": "none"}
        words = self.sweep(tmp_path, "--output_dir", str(out), evaluate=evaluate)
        found = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
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
        words = self.sweep(tmp_path, "--output_dir", str(out), **ONE_RUN)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        wait_for(lambda: list(out.glob("runs/*/checkpoint-*")))
        process.kill()
        process.wait()
        (folder,) = out.glob("runs/*")
        wait_for(lambda: not alive(out / "runs"))
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "trainer_state.json").write_text("{")
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True, timeout=300)
        assert [result.finished for result in read_results(out)] == [True]

    def test_a_run_ends_as_if_the_sweep_had_not_been_killed(self, tmp_path):
        weights = {}
        for name, killed in (("whole", False), ("killed", True)):
            out = tmp_path / name
            command = self.sweep(tmp_path, "--output_dir", str(out), **ONE_RUN)
            if killed:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                wait_for(lambda: list((tmp_path / "killed").glob("runs/*/checkpoint-*")))
                process.kill()
                process.wait()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=300)
            weights[name] = {
                path.parent.name: path.read_bytes() for path in out.glob("runs/*/model.safetensors")
            }
        assert len(weights["whole"]) == 1
        assert weights["whole"] == weights["killed"]

    def test_a_run_ends_when_its_sweep_is_gone(self, tmp_path):
        with locked(tmp_path / ".lock", what="run"):  # which it waits for, minutes if need be
            words = [sys.executable, "-m", "ssl_views.cli.study_run", str(tmp_path)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(15)
            process.stdin.close()
            assert process.wait(30) == -signal.SIGTERM

    def test_failed_runs_are_an_exit_code(self, tmp_path, capsys):
        wrong = {"num_views": [2], "seed": [0], "split": ["nowhere"]}
        study = write_study(tmp_path / "s.yaml", **{**TINY, "grid": wrong, "reference": {}})
        with pytest.raises(SystemExit) as ended:
            main(["sweep", str(study), "--output_dir", str(tmp_path / "out")])
        assert ended.value.code == 1
        assert "1 of 1 runs have failed; --retry_failed" in capsys.readouterr().out

    def test_wrong_flags_are_told_before_anything_runs(self, tmp_path, capsys):
        content = {**TINY, "base": {**TINY["base"], "num_vews": 3}}
        study = write_study(tmp_path / "wrong.yaml", **content)
        assert main(["sweep", str(study), "--output_dir", str(tmp_path / "out")]) == 2
        assert "num_views" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_goes_on_after_sigterm(self, tmp_path):
        command = self.sweep(tmp_path, "--output_dir", str(tmp_path / "out"))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_for(lambda: list((tmp_path / "out").glob("runs/*/log.txt")))
        os.kill(process.pid, signal.SIGTERM)
        text = process.communicate(timeout=120)[0]
        assert process.returncode == 75
        assert "2 runs are left" in text
