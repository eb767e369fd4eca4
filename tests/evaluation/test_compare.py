"""Runs beside each other: the numbers, the table and the picture."""

import json
import math
import sys

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image
from run_folders import evaluation_of, record_of, write_checkpoint, write_run
from scipy import stats

from ssl_views.cli import main
from ssl_views.cli.before_and_after import BeforeAndAfter
from ssl_views.data.sources import load_images
from ssl_views.evaluation import comparison_picture
from ssl_views.evaluation.history import RunHistory
from ssl_views.evaluation.picture_style import png_of
from ssl_views.evaluation.run_comparison import compare_runs

SMALL = {"projector_dim": 64, "projector_hidden_dims": [64]}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch):
    """They are drawn in a fraction of the time."""
    monkeypatch.setattr(comparison_picture, "png_of", lambda figure: png_of(figure, dpi=50))


def compared(*folders, metric="knn"):
    return compare_runs([RunHistory.read(folder) for folder in folders], metric)


def run(capsys, *words):
    code = main(["compare", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def is_picture(path, num_panels=3):
    """Whether a PNG is not blank, and high enough for its panels."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 100 * num_panels
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def three_seeds(tmp_path, **log):
    """Two groups of three seeds, the second twice as fast."""
    folders = []
    for name, model, speed in (("large", {}, 2.0), ("small", SMALL, 1.0)):
        for seed in range(3):
            values = [0.3 + 0.01 * seed, 0.5 + 0.02 * seed, 0.5 + 0.02 * seed]
            record = record_of(seed, model=model)
            folder = write_run(
                tmp_path / f"{name}{seed}", values, record, seconds_per_step=speed, **log
            )
            folders.append(folder)
    return folders


class TestNumbers:
    def test_an_interval_is_students(self, tmp_path):
        found = compared(*three_seeds(tmp_path))
        large, small = found.groups
        values = [0.5, 0.52, 0.54]
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
        assert large.metrics["knn"] == pytest.approx((0.52, 0.52 - half, 0.52 + half, 3))
        assert large.curve.intervals[-1] == large.metrics["knn"]
        assert large.best == pytest.approx(0.52)
        assert (large.epochs, large.images_seen) == (3, 300 * 64)
        assert (large.train_seconds, small.train_seconds) == (600, 300)
        # The target, 0.52, is reached at the second evaluation of three.
        assert (large.seconds_to_target, small.seconds_to_target) == (400, 200)
        assert (large.times_faster, small.times_faster) == (1, 2)
        assert found.target == pytest.approx(0.52)
        assert not found.from_evaluation

    def test_a_target_that_is_never_reached(self, tmp_path):
        first = write_run(tmp_path / "a", [0.2, 0.6], record_of())
        second = write_run(tmp_path / "b", [0.2, 0.59], record_of(model=SMALL))
        assert compared(first, second).groups[1].times_faster is None
        assert compared(second, first).groups[1].times_faster == 1

    def test_of_a_loss_small_is_good(self, tmp_path):
        first = write_run(tmp_path / "a", [9, 4, 5], record_of(), name="eval_loss")
        second = write_run(tmp_path / "b", [5, 7, 6], record_of(model=SMALL), name="eval_loss")
        found = compared(first, second, metric="loss")
        assert [group.best for group in found.groups] == [4, 5]
        assert found.groups[1].times_faster == 2  # 5 at step 100 and not 200

    @pytest.mark.parametrize(
        ("metric", "best"), [("orthogonality", 4), ("alpha", 4), ("alpha_r_squared", 9)]
    )
    def test_what_is_best(self, tmp_path, metric, best):
        folder = write_run(tmp_path / "a", [9, 4, 5], name=f"eval_{metric}")
        assert compared(folder, metric=metric).groups[0].best == best

    def test_evaluations_of_one_protocol_give_the_last_values(self, tmp_path):
        folders = three_seeds(tmp_path)
        for place, folder in enumerate(folders):
            content = evaluation_of(0.6 + 0.01 * place, 0.7)
            (folder / "evaluation.json").write_text(json.dumps(content))
        found = compared(*folders)
        assert found.from_evaluation
        assert "of evaluation.json" in found.notes[0]
        metrics = found.groups[0].metrics
        assert metrics["knn"].mean == pytest.approx(0.61)
        assert metrics["few_labels_0.01"].mean == pytest.approx(0.3)
        assert "linear_probe_weight_decay" not in metrics
        assert found.groups[0].best == pytest.approx(0.52)  # in training
        linear = compared(*folders, metric="linear_probe")
        assert linear.groups[0].best is None
        assert linear.target is None

    def test_one_missing_evaluation_and_training_gives_them(self, tmp_path):
        folders = three_seeds(tmp_path, evaluation=evaluation_of(0.9))
        (folders[4] / "evaluation.json").unlink()
        found = compared(*folders)
        assert not found.from_evaluation
        assert f"no evaluation.json with knn in {folders[4]}" in found.notes[0]
        assert found.groups[0].metrics["knn"].mean == pytest.approx(0.52)
        with pytest.raises(ValueError, match=r"which is of evaluation\.json only"):
            compared(*folders, metric="linear_probe")

    @pytest.mark.parametrize(
        "changes",
        [
            {"k": 5},
            {"num_test": 1000},
            {"precision": "bfloat16"},
            {"compared_views": 2},
            {"split": "all"},
            {"test_split": "x"},
        ],
    )
    def test_protocols_are_not_mixed(self, tmp_path, changes):
        first = write_run(tmp_path / "a", [0.5], record_of(), evaluation=evaluation_of(0.9))
        second = write_run(
            tmp_path / "b", [0.6], record_of(1), evaluation=evaluation_of(0.8, **changes)
        )
        found = compared(first, second)
        assert not found.from_evaluation
        (name,) = changes
        assert f"differs in protocol ({name}: " in found.notes[0]
        assert found.groups[0].metrics["knn"].mean == pytest.approx(0.55)
        with pytest.raises(ValueError, match=f"they differ in {name}: "):
            compared(first, second, metric="linear_probe")

    def test_a_data_set_may_be_spelled_in_many_ways(self, tmp_path):
        folders = [
            write_run(tmp_path / name, [0.5], evaluation=evaluation_of(0.9, dataset=name))
            for name in ("images", "images.d")
        ]
        assert compared(*folders).from_evaluation

    def test_what_a_protocol_says_is_printable(self, tmp_path):
        first = write_run(tmp_path / "a", [0.5], evaluation=evaluation_of(0.9))
        other = evaluation_of(0.9, split="\x1b[2J")
        second = write_run(tmp_path / "b", [0.5], evaluation=other)
        assert r"(split: train, \x1b[2J)" in compared(first, second).notes[0]
        with pytest.raises(ValueError, match=r"differ in split: train, \\x1b\[2J\."):
            compared(first, second, metric="linear_probe")

    def test_without_labels_there_is_no_accuracy(self, tmp_path):
        content = {**evaluation_of(None, None), "few_labels": None}
        folder = write_run(tmp_path / "a", [9.0], None, evaluation=content, name="eval_loss")
        with pytest.raises(ValueError, match=r"got 'knn'\. They have effective_rank, loss"):
            compared(folder)
        assert compared(folder, metric="effective_rank").from_evaluation


class TestSeedsThatDiffer:
    def test_a_mean_is_over_the_steps_that_all_have(self, tmp_path):
        first = write_run(tmp_path / "a", [0.1, 0.2, 0.3], record_of(0), steps=[10, 20, 40])
        second = write_run(tmp_path / "b", [0.2, 0.5], record_of(1), steps=[20, 40])
        (group,) = compared(first, second).groups
        assert group.curve.mean.steps == (20, 40)
        assert group.curve.mean.values == pytest.approx((0.2, 0.4))

    def test_no_shared_step(self, tmp_path, capsys):
        first = write_run(tmp_path / "a", [0.1, 0.2], record_of(0), steps=[10, 20])
        second = write_run(tmp_path / "b", [0.2, 0.4], record_of(1), steps=[15, 25])
        found = compared(first, second)
        assert found.groups[0].curve is None
        assert found.target is None
        assert found.groups[0].metrics["knn"].mean == pytest.approx(0.3)
        assert any("share no step of evaluation" in note for note in found.notes)
        assert run(capsys, first, second)[0] == 0
        assert is_picture("comparison.png")

    def test_nan_is_no_point(self, tmp_path):
        first = write_run(tmp_path / "a", [0.1, math.nan, 0.3], record_of(0))
        second = write_run(tmp_path / "b", [0.2, 0.5, math.nan], record_of(1))
        (group,) = compared(first, second).groups
        assert group.curve.mean.steps == (100,)
        assert group.metrics["knn"].mean == pytest.approx(0.4)

    def test_unfinished_runs_are_left_out_of_means(self, tmp_path, capsys):
        folders = three_seeds(tmp_path)
        write_run(folders[0], [0.1], record_of(0), max_steps=300)
        found = compared(*folders)
        assert found.groups[0].metrics["knn"].n == 2
        assert f"left out of means, as not finished: {folders[0]}" in found.notes
        assert "2 of 3" in run(capsys, *folders)[1]

    def test_one_that_goes_on_beside_a_finished_one(self, tmp_path, capsys):
        finished = write_run(tmp_path / "a", [0.2, 0.3, 0.4], record_of())
        write_checkpoint(tmp_path / "b", [0.3, 0.4], record_of(model=SMALL), max_steps=300)
        code, out, _ = run(capsys, finished, tmp_path / "b")
        assert code == 0
        assert f"not finished: {tmp_path / 'b'}, at step 200 of 300" in out
        assert "1.5 x" in out

    def test_one_that_has_not_been_evaluated_yet(self, tmp_path, capsys):
        finished = write_run(tmp_path / "a", [0.2, 0.3], record_of())
        other = write_run(tmp_path / "b", [1.0], record_of(model=SMALL), name="loss", max_steps=9)
        for words in ((finished, other), (other, finished)):
            code, out, _ = run(capsys, *words)
            assert code == 0
            assert f"without knn in training: {other}" in out
            assert is_picture("comparison.png")

    def test_a_seed_twice_is_said(self, tmp_path):
        folders = [write_run(tmp_path / name, [0.5], record_of(1)) for name in "ab"]
        assert any("a seed occurs twice" in note for note in compared(*folders).notes)


class TestCommand:
    def test_three_seeds_of_two_groups(self, tmp_path, capsys):
        output = tmp_path / "deep" / "seeds.png"
        code, out, _ = run(capsys, *three_seeds(tmp_path), "--output", output)
        assert code == 0
        header, large, small, *_ = out.splitlines()
        assert header.split() == ["runs", "kNN", "best", "epochs", "images", "time", "faster"]
        assert large.split()[:7] == ["1", "projector_dim=256", "3", "52.0", "±", "5.0", "%"]
        assert small.split()[-4:] == ["5.0", "min", "2.0", "x"]
        assert "until kNN in training is 52.0 %, the last value of 1" in out
        assert "times can be compared on the same hardware only" in out
        assert is_picture(output)
        stored = json.loads(output.with_suffix(".json").read_text())
        assert stored["metric"] == "knn"
        assert stored["groups"][1]["name"] == "projector_dim=64"
        assert stored["groups"][1]["seeds"] == [0, 1, 2]
        assert stored["groups"][1]["metrics"]["knn"]["n"] == 3
        assert stored["groups"][1]["times_faster"] == 2

    def test_one_run(self, tmp_path, capsys):
        folder = write_run(tmp_path / "only", [0.4], evaluation=evaluation_of(0.5, 0.6))
        code, out, _ = run(capsys, folder)
        assert code == 0
        header, line, *_ = out.splitlines()
        assert "linear probe" in header
        assert line.split() == (
            "1 only 1 50.0 % 60.0 % 40.0 % 1 6.4 k 3.3 min 1.0 x".split()  # and no interval
        )
        assert is_picture(tmp_path / "comparison.png")

    def test_eight_groups_fit_into_a_terminal(self, tmp_path, capsys):
        folders = []
        for place in range(8):
            model = {"loss": f"barlow_twins_{place % 4}", "projector_dim": 1024 + place // 4}
            values = [0.3, 0.5 + 0.001 * place, 0.51 + 0.001 * place]
            for seed in range(2):
                name = tmp_path / f"{place}-{seed}"
                shifted = [v + 0.01 * seed for v in values]
                evaluation = evaluation_of(values[-1], values[-1])
                record = record_of(seed, model=model)
                folders.append(write_run(name, shifted, record, evaluation=evaluation))
        code, out, _ = run(capsys, *folders)
        assert code == 0
        assert max(map(len, out.splitlines()[:17])) <= 100
        assert "8 loss=barlow_twins" in out
        assert is_picture("comparison.png")

    def test_runs_without_time_and_images(self, tmp_path, capsys):
        folder = write_run(tmp_path / "old", [0.4, 0.5])
        state = json.loads((folder / "trainer_state.json").read_text())
        for entry in state["log_history"]:
            del entry["images_seen"], entry["train_seconds"]
        (folder / "trainer_state.json").write_text(json.dumps(state))
        code, out, _ = run(capsys, folder)
        assert code == 0
        assert out.splitlines()[1].split()[-3:] == ["-", "-", "-"]
        assert is_picture("comparison.png", num_panels=1)

    def test_hostile_folder_names(self, tmp_path, capsys):
        names = ["$a_{$", "_b", "c\n\x1b[31m\\frac", "画像", "-d e", "f" * 200, "%s{}"]
        folders = [write_run(tmp_path / name, [0.4, 0.5]) for name in names]
        code, out, _ = run(capsys, *folders)
        assert code == 0
        assert r"c\n\x1b[31m\frac" in out
        assert "\x1b" not in out
        assert is_picture("comparison.png")

    def test_a_metric_of_evaluation_only_has_no_picture(self, tmp_path, capsys):
        folder = write_run(tmp_path / "a", [0.4], evaluation=evaluation_of(0.5, 0.6))
        code, out, _ = run(capsys, folder, "--metric", "few_labels_0.01")
        assert code == 0
        assert "30.0 %" in out
        assert "no picture: few_labels_0.01 was not evaluated in training" in out
        assert not (tmp_path / "comparison.png").exists()
        assert (tmp_path / "comparison.json").exists()

    def test_without_matplotlib_there_is_the_table(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        code, out, _ = run(capsys, write_run(tmp_path / "a", [0.4]))
        assert code == 0
        assert 'pip install "ssl-views[plots]"' in out
        assert not (tmp_path / "comparison.png").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["a", "--metric", "knm"], "got 'knm'. Did you mean 'knn'? They have knn"),
            (["a", "--metric", "loss"], "only what runs log after eval_, or have in evaluation"),
            (["a", "none"], "there is no folder 'none'"),
            (["."], "must hold trainer_state.json"),
            (["a", "a"], "every run must come once; 'a' comes twice"),
            (["a", "--output", "x.json"], "output must be a picture, .png; got 'x.json'"),
            (["a", "--metrc", "knn"], "has no argument '--metrc'. Did you mean '--metric'"),
        ],
    )
    def test_wrong_input_gets_a_sentence(self, tmp_path, capsys, words, message):
        write_run(tmp_path / "a", [0.4])
        code, _, err = run(capsys, *words)
        assert code == 2
        assert message in err
        assert not (tmp_path / "comparison.json").exists()

    def test_two_trained_runs(self, tmp_path, capsys, monkeypatch):
        # Its linear probes take half of the time.
        monkeypatch.setattr(BeforeAndAfter, "report", lambda self, folder: None)
        digits = load_images("digits").shuffle(seed=0).select(range(80))
        DatasetDict(
            train=digits.select(range(60)), test=digits.select(range(60, 80))
        ).save_to_disk(tmp_path / "data")  # fmt: skip
        words = ["--dataset", "data", "--max_steps", "2", "--per_device_train_batch_size", "16"]
        words += ["--use_cpu", "--image_size", "16", "--num_views", "2", "--recipe", "digits"]
        words += ["--backbone", "test_resnet", "--eval_strategy", "steps", "--eval_steps", "1"]
        for dim in ("8", "16"):
            folder = ["--output_dir", f"dim{dim}", "--projector_dim", dim]
            assert main(["pretrain", *words, *folder]) == 0
        histories = [RunHistory.read(f"dim{dim}") for dim in (8, 16)]
        assert all(history.finished for history in histories)
        assert histories[0].series("eval_knn").steps == (1, 2)
        assert histories[0].series("eval_knn").images_seen == (16, 32)
        assert histories[0].series("eval_knn").seconds[1] > 0
        capsys.readouterr()
        code, out, _ = run(capsys, "dim8", "dim16")
        assert code == 0
        assert "1 projector_dim=8" in out
        assert "2 projector_dim=16" in out
        assert is_picture("comparison.png")
