"""Runs that are killed, and disks that are full: the next start ends as if nothing had happened."""

import pytest
from killed_runs import (
    LOADERS,
    MOMENTS,
    Fault,
    Run,
    finish,
    full_disks,
    kills_at_operations,
    kills_at_steps,
    launch,
    of_steps,
    operations,
    save_overhead,
    survive,
)


def assert_all_survived(counts, at_least=1):
    assert counts.tried >= at_least
    assert counts.survived == counts.tried, "\n\n".join(counts.failures)
    assert counts.lost == 0


# ------------------------------------------------------------------------------------- at a step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to; it is the same for all loaders."""
    return finish(Run(tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(
    ("loader", "step", "moment"),
    [
        ("one thread", 5, "load"),
        ("one thread", 6, "epoch_end"),
        ("two threads", 8, "before_optimizer"),
        ("no threads", 4, "after_optimizer"),
        ("workers", 7, "backward"),
        ("persistent workers", 5, "step_end"),
    ],
)
def test_a_killed_run_resumes_to_the_bit(tmp_path, whole, loader, step, moment):
    trials = [(Fault("kill", step=step, moment=moment),)]
    assert_all_survived(survive(Run(tmp_path / "run", args=LOADERS[loader]), trials, whole=whole))


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_resume_to_the_bit(tmp_path):
    run = Run(tmp_path / "run", processes=2)
    assert_all_survived(survive(run, [(Fault("kill", rank=1, step=5, moment="backward"),)]))


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_survives_kills_at_all_moments(tmp_path, loader):
    workers = "workers" in loader
    moments = [moment for moment in MOMENTS if not (workers and moment == "load")]
    trials = kills_at_steps((1, 5, 6, 9), moments[::2]) + kills_at_steps((3, 7), moments[1::2])
    if workers:  # each counts the batches that it makes itself
        trials += kills_at_steps((1, 2, 3), ("load",))
    counts = survive(Run(tmp_path / "run", args=LOADERS[loader]), trials)
    assert_all_survived(counts, at_least=20)
    assert counts.most_steps_lost == 3


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["one thread", "persistent workers"])
def test_two_processes_survive_kills_at_many_moments(tmp_path, loader):
    run = Run(tmp_path / "run", processes=2, args=LOADERS[loader])
    at = [(4, "forward"), (6, "epoch_end"), (8, "after_optimizer")]
    trials = [(Fault("kill", rank=n % 2, step=s, moment=m),) for n, (s, m) in enumerate(at)]
    assert_all_survived(survive(run, trials))


@pytest.mark.slow
def test_a_run_survives_being_killed_again_and_again(tmp_path):
    kills = [Fault("kill", step=step, moment="backward") for step in (2, 5, 6, 7, 9, 12)]
    at_start = [Fault("kill", operation=number) for number in (1, 2, 3)]
    trials = [tuple(kills), (kills[1], *at_start), (kills[3], *at_start, kills[5])]
    assert_all_survived(survive(Run(tmp_path / "run"), trials))


@pytest.mark.slow
def test_a_run_with_evaluation_and_the_best_model_survives(tmp_path):
    best = {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "save_total_limit": 1,
    }
    run = Run(tmp_path / "run", args=best, evaluated=True)
    assert_all_survived(survive(run, kills_at_steps((4, 6, 9), ("backward", "saved", "log"))))


# --------------------------------------------------------------------------------- inside a save


def decisive(found):
    """A few operations of a save: the weights, the manifest, the renames, and what is deleted."""
    wanted = [
        ("write", "model.safetensors"),
        ("write", "optimizer.pt"),
        ("open", "MANIFEST.json"),
        ("rename", "_staging/checkpoint-9"),
        ("rename", "run/checkpoint-3"),
        ("remove", "checkpoint-3/optimizer.pt"),
    ]
    chosen = []
    for kind, ending in wanted:
        number, made = next(x for x in found if x[1][0] == kind and x[1][1].endswith(ending))
        chosen.append((number, made))
    return chosen


@pytest.mark.slow
def test_a_run_killed_in_a_save_resumes_to_the_bit(tmp_path, whole):
    run = Run(tmp_path / "run")
    found = of_steps(operations(run)[0], (9,))
    trials = kills_at_operations(decisive(found))
    assert_all_survived(survive(run, trials, whole=whole), at_least=8)


@pytest.mark.slow
def test_a_run_survives_kills_at_every_operation_of_a_save(tmp_path):
    run = Run(tmp_path / "run")
    found = operations(run)[0]
    chosen = of_steps(found, (9,)) + of_steps(found, (3,))[::4] + of_steps(found, (12,))[1::8]
    counts = survive(run, kills_at_operations(chosen, shares=(0.0, 0.37)))
    assert_all_survived(counts, at_least=80)
    assert counts.most_steps_lost == 3


@pytest.mark.slow
def test_native_writes_cut_anywhere(tmp_path):
    run = Run(tmp_path / "run")
    writes = [x for x in of_steps(operations(run)[0], (6,)) if x[1][0] == "write"]
    assert len(writes) == 4
    trials = kills_at_operations(writes, shares=(0.0001, 0.2, 0.8, 0.9999))
    assert_all_survived(survive(run, trials), at_least=16)


@pytest.mark.slow
def test_two_processes_survive_kills_inside_a_save(tmp_path):
    run = Run(tmp_path / "run", processes=2)
    found = operations(run)
    first, second = of_steps(found[0], (9,)), of_steps(found[1], (9,))
    trials = kills_at_operations(first[::8], shares=(0.5,))
    trials += kills_at_operations(second, rank=1, shares=(0.0, 0.5))
    assert_all_survived(survive(run, trials), at_least=14)


# ------------------------------------------------------------------------------------ a full disk


def could_not_be_written(run):
    return (
        rf"^CheckpointError: checkpoint-\d+ could not be written to {run.output}: .*"
        r"It takes about [\d,]{6,} bytes\. Older checkpoints are kept"
    )


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_start_resumes(tmp_path, whole):
    run = Run(tmp_path / "run")
    found = decisive(of_steps(operations(run)[0], (9,)))[:4]
    counts = survive(run, full_disks(found), whole=whole, says=could_not_be_written(run))
    assert_all_survived(counts, at_least=4)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_operation(tmp_path):
    run = Run(tmp_path / "run")
    found = operations(run)[0]
    trials = full_disks(of_steps(found, (6,)))[::2] + full_disks(of_steps(found, (3,)))[::8]
    counts = survive(run, trials, says=could_not_be_written(run))
    assert_all_survived(counts, at_least=20)


def test_files_that_cannot_grow_end_the_run_and_the_next_start_resumes(tmp_path):
    """The libraries that write tensors meet the limit themselves."""
    run = Run(tmp_path / "run")
    whole = finish(run.but(output=tmp_path / "whole"))
    weights = (tmp_path / "whole" / "checkpoint-12" / "model.safetensors").stat().st_size
    trials = [
        (Fault("file_size", step=5, moment="step_end", num_bytes=limit),)
        for limit in (weights // 2, weights * 3 // 2)  # the weights, and the optimizer's state
    ]
    assert_all_survived(survive(run, trials, whole=whole, says=could_not_be_written(run)))


@pytest.mark.slow
def test_a_full_disk_ends_both_processes(tmp_path):
    run = Run(tmp_path / "run", processes=2)
    found = decisive(of_steps(operations(run)[0], (9,)))[:3]
    assert_all_survived(survive(run, full_disks(found), says=could_not_be_written(run)))


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path):
    run = Run(tmp_path / "run")
    fault = Fault("free_space", step=5, moment="step_end", num_bytes=123_456)
    outcome = launch(run, fault)
    assert outcome.codes == [1]
    assert outcome.errors[0].startswith(
        f"CheckpointError: a checkpoint must fit on the disk of {run.output}; it takes about "
    )
    assert "and 123,456 are free" in outcome.errors[0]
    assert [path.name for path in run.output.iterdir()] == ["checkpoint-3"]
    estimated = int(outcome.errors[0].split("takes about ")[1].split()[0].replace(",", ""))
    written = sum(x.stat().st_size for x in (run.output / "checkpoint-3").iterdir())
    assert written <= estimated <= 1.1 * written + 2**20
    assert_all_survived(survive(run, [(fault,)]))


# --------------------------------------------------------------------------------- what it costs


@pytest.mark.slow
@pytest.mark.timed
def test_a_save_costs_at_most_half_a_second_more_per_300_mb(tmp_path):
    cost = save_overhead(tmp_path)
    assert cost["megabytes"] > 200
    assert cost["extra_seconds"] <= 0.5 * cost["megabytes"] / 300, cost
