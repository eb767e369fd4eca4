"""Launchers: what becomes of all processes when one of them dies, hangs, or was never started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_runs import Fault, Run, free_port, launch

from ssl_views import checkpoints
from ssl_views.trainer_checks import check_processes
from ssl_views.training_args import SSLViewsTrainingArguments

PRETRAIN = ("--dataset", "digits", "--save_strategy", "steps", "--disable_tqdm", "true")


class Launched:
    """A launcher in a group of its own, and the processes that it started."""

    def __init__(self, folder, *words, **environment):
        self.log = folder / "log"
        self.output = folder / "run"
        self._file = self.log.open("w")
        self._seen = set()
        words = [str(word) for word in words]
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", *words, *PRETRAIN, "--output_dir", str(self.output)],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **environment},
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ranks()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.launcher.pid, signal.SIGKILL)
        for pid in self._seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()
        self._file.close()

    def ranks(self):
        """Ids of the processes that train, by rank: children of the launcher."""
        path = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        pids = [int(word) for word in path.read_text().split()] if path.exists() else []
        self._seen.update(pids)
        return sorted(pids, key=rank_of)

    def said(self):
        return self.log.read_text(errors="replace")

    def wait_for_checkpoint(self, seconds=60):
        deadline = time.monotonic() + seconds
        while not checkpoints.checkpoints_by_step(self.output):
            assert self.launcher.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def seconds_until_all_ended(self, pids, most):
        """Wait for the launcher and all processes; return how long it took."""
        start = time.monotonic()
        self.launcher.wait(timeout=most)
        while any(map(alive, pids)):
            assert time.monotonic() - start < most, f"{pids}\n{self.said()}"
            time.sleep(0.1)
        return time.monotonic() - start


def rank_of(pid):
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return -1
    return next((int(x[5:]) for x in variables if x.startswith(b"RANK=")), -1)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def torchrun(folder, *flags, steps=100_000):
    return Launched(
        folder,
        *("torch.distributed.run", "--standalone", "--nproc_per_node", 2),
        *("--master_addr", "127.0.0.1", "--master_port", free_port()),
        *("-m", "ssl_views", "pretrain", "--use_cpu", "true", "--save_steps", 5),
        *("--per_device_train_batch_size", 32, "--max_steps", steps, *flags),
    )


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_killed(tmp_path):
    with torchrun(tmp_path) as run:
        run.wait_for_checkpoint()
        pids = run.ranks()
        assert list(map(rank_of, pids)) == [0, 1]
        os.kill(pids[1], signal.SIGKILL)
        run.seconds_until_all_ended(pids, most=30)
        assert run.launcher.returncode not in (0, None)
    assert checkpoints.find_checkpoints(run.output).newest is not None


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_frozen(tmp_path):
    """After the timeout, and what torchrun gives a process to end by itself: 30 s."""
    with torchrun(tmp_path, "--ddp_timeout", 8) as run:
        run.wait_for_checkpoint()
        pids = run.ranks()
        os.kill(pids[1], signal.SIGSTOP)
        seconds = run.seconds_until_all_ended(pids, most=8 + 30 + 15)
        assert seconds > 4
        assert run.launcher.returncode not in (0, None)
    assert checkpoints.find_checkpoints(run.output).newest is not None


@pytest.mark.slow
def test_torchrun_told_to_terminate_saves_and_the_same_command_resumes(tmp_path):
    with torchrun(tmp_path) as run:
        run.wait_for_checkpoint()
        pids = run.ranks()
        run.launcher.terminate()
        run.seconds_until_all_ended(pids, most=30)
        assert run.launcher.returncode not in (0, None)
        said = run.said()
    step = checkpoints.step_of(checkpoints.find_checkpoints(run.output).newest)
    assert f"Terminated: step {step} is saved" in said
    with torchrun(tmp_path, "--allow_changed_run", "true", steps=step + 3) as again:
        again.launcher.wait(timeout=90)
        assert again.launcher.returncode == 0, again.said()
    assert f"Resuming from {run.output}/checkpoint-{step}" in again.said()
    assert "saved to" in again.said()


@pytest.mark.slow
def test_accelerate_that_starts_one_process_is_noticed(tmp_path):
    """If it starts two one day, this test says so."""
    words = ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    run = ("-m", "ssl_views", "pretrain", "--max_steps", 2, "--save_steps", 2)
    port = ("--main_process_port", free_port())
    with Launched(
        tmp_path, *words, *port, *run, HF_HOME=str(tmp_path), ACCELERATE_USE_CPU="true"
    ) as launched:
        launched.launcher.wait(timeout=90)
        assert launched.launcher.returncode == 0, launched.said()
    assert launched.said().count("accelerate was asked for several processes and started one") == 1


@pytest.fixture
def args(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    return SSLViewsTrainingArguments(str(tmp_path), use_cpu=True)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr("ssl_views.trainer_checks.logger.warning", lambda *x: said.append(x[0]))
    return said


def test_one_process_of_a_launcher_that_was_asked_for_several_is_warned(
    args, warnings, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_processes(args)  # accelerate launch, of one process
    assert warnings == []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_processes(args)
    assert len(warnings) == 1
    assert "accelerate was asked for several processes and started one" in warnings[0]
    assert "torchrun --nproc_per_node" in warnings[0]


def test_a_rank_of_a_launcher_is_not_warned(args, warnings, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    check_processes(args)
    assert warnings == []


def test_several_gpus_in_one_process_are_refused(args):
    check_processes(args)
    args.use_cpu = False
    args._n_gpu = 4
    with pytest.raises(ValueError, match=r"one process must use one GPU, .*; got 4\. Start with"):
        check_processes(args)


@pytest.mark.slow
def test_the_other_process_of_one_that_is_killed_ends_too(tmp_path):
    run = Run(tmp_path / "run", processes=2, args={"ddp_timeout": 60})
    outcome = launch(run, Fault("kill", rank=0, step=5, moment="forward"))
    assert outcome.codes[0] == -signal.SIGKILL
    assert outcome.codes[1] > 0  # by itself
    assert outcome.seconds < 15


@pytest.mark.slow
def test_the_other_process_of_one_that_is_frozen_ends_after_the_timeout(tmp_path):
    run = Run(tmp_path / "run", processes=2, args={"ddp_timeout": 4})
    outcome = launch(run, Fault("freeze", rank=0, step=5, moment="forward"))
    assert outcome.codes[0] == -signal.SIGKILL  # by this test
    assert outcome.codes[1] > 0
    assert 4 < outcome.seconds < 15


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU this is an ordinary run")
@pytest.mark.parametrize("backend", [None, "gloo"])
def test_processes_that_do_not_train_together_are_refused(tmp_path, backend):
    """Without a GPU, and without use_cpu, transformers averages no gradients."""
    args = {"use_cpu": False, "ddp_backend": backend, "max_steps": 2, "save_strategy": "no"}
    outcome = launch(Run(tmp_path / "run", processes=2, args=args))
    if outcome.codes == [0, 0]:
        first, second = (set(lines[0]["indices"]) for lines in outcome.steps)
        assert not first & second
        assert outcome.finals[0]["weights"] == outcome.finals[1]["weights"]
        return
    assert all("use_cpu" in str(error) for error in outcome.errors), outcome.errors
