"""Resuming: what is skipped, what is refused, what is kept; SIGTERM; more or fewer processes."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from killed_runs import Fault, Run, differences, finish, launch, operations
from transformers import TrainerControl, TrainerState, TrainingArguments

from ssl_views import checkpoints
from ssl_views.checkpoints import CheckpointError
from ssl_views.resumable_trainer import TERMINATED
from ssl_views.termination import TerminationCallback

FILES = (
    "MANIFEST.json", "config.json", "model.safetensors", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "trainer_state.json", "training_args.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    return finish(Run(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def _killed(tmp_path_factory):
    """A run killed at step 8, with checkpoints of steps 3 and 6."""
    run = Run(tmp_path_factory.mktemp("killed") / "run")
    outcome = launch(run, Fault("kill", step=8, moment="backward"))
    assert outcome.codes == [-9]
    assert names(run) == ["checkpoint-3", "checkpoint-6"]
    return run, outcome


@pytest.fixture
def killed(_killed, tmp_path):
    """A copy of it, and its outcome."""
    run, outcome = _killed
    shutil.copytree(run.output, tmp_path / "run")
    return run.but(output=tmp_path / "run"), outcome


def names(run):
    return sorted(path.name for path in run.output.iterdir())


def assert_ends_like(whole, first, resumed, start):
    assert resumed.codes == [0], resumed.log
    assert resumed.starts == [start]
    assert differences(whole, [first, resumed]) == []


# ---------------------------------------------------------------------------- broken checkpoints


def truncate(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path):
    data = bytearray(path.read_bytes())
    place = len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


def assert_skipped(killed, whole, reason):
    run, first = killed
    resumed = launch(run)
    assert re.search(rf"Skipped checkpoint-6: {reason}.*_unusable-checkpoint-6", resumed.log)
    assert_ends_like(whole, first, resumed, start=3)
    assert "_unusable-checkpoint-6" in names(run)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.safetensors", flip, "its model.safetensors has changed"),
        ("optimizer.pt", truncate, r"its optimizer.pt has \d+ bytes instead of \d+"),
        ("scheduler.pt", remove, "its scheduler.pt is missing"),
        ("MANIFEST.json", remove, "it has no MANIFEST.json"),
    ],
)
def test_a_broken_checkpoint_is_skipped(killed, whole, name, change, reason):
    change(killed[0].output / "checkpoint-6" / name)
    assert_skipped(killed, whole, reason)


@pytest.mark.slow
@pytest.mark.parametrize("change", [truncate, flip, remove])
@pytest.mark.parametrize("name", FILES)
def test_every_broken_file_is_noticed(killed, whole, name, change):
    assert set(FILES) == {path.name for path in (killed[0].output / "checkpoint-6").iterdir()}
    change(killed[0].output / "checkpoint-6" / name)
    assert_skipped(killed, whole, ".*" + name.replace(".", r"\."))


def flipped_manifests(path):
    """Write a manifest again and again, each time with another bit flipped."""
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        yield place, bytes(changed[max(0, place - 20) : place + 20])
    path.write_bytes(data)


def test_every_flipped_bit_in_a_manifest_is_noticed(killed):
    folder = killed[0].output / "checkpoint-6"
    wrong = []
    for place, around in flipped_manifests(folder / "MANIFEST.json"):
        try:
            checkpoints.verify(folder)
        except CheckpointError:
            continue
        except Exception as error:  # noqa: BLE001
            wrong.append(f"byte {place}, {around}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"byte {place}, {around}: accepted")
    assert not wrong, f"{len(wrong)} flips: {wrong[:5]}"
    checkpoints.verify(folder)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0.01, 0.1, 0.45, 0.68, 0.98])
def test_a_flipped_bit_in_a_manifest_is_skipped(killed, whole, place):
    path = killed[0].output / "checkpoint-6" / "MANIFEST.json"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    assert_skipped(killed, whole, "its ")


def test_a_manifest_of_another_format_is_skipped(killed, whole):
    path = killed[0].output / "checkpoint-6" / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))
    assert_skipped(killed, whole, "its MANIFEST.json has format 7; this version reads 1")


def test_a_file_that_resuming_would_read_must_be_listed(killed, whole):
    folder = killed[0].output / "checkpoint-6"
    shutil.copy(folder / "scheduler.pt", folder / "scaler.pt")
    assert_skipped(killed, whole, "its MANIFEST.json does not list scaler.pt")


def test_where_no_checkpoint_is_intact_the_user_decides(killed, whole):
    run, first = killed
    for name in names(run):
        truncate(run.output / name / "model.safetensors")
    for resume in (True, "auto"):
        refused = launch(run.but(resume=resume))
        assert refused.codes == [1]
        assert re.search(
            r"^ResumeError: .*holds no checkpoint that can be resumed from \(checkpoint-6: its "
            r"model.safetensors has .*; checkpoint-3: its model.safetensors has .*choose another ",
            refused.errors[0],
        )
    assert names(run) == ["checkpoint-3", "checkpoint-6"]  # nothing has happened to them
    named = launch(run.but(resume=str(run.output / "checkpoint-3")))
    assert "checkpoint-3 cannot be resumed from: its model.safetensors has" in named.errors[0]
    for name in names(run):
        shutil.rmtree(run.output / name)
    assert_ends_like(whole, first, launch(run), start=0)


def test_true_needs_a_checkpoint_and_auto_does_not(tmp_path, whole):
    run = Run(tmp_path / "run")
    refused = launch(run.but(resume=True))
    assert "holds no checkpoint that can be resumed from (none at all)" in refused.errors[0]
    started = launch(run)
    assert_ends_like(whole, started, started, start=0)


def test_an_older_checkpoint_may_be_named(killed, whole):
    run, first = killed
    resumed = launch(run.but(resume=str(run.output / "checkpoint-3")))
    said = "Skipped checkpoint-6: checkpoint-3 was asked for. It is now _unusable-checkpoint-6."
    assert said in resumed.log
    assert_ends_like(whole, first, resumed, start=3)


def test_what_a_kill_left_behind_is_cleaned(killed, whole):
    run, first = killed
    for name in ("_staging", "_trash"):
        shutil.copytree(run.output / "checkpoint-6", run.output / name / "checkpoint-9")
        (run.output / name / "checkpoint-9" / "MANIFEST.json").unlink()
    assert_ends_like(whole, first, launch(run), start=6)
    assert names(run) == ["checkpoint-12", "checkpoint-9"]


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(1, 6))
def test_a_kill_while_a_broken_checkpoint_is_set_aside(killed, whole, operation):
    run, first = killed
    flip(run.output / "checkpoint-6" / "optimizer.pt")
    again = launch(run, Fault("kill", operation=operation))
    assert again.codes == [-9]
    resumed = launch(run)
    assert resumed.codes == [0], resumed.log
    assert differences(whole, [first, again, resumed]) == []


# -------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("limit", [1, 2])
def test_checkpoints_are_deleted_by_step_whatever_their_times(killed, whole, limit):
    run, first = killed
    later = time.time() + 3600
    os.utime(run.output / "checkpoint-3", (later, later))
    resumed = launch(run.but(args={"save_total_limit": limit}))
    assert_ends_like(whole, first, resumed, start=6)
    assert names(run) == ["checkpoint-12", "checkpoint-9"][:limit]


@pytest.mark.parametrize("better", [False, True])
def test_the_best_checkpoint_is_kept(tmp_path, better):
    """In one of the two cases the best is not the newest."""
    run = best_of(Run(tmp_path / "run"), better)
    whole = finish(run.but(output=tmp_path / "whole"))
    first = launch(run, Fault("kill", step=11, moment="backward"))
    state = json.loads((run.output / "checkpoint-9" / "trainer_state.json").read_text())
    losses = {x["step"]: x["eval_loss"] for x in state["log_history"] if "eval_loss" in x}
    assert sorted(losses) == [3, 6, 9]
    kept = (max if better else min)(losses, key=losses.get)
    assert state["best_global_step"] == kept
    assert state["best_model_checkpoint"] == str(run.output / f"checkpoint-{kept}")
    assert set(names(run)) == {"checkpoint-9", f"checkpoint-{kept}"}
    assert_ends_like(whole, first, launch(run), start=9)
    assert names(run) == sorted(x.name for x in (tmp_path / "whole").iterdir())


def best_of(run, better):
    """Arguments of a run that ends with its best weights."""
    best = {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": better,
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    }
    return run.but(args=best, evaluated=True)


BEST = pytest.mark.parametrize("better", [False, pytest.param(True, marks=pytest.mark.slow)])


@BEST
def test_a_terminated_run_keeps_its_last_checkpoint_beside_the_best(tmp_path, better):
    run = best_of(Run(tmp_path / "run"), better)
    whole = finish(run.but(output=tmp_path / "whole"))
    first = launch(run, Fault("terminate", step=8, moment="forward"))
    assert first.codes == [TERMINATED]
    assert "checkpoint-8" in names(run)
    assert_ends_like(whole, first, launch(run), start=8)


@BEST
def test_a_finished_run_gives_its_best_weights_again(tmp_path, better):
    run = best_of(Run(tmp_path / "run", keep_weights=True), better)
    run = run.but(args={"save_total_limit": 5})
    first = finish(run)
    again = launch(run)
    assert again.starts == [None]
    weights, expected = again.weights(), first.weights()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@BEST
def test_two_processes_end_with_the_same_best_weights(tmp_path, better):
    run = best_of(Run(tmp_path / "run", processes=2), better)
    first, second = finish(run).finals
    assert first["weights"] == second["weights"]


def test_a_checkpoint_of_another_folder_is_not_continued_over_this_ones(killed, tmp_path):
    run, _ = killed
    other = Run(tmp_path / "other")
    shutil.copytree(run.output / "checkpoint-3", other.output / "checkpoint-3")
    refused = launch(run.but(resume=str(other.output / "checkpoint-3")))
    assert "must not write over the checkpoints of another" in refused.errors[0]
    resumed = launch(other.but(output=tmp_path / "new", resume=str(other.output / "checkpoint-3")))
    assert resumed.starts == [3]
    assert names(other.but(output=tmp_path / "new")) == ["checkpoint-12", "checkpoint-9"]


# ---------------------------------------------------------------------------------- another run

CHANGES = {
    "seed: 42 -> 1": {"args": {"seed": 1}},
    "images_per_step: 8 -> 10": {"images_per_step": 10},
    "model.num_views: 2 -> 3": {"config": {"num_views": 3}},
    r"model.recipe_args.crop_scale: null -> \[0.5, 1.0\]": {
        "config": {"recipe_args": {"crop_scale": [0.5, 1.0]}}
    },
    "model.projector_dim: 16 -> 8": {"config": {"projector_dim": 8}},
    'model.loss: "barlow_twins" -> "vicreg"': {"config": {"loss": "vicreg"}},
    "data.images: 50 -> 51": {"num_images": 51},
    "data.sha256: ": {"changed_image": 7},
    "training.learning_rate: 0.01 -> 0.02": {"args": {"learning_rate": 0.02}},
    "training.weight_decay: 0.05 -> 0.1": {"args": {"weight_decay": 0.1}},
    "training.max_steps: 12 -> 13": {"args": {"max_steps": 13}},
    "training.adam_beta2: 0.999 -> 0.9": {"args": {"adam_beta2": 0.9}},
    "training.micro_batch_size: null -> 4": {"args": {"micro_batch_size": 4}},
    "views.seed: 0 -> 1": {"recipe_seed": 1},
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_changed_run_is_refused(killed, line):
    run, _ = killed
    refused = launch(run.but(**CHANGES[line]))
    assert refused.codes == [1]
    assert re.search(
        rf"^ResumeError: a resumed run must be the run that was started; since .*checkpoint-6 "
        rf"was written, these have changed:(\n  .*)*\n  {line}(.*\n)+Undo the changes",
        refused.errors[0],
    ), refused.errors[0]
    assert refused.starts == [None]
    assert names(run) == ["checkpoint-3", "checkpoint-6"]


def test_a_changed_run_may_be_allowed_and_its_numbers_count(killed, whole):
    run, _ = killed
    changed = {"learning_rate": 0.02, "adam_beta2": 0.9, "allow_changed_run": True}
    resumed = launch(run.but(args={**changed, "save_total_limit": None}))
    assert resumed.codes == [0], resumed.log
    assert resumed.starts == [6]
    assert re.search(
        r"The run has changed since .*:\n  training.adam_beta2: 0.999 -> 0.9\n  training.learning",
        resumed.log,
    )
    rates = learning_rates(run)
    assert rates[7] > 0
    for step, rate in learning_rates(whole_run(whole)).items():
        assert rates[step] == pytest.approx(2 * rate if step > 6 else rate, abs=1e-12)
    optimizer = torch.load(run.output / "checkpoint-9" / "optimizer.pt")
    assert [group["betas"] for group in optimizer["param_groups"]] == [(0.9, 0.9)] * 2
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.05, 0.0}


def whole_run(whole):
    return Run(Path(whole.folder).with_suffix(""))


def learning_rates(run):
    """What was logged, by step."""
    state = json.loads((run.output / "checkpoint-12" / "trainer_state.json").read_text())
    return {x["step"]: x["learning_rate"] for x in state["log_history"] if "learning_rate" in x}


def test_all_changes_are_listed(killed):
    run, _ = killed
    refused = launch(run.but(args={"seed": 1, "weight_decay": 0.0}, num_images=60))
    lines = re.findall(r"\n  ([\w.]+): ", refused.errors[0])
    assert lines == ["data.images", "data.sha256", "seed", "training.weight_decay"]


@pytest.mark.parametrize("resume", [None, False])
def test_a_new_run_does_not_write_over_another(killed, resume):
    run, _ = killed
    refused = launch(run.but(resume=resume))
    assert refused.errors[0].startswith(
        f"ResumeError: a new run must not write over the checkpoints of another; {run.output} "
        "holds checkpoint-3, checkpoint-6. Resume (resume_from_checkpoint='auto')"
    )
    assert names(run) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.parametrize("steps", [12, 8])
def test_a_finished_run_trains_nothing_more(tmp_path, steps):
    run = Run(tmp_path / "run", args={"max_steps": steps, "save_steps": 4}, save_at_end=True)
    first = finish(run)
    before = {path: path.read_bytes() for path in run.output.rglob("*") if path.is_file()}
    again = launch(run)
    assert again.codes == [0], again.log
    assert f"checkpoint-{steps} has reached the last step: nothing to train" in again.log
    assert again.starts == [None]
    assert again.steps == [[]]
    assert differences(first, [again]) == []
    assert {p: p.read_bytes() for p in run.output.rglob("*") if p.is_file()} == before


# --------------------------------------------------------------------------------------- SIGTERM


@pytest.mark.parametrize(
    ("step", "moment", "strategy"),
    [(5, "forward", "steps"), (6, "after_optimizer", "epoch"), (4, "load", "no")],
)
def test_a_terminated_run_saves_and_resumes_to_the_bit(tmp_path, step, moment, strategy):
    run = Run(tmp_path / "run", args={"save_strategy": strategy})
    whole = finish(run.but(output=tmp_path / "whole"))
    first = launch(run, Fault("terminate", step=step, moment=moment))
    assert first.codes == [TERMINATED] == [75]
    assert first.steps_done <= step
    assert f"Terminated: step {first.steps_done} is saved in {run.output}" in first.log
    assert f"checkpoint-{first.steps_done}" in names(run)
    assert_ends_like(whole, first, launch(run), start=first.steps_done)


@pytest.mark.slow
def test_one_process_told_ends_both_at_the_same_step(tmp_path):
    run = Run(tmp_path / "run", processes=2, args={"save_strategy": "no"})
    whole = finish(run.but(output=tmp_path / "whole"))
    first = launch(run, Fault("terminate", rank=1, step=5, moment="forward"))
    assert first.codes == [75, 75]
    assert names(run) == ["checkpoint-5"]
    assert [len(lines) for lines in first.steps] == [5, 5]
    resumed = launch(run)
    assert resumed.starts == [5, 5]
    assert differences(whole, [first, resumed]) == []


@pytest.mark.parametrize(("step", "evaluates"), [(9, False), (10, True)])
def test_the_last_evaluation_is_not_left_out(tmp_path, step, evaluates):
    """A resumed run would have no step left to evaluate after."""
    callback, control = TerminationCallback(), TrainerControl(should_evaluate=True)
    callback.told = True
    state = TrainerState(global_step=step, max_steps=10)
    callback.on_step_end(TrainingArguments(str(tmp_path), use_cpu=True), state, control)
    assert control.should_save
    assert control.should_evaluate is evaluates


@pytest.mark.slow
def test_a_run_told_inside_a_save_ends_at_the_next_step(tmp_path, whole):
    run = Run(tmp_path / "run")
    found = [n for n, made in enumerate(operations(run)[0], 1) if made[2] == 6]
    for number in found[:: len(found) // 5]:
        shutil.rmtree(run.output)
        first = launch(run, Fault("terminate", operation=number))
        assert first.codes == [75], first.log
        assert first.steps_done == 7
        assert_ends_like(whole, first, launch(run), start=7)


# ---------------------------------------------------------------------- more or fewer processes


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_processes_sees_the_same_images(tmp_path, before, after):
    """In float64, without dropout, whose draws differ."""
    run = Run(
        tmp_path / "run",
        config={"model_args": {}},
        args={"optim": "sgd", "learning_rate": 1e-3},
        float64=True,
        keep_weights=True,
    )
    whole = finish(run.but(output=tmp_path / "whole"))
    first = launch(run.but(processes=before), Fault("terminate", step=5, moment="forward"))
    assert first.codes == [75] * before
    resumed = launch(run.but(processes=after))
    assert resumed.codes == [0] * after, resumed.log
    assert (
        f"checkpoint-5 was written by {before} processes, now there are {after}: images, order and "
        "views are the same, sums differ by rounding" in resumed.log
    )
    expected = {line["step"]: images(line) for line in whole.steps[0]}
    seen: dict = {}
    for outcome in (first, resumed):
        for lines in outcome.steps:
            for line in lines:
                seen.setdefault(line["step"], []).extend(images(line))
    assert {step: sorted(found) for step, found in seen.items()} == {
        step: sorted(found) for step, found in expected.items()
    }
    weights, ours = whole.weights(), resumed.weights()
    assert weights["projector.0.weight"].dtype == torch.float64
    worst = max(float((weights[name] - ours[name]).abs().max()) for name in weights)
    assert worst <= 1e-12


def images(line):
    return list(zip(line["indices"], line["pixels"], strict=True))
