"""What a run folder says of a run, and which runs belong together."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
from run_folders import (
    log_of,
    record_of,
    state_of,
    write_checkpoint,
    write_json,
    write_run,
)

from ssl_views.evaluation.history import RunHistory, forget_results, write_whole
from ssl_views.evaluation.run_groups import group_runs

FOUR = [0.3, 0.4, 0.5, 0.55]


class TestReading:
    def test_a_finished_run(self, tmp_path):
        evaluation = {"knn": 0.6}
        run = RunHistory.read(write_run(tmp_path, FOUR, record_of(7), evaluation=evaluation))
        assert run.finished
        assert run.seed == 7
        assert run.record == record_of(7)
        assert run.evaluation == evaluation
        assert run.names == ("eval_knn", "loss")
        series = run.series("eval_knn")
        assert series.steps == (100, 200, 300, 400)
        assert series.epochs == (1, 2, 3, 4)
        assert series.images_seen == (6400, 12800, 19200, 25600)
        assert series.seconds == (200, 400, 600, 800)
        assert series.values == tuple(FOUR)
        assert run.total("train_seconds") == 800

    def test_the_best_weights_are_those_of_an_earlier_step(self, tmp_path):
        folder = write_run(tmp_path, FOUR, record_of(7))
        state = {**state_of(log_of(FOUR)), "best_global_step": 200}
        write_json(folder / "trainer_state.json", state)
        assert RunHistory.read(folder).weights_step is None
        write_json(folder / "training_args.json", {"load_best_model_at_end": True})
        assert RunHistory.read(folder).weights_step == 200
        (folder / "MANIFEST.json").write_text("{}")  # a checkpoint has the weights of its step
        assert RunHistory.read(folder).weights_step is None

    def test_a_run_that_goes_on_has_checkpoints_only(self, tmp_path):
        write_json(tmp_path / "run.json", record_of(3))
        write_checkpoint(tmp_path, FOUR[:1], record_of(3), max_steps=1000)
        write_checkpoint(tmp_path, [0.5] * 10, record_of(3), max_steps=1000)  # 1000 after 100
        write_checkpoint(tmp_path, FOUR[:2], record_of(3), max_steps=1000)
        run = RunHistory.read(tmp_path)
        assert run.state["global_step"] == 1000
        (tmp_path / "checkpoint-1000" / "trainer_state.json").unlink()
        run = RunHistory.read(tmp_path)
        assert run.state["global_step"] == 200
        assert not run.finished
        assert run.evaluation is None

    def test_a_killed_run_leaves_staging_and_what_was_set_aside(self, tmp_path):
        write_checkpoint(tmp_path, FOUR[:2], record_of(3), max_steps=400)
        for name in ("_staging", "_unusable-checkpoint-300"):
            write_json(tmp_path / name / "trainer_state.json", state_of(log_of(FOUR[:3])))
        run = RunHistory.read(tmp_path)
        assert run.series("eval_knn").steps == (100, 200)
        assert run.record == record_of(3)  # of the manifest

    def test_a_run_that_was_extended_and_killed_is_as_new_as_its_checkpoint(self, tmp_path):
        write_run(tmp_path, FOUR[:2], record_of(), evaluation={"knn": 0.6})
        write_checkpoint(tmp_path, FOUR[:3], record_of(), max_steps=400)
        run = RunHistory.read(tmp_path)
        assert run.state["global_step"] == 300
        assert not run.finished
        assert run.evaluation is None
        write_run(tmp_path, FOUR, record_of())
        assert RunHistory.read(tmp_path).finished
        assert RunHistory.read(tmp_path).evaluation == {"knn": 0.6}

    def test_a_record_is_that_of_the_state(self, tmp_path):
        write_json(tmp_path / "run.json", record_of(1))
        write_checkpoint(tmp_path, FOUR[:2], record_of(2))
        place = write_checkpoint(tmp_path, FOUR[:3], record_of(3))
        assert RunHistory.read(tmp_path).seed == 3
        (place / "MANIFEST.json").unlink()
        assert RunHistory.read(tmp_path).seed == 1
        (tmp_path / "run.json").unlink()
        assert RunHistory.read(tmp_path).seed == 2
        write_run(tmp_path, FOUR, record_of(4))
        assert RunHistory.read(tmp_path).seed == 4

    def test_weights_without_a_state_were_evaluated_at_the_newest_checkpoint(self, tmp_path):
        write_checkpoint(tmp_path, FOUR, record_of())
        write_json(tmp_path / "evaluation.json", {"knn": 0.6})
        assert RunHistory.read(tmp_path).evaluation == {"knn": 0.6}

    def test_a_checkpoint_is_a_run_up_to_its_step(self, tmp_path):
        place = write_checkpoint(tmp_path, FOUR[:2], record_of(5), max_steps=400)
        write_run(tmp_path, FOUR, record_of(5))
        run = RunHistory.read(place)
        assert run.seed == 5
        assert run.series("eval_knn").steps == (100, 200)

    def test_a_run_of_another_program_has_no_record(self, tmp_path):
        write_json(tmp_path / "checkpoint-400" / "trainer_state.json", state_of(log_of(FOUR)))
        run = RunHistory.read(str(tmp_path))
        assert run.record is None
        assert run.seed is None
        assert run.finished

    def test_a_resumed_run_may_have_a_step_twice(self, tmp_path):
        log = [*log_of(FOUR), *log_of([0.41, 0.51], steps=[200, 300])]
        write_json(tmp_path / "trainer_state.json", state_of(log))
        series = RunHistory.read(tmp_path).series("eval_knn")
        assert series.steps == (100, 200, 300, 400)
        assert series.values == (0.3, 0.41, 0.51, 0.55)

    def test_what_is_no_number_is_left_out(self, tmp_path):
        values = [0.3, math.nan, math.inf, None, "0.4", True, 0.5]
        write_run(tmp_path, values)
        series = RunHistory.read(tmp_path).series("eval_knn")
        assert series.steps == (100, 700)
        assert series.values == (0.3, 0.5)
        write_run(tmp_path, [math.nan])
        assert RunHistory.read(tmp_path).names == ("loss",)

    def test_old_logs_know_neither_images_nor_time(self, tmp_path):
        log = [{"step": 1, "epoch": 0.5, "eval_knn": 0.3}]
        write_json(tmp_path / "trainer_state.json", state_of(log))
        run = RunHistory.read(tmp_path)
        series = run.series("eval_knn")
        assert series.epochs == (0.5,)
        assert math.isnan(series.images_seen[0])
        assert math.isnan(series.seconds[0])
        assert run.total("images_seen") is None

    def test_an_unknown_series_gets_a_sentence(self, tmp_path):
        run = RunHistory.read(write_run(tmp_path, FOUR))
        with pytest.raises(ValueError, match=r"has no 'eval_knm'\. Did you mean 'eval_knn'"):
            run.series("eval_knm")


class TestWriting:
    def test_a_new_run_forgets_what_described_the_last(self, tmp_path):
        forget_results(tmp_path / "none")
        old = ["trainer_state.json", "run.json", "evaluation.json", "report.html", "summary.json"]
        old += ["hardware.json", "evaluation_mean_of_16_views.json", "report_mean_of_16_views.html"]
        old += [f"features/{'0a' * 16}.safetensors"]
        kept = ["config.json", "model.safetensors", "report_notes.html", "evaluation_old.json"]
        kept += [
            "old_hardware.json",
            "report_mean_of_my_views.html",
            "old_run.json",
            "summary.json.bak",
            "report.json",
        ]
        kept += ["checkpoint-4/trainer_state.json", "features/mine.safetensors", "evaluation.html"]
        kept += [f"features/{'0a' * 15}.safetensors", f"features/{'0A' * 16}.safetensors"]
        for name in old + kept:
            write_json(tmp_path / name, {})
        forget_results(tmp_path)
        left = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
        assert sorted(left) == sorted(kept)
        forget_results(tmp_path)

    def test_a_file_is_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "report.html"
        write_whole(path, "première")
        assert path.read_text(encoding="utf-8") == "première"

        def full(self, text, **kwargs):
            with self.open("w") as file:
                file.write(text[:2])
            raise OSError("no space left")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space left"):
            write_whole(path, "second")
        assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
        assert path.read_text(encoding="utf-8") == "première"


class TestDamage:
    def test_there_is_no_run(self, tmp_path):
        with pytest.raises(ValueError, match="there is no folder"):
            RunHistory.read(tmp_path / "none")
        (tmp_path / "file").write_text("x")
        with pytest.raises(ValueError, match="there is no folder"):
            RunHistory.read(tmp_path / "file")
        write_json(tmp_path / "run.json", record_of())
        (tmp_path / "checkpoint-1").mkdir()
        with pytest.raises(ValueError, match=r"must hold trainer_state\.json"):
            RunHistory.read(tmp_path)

    @pytest.mark.parametrize(
        "name", ["trainer_state.json", "run.json", "hardware.json", "evaluation.json"]
    )
    @pytest.mark.parametrize(
        "content", [b"", b'{"step": ', b"[1]", b"\xff\xfe{}"], ids=["empty", "cut", "list", "utf"]
    )
    def test_a_damaged_file_is_named(self, tmp_path, name, content):
        write_run(tmp_path, FOUR, record_of())
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' cannot be read"):
            RunHistory.read(tmp_path)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"global_step": 1}, "log_history is no list"),
            ({"global_step": 1, "log_history": [1]}, "log_history is no list"),
            ({"global_step": 1, "log_history": [{"loss": 1}]}, "has no step"),
            ({"log_history": []}, "no global_step"),
        ],
    )
    def test_a_state_that_is_none(self, tmp_path, state, message):
        write_json(tmp_path / "trainer_state.json", state)
        with pytest.raises(ValueError, match=message):
            RunHistory.read(tmp_path)

    def test_a_damaged_manifest_is_no_record(self, tmp_path):
        place = write_checkpoint(tmp_path, FOUR, record_of())
        (place / "MANIFEST.json").write_text("{")
        assert RunHistory.read(tmp_path).record is None


def groups_of(tmp_path, records, names=None):
    names = names or [f"run{place}" for place in range(len(records))]
    for name, record in zip(names, records, strict=True):
        write_run(tmp_path / name, FOUR, record)
    return group_runs([RunHistory.read(tmp_path / name) for name in names])


def names_of(*args):
    return [group.name for group in groups_of(*args)]


class TestGroups:
    def test_runs_that_differ_in_the_seed_are_one_group(self, tmp_path):
        small = {"projector_dim": 64, "projector_hidden_dims": [64]}
        records = [record_of(s, model=m) for s in (0, 1, 2) for m in ({}, small)]
        groups = groups_of(tmp_path, records)
        assert [group.name for group in groups] == ["projector_dim=256", "projector_dim=64"]
        assert [[run.seed for run in group.runs] for group in groups] == [[0, 1, 2]] * 2

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"model": {"loss": "vicreg", "projector_dim": 64}}, "loss=vicreg, projector_dim=64"),
            ({"model": {"projector_hidden_dims": []}}, "projector_hidden_dims=[]"),
            ({"model": {"model_args": {"patch_size": 4}}}, "patch_size=4"),
            ({"model": {"num_views": 2}, "views": {"num_views": 2}}, "num_views=2"),
            ({"model": {"recipe": "vicreg"}, "views": {"crop_scale": [0, 1]}}, "recipe=vicreg"),
            ({"views": {"crop_scale": [0.5, 1.0]}}, "crop_scale=[0.5, 1.0]"),
            (
                {"images_per_step": 128, "training": {"gradient_accumulation_steps": 2}},
                "gradient_accumulation_steps=2",
            ),
            ({"training": {"learning_rate": 3e-05}, "images_per_step": 128},
             "images_per_step=128, learning_rate=3e-05"),
            ({"training": {"loss": 1}, "model": {"loss": "kernel"}},
             "model.loss=kernel, training.loss=1"),
            ({"data": {"images": 10, "sha256": "b"}}, "images=10"),
            ({"model": {"loss": "x" * 40}}, f"loss={'x' * 21}..."),
            ({"model": {"loss": "a\n\x1b[31m"}}, r"loss=a\n\x1b[31m"),
        ],
    )  # fmt: skip
    def test_names_say_what_differs(self, tmp_path, changes, name):
        first, second = names_of(tmp_path, [record_of(), record_of(1, **changes)])
        assert second == name
        assert first != second

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": {"loss": "a", "num_views": 2, "projector_dim": 9, "upscale": 2}},
            {"data": {"sha256": "b"}},
            {"model": {"a" * 30: "b" * 30, "c" * 30: "d" * 30}},
        ],
        ids=["too many", "only the images", "too long"],
    )
    def test_otherwise_the_folders_name_a_group(self, tmp_path, changes):
        records = [record_of(), record_of(1), record_of(0, **changes)]
        assert names_of(tmp_path, records) == ["run0 and 1 more", "run2"]

    def test_one_group_is_named_by_its_folders(self, tmp_path):
        assert names_of(tmp_path, [record_of()]) == ["run0"]
        assert names_of(tmp_path, [record_of(s) for s in range(3)]) == ["run0 and 2 more"]

    def test_runs_without_a_record_stay_alone(self, tmp_path):
        records = [None, record_of(), record_of(0, model={"loss": "kernel"}), None]
        assert names_of(tmp_path, records) == ["run0", "loss=barlow_twins", "loss=kernel", "run3"]

    def test_folders_of_one_name_are_told_apart(self, tmp_path):
        names = names_of(tmp_path, [None, None], ["a/run", "b/run"])
        assert len(set(names)) == 2
        assert [name[-6:] for name in names] == ["/a/run", "/b/run"]
        assert max(map(len, names)) <= 54

    @pytest.mark.parametrize(
        "folders",
        [
            [f"a/{'n' * 60}/run", f"b/{'n' * 60}/run"],
            ["a" + "n" * 60, "b" + "n" * 60],
            ["\n", r"\n"],
        ],
        ids=["path", "name", "escapes"],
    )
    def test_folders_that_look_the_same_are_numbered(self, tmp_path, folders):
        first, second = names_of(tmp_path, [None, None], folders)
        assert first.endswith(" (1)")
        assert second.endswith(" (2)")

    def test_long_and_hostile_folder_names(self, tmp_path):
        long, hostile = names_of(tmp_path, [None, None], ["n" * 200, "a\n\x1b[2J$_{"])
        assert long == "..." + "n" * 51
        assert hostile == r"a\n\x1b[2J$_{"

    def test_a_run_comes_once(self, tmp_path):
        write_run(tmp_path, FOUR)
        runs = [RunHistory.read(tmp_path), RunHistory.read(tmp_path / ".." / tmp_path.name)]
        with pytest.raises(ValueError, match="every run must come once"):
            group_runs(runs)

    def test_grouping_changes_no_record(self, tmp_path):
        record = record_of()
        before = deepcopy(record)
        run = RunHistory.read(write_run(tmp_path, FOUR, record))
        group_runs([run])
        assert run.record == before
