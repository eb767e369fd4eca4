"""The speed run's parts, and that a stopped or killed run goes on as if it had not been."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import cifar10_speedrun  # noqa: E402
import speedrun_parts  # noqa: E402
from cifar10_speedrun import PRESETS, SPEED_ARMS, measure, parse  # noqa: E402
from speedrun_parts import (  # noqa: E402
    Batches,
    Images,
    Learner,
    Stop,
    Tricks,
    covered,
    decoded,
    decoder,
    kernel_seconds,
    read_jpegs,
)
from speedrun_tables import ARMS, speedrun  # noqa: E402

CPU = torch.device("cpu")
PLAIN = Tricks(compiled=False)  # compiling takes longer than these tests may
TINY = PRESETS["tiny"]
SHORT = TINY["schedules"]["short"]


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """Return a folder as that of CIFAR-10, with noise in it."""
    folder, rng = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    for split, count in (("train", 300), ("test", 80)):
        images = []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
            images.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": images, "label": [i % 10 for i in range(count)]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def images(jpegs):
    return Images(jpegs, "train", 100, CPU)


@pytest.fixture
def learner():
    return Learner(TINY, SHORT, PLAIN._replace(bf16=False), seed=0, device=CPU)


def batches_with(images, recipe, **tricks):
    return Batches(images, recipe, PLAIN._replace(**tricks), 32, seed=0, device=CPU)


class TestImages:
    def test_a_draw_of_a_split(self, jpegs, images):
        everything, labels = read_jpegs(jpegs, "train", None)
        assert len(everything) == 300
        assert labels.tolist() == [i % 10 for i in range(300)]
        places = [everything.index(code) for code in images.encoded]
        assert len(set(places)) == 100
        assert places != sorted(places)
        assert images.labels.tolist() == [i % 10 for i in places]

    def test_pixels_are_those_of_pillow(self, images):
        for number, code in enumerate(images.encoded[:10]):
            expected = np.asarray(Image.open(io.BytesIO(code)))
            assert np.array_equal(images.host[number], expected)
            assert np.array_equal(images.device[number].permute(1, 2, 0).numpy(), expected)

    def test_without_simplejpeg(self, images, monkeypatch):
        monkeypatch.setitem(sys.modules, "ssl_views.data.decode", None)
        decoder.cache_clear()
        try:
            assert decoder()[0] == "Pillow"
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(1) as threads:
                assert np.array_equal(decoded(images.encoded, threads), images.host)
        finally:
            decoder.cache_clear()

    def test_images_of_another_size(self, tmp_path):
        file = io.BytesIO()
        Image.new("RGB", (40, 32)).save(file, "JPEG")
        rows = {"image": [{"bytes": file.getvalue(), "path": None}], "label": [0]}
        pq.write_table(pa.table(rows), tmp_path / "train.parquet")
        with pytest.raises(SystemExit, match=r"must be of 32 x 32 pixels; got \[\(32, 40, 3\)\]"):
            Images(tmp_path, "train", None, CPU)


class TestBatches:
    def test_every_image_once_per_epoch_in_another_order(self, images, learner):
        batches = batches_with(images, learner.recipe)
        seen = [batches._prepare(step, None)[0].tolist() for step in range(6)]
        first, second = seen[0] + seen[1] + seen[2], seen[3] + seen[4] + seen[5]
        assert len(set(first)) == len(set(second)) == 96
        assert first != second

    def test_views_follow_from_the_number_of_the_step(self, images, learner):
        batches = batches_with(images, learner.recipe)
        once = list(batches(range(6)))
        again = list(batches(range(4, 6)))
        assert len(once) == 6
        assert once[0].shape == (32, 2, 3, 32, 32)
        for ours, theirs in zip(again, once[4:], strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(once[0], once[3])

    @pytest.mark.parametrize("trick", ["device_views", "decoded_copy", "channels_last"])
    def test_tricks_change_no_view(self, images, learner, trick):
        expected = next(iter(batches_with(images, learner.recipe, bf16=False)(range(1))))
        off = batches_with(images, learner.recipe, bf16=False, **{trick: False})
        found = next(iter(off(range(1))))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)

    def test_precision_and_layout_are_the_tricks(self, images, learner):
        on = next(iter(batches_with(images, learner.recipe)(range(1))))
        assert on.dtype == torch.bfloat16
        assert on.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        off = batches_with(images, learner.recipe, bf16=False, channels_last=False)
        assert next(iter(off(range(1)))).dtype == torch.float32
        assert next(iter(off(range(1)))).is_contiguous()


class TestLearner:
    def test_the_loss_is_the_models(self, images, learner):
        views = next(iter(batches_with(images, learner.recipe, bf16=False)(range(1))))
        expected = learner.model(views).loss
        torch.testing.assert_close(learner.loss(views), expected)
        expected.backward()
        gradients = [p.grad.clone() for p in learner.model.parameters()]
        learner.optimizer.zero_grad()
        learner.loss(views).backward()
        for parameter, gradient in zip(learner.model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)

    def test_warming_up_teaches_nothing(self, images, learner):
        before = {name: x.clone() for name, x in learner.model.state_dict().items()}
        learner.warm_up(batches_with(images, learner.recipe, bf16=False))
        for name, tensor in learner.model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert all(p.grad is None for p in learner.model.parameters())
        assert not learner.optimizer.state

    def test_features_are_those_of_the_clean_view(self, images, learner):
        learner.model.train()
        views = learner.recipe.clean_view(list(images.device))
        found = learner.features(images)
        assert learner.model.training
        with torch.no_grad():
            expected = learner.model.eval().ssl_views(views).pooler_output
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_the_learning_rate_goes_up_and_down_once(self, learner):
        rates = np.array([learner.learning_rate(step) for step in range(SHORT["num_steps"])])
        assert rates.max() == pytest.approx(SHORT["learning_rate"], rel=0.05)
        assert 0 < rates[-1] < 0.05 * rates.max()
        top = rates.argmax()
        assert (np.diff(rates[: top + 1]) >= 0).all()
        assert (np.diff(rates[top:]) <= 0).all()

    def test_a_state_is_gone_on_from(self, images, learner):
        views = list(batches_with(images, learner.recipe, bf16=False)(range(3)))
        learner.step(views[0], 0)
        state = cifar10_speedrun._cloned(learner.state())
        expected = [learner.step(x, n).item() for n, x in enumerate(views[1:], 1)]
        other = Learner(TINY, SHORT, learner.tricks, seed=1, device=CPU)
        other.load(state)
        assert [other.step(x, n).item() for n, x in enumerate(views[1:], 1)] == expected

    @pytest.mark.parametrize("fused", [True, False])
    def test_the_optimizer(self, fused):
        found = Learner(TINY, SHORT, PLAIN._replace(fused_optimizer=fused), 0, CPU).optimizer
        assert {bool(group["fused"]) for group in found.param_groups} == {fused}
        assert [group["weight_decay"] for group in found.param_groups] == [0.05, 0.0]
        assert {p.ndim for p in found.param_groups[1]["params"]} == {1}


class TestHowBusyTheDeviceIs:
    def test_a_union_of_intervals(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            starts = rng.integers(0, 200, 12)
            ends = starts + rng.integers(0, 30, 12)
            ticks = {t for a, b in zip(starts, ends, strict=True) for t in range(a, b)}
            assert covered(zip(starts.tolist(), ends.tolist(), strict=True)) == len(ticks)
        assert covered([]) == 0

    def test_only_what_runs_on_the_device_counts(self):
        events = [
            {"ph": "X", "cat": "kernel", "ts": 1000.0, "dur": 500.0},
            {"ph": "X", "cat": "kernel", "ts": 1200.0, "dur": 400.0},  # on another stream
            {"ph": "X", "cat": "gpu_memcpy", "ts": 3000.0, "dur": 100.0},
            {"ph": "X", "cat": "gpu_user_annotation", "ts": 0.0, "dur": 9000.0},
            {"ph": "X", "cat": "cpu_op", "ts": 0.0, "dur": 9000.0},
            {"ph": "i", "cat": "kernel", "ts": 8000.0},
        ]
        assert kernel_seconds({"traceEvents": events}) == pytest.approx(700e-6)


def test_every_trick_is_switched_off_once():
    off = {
        name: [f for f in Tricks._fields if not getattr(tricks, f)]
        for name, tricks in SPEED_ARMS.items()
    }
    assert off.pop("all_on") == []
    assert sorted(trick for tricks in off.values() for trick in tricks) == sorted(Tricks._fields)
    assert all(len(tricks) == 1 for tricks in off.values())
    assert ARMS.keys() == SPEED_ARMS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_the_schedules_of_a_preset_can_be_trained(name):
    for schedule in PRESETS[name]["schedules"].values():
        model = Learner(PRESETS[name], schedule, PLAIN, 0, CPU).model
        assert model.config.num_views == schedule["num_views"]
        assert schedule["num_steps"] > schedule["num_evaluations"] > 1
        assert PRESETS[name]["profiled_steps"] < schedule["num_steps"] / 2
    layers = [len(getattr(model.ssl_views.backbone, f"layer{i}")) for i in (1, 2, 3, 4)]
    assert layers == ([2, 2, 2, 2] if name == "gpu" else [1, 1, 1, 1])


class After:
    """Stops at the n-th time it is asked."""

    def __init__(self, times):
        self.left = times

    def __bool__(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture
def arguments(jpegs, tmp_path, monkeypatch):
    """Return what gives the arguments of a call, where nothing is compiled."""
    monkeypatch.setattr(cifar10_speedrun, "Tricks", lambda: PLAIN)
    plain = {name: tricks._replace(compiled=False) for name, tricks in SPEED_ARMS.items()}
    monkeypatch.setattr(cifar10_speedrun, "SPEED_ARMS", plain)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # it is set, and put back here

    def of(name, *words):
        common = ["--dataset", str(jpegs), "--preset", "tiny"]
        places = ["--output", f"{tmp_path / name}.json", "--work_dir", str(tmp_path / name)]
        return parse([*common, *places, *words])

    return of


def without_times(arm):
    found = {k: v for k, v in arm.items() if "second" not in k and k != "calls"}
    for evaluation in found["evaluations"]:
        evaluation.pop("train_seconds")
    return found


def test_a_stopped_run_goes_on_as_if_it_had_not_been(arguments, monkeypatch):
    monkeypatch.setitem(TINY["schedules"]["short"], "target", 0.0)
    whole, parts = (arguments(name, "--arms", "short") for name in ("whole", "parts"))
    assert measure(whole, After(10**6))
    for call in range(1, 4):
        assert not measure(parts, After(3))  # asked before the arm, and after each step
        stored = torch.load(parts.work_dir / "tiny_short.pt", weights_only=True)["state"]
        assert (stored["step"], stored["calls"]) == (3 * call, call)
        assert not parts.output.exists()
    seconds = stored["train_seconds"]
    assert measure(parts, After(10**6))
    expected, found = (json.loads(x.output.read_text())["arms"]["short"] for x in (whole, parts))
    assert found["train_seconds"] >= seconds > 0
    assert found["calls"] == 4
    assert found["seconds_to_target"] == found["evaluations"][0]["train_seconds"]
    before = sum(found[f"{name}_seconds"] for name in ("read", "decode", "compile"))
    assert found["seconds_to_target_from_jpeg"] == before + found["seconds_to_target"]
    assert without_times(found) == without_times(expected)
    assert not list(parts.work_dir.glob("*.pt"))


def test_finished_arms_are_kept_and_the_table_is_made(arguments, capsys):
    args = arguments("run")
    assert measure(args, After(10**6))
    first = args.output.read_text()
    result = json.loads(first)
    assert list(result["arms"]) == ["short", *SPEED_ARMS, "long"]
    assert result["arms"]["long"]["seconds_to_target"] is None  # of a target above 1
    assert measure(args, After(0))  # nothing is left that could be stopped
    assert args.output.read_text() == first
    lines = speedrun(result)
    assert [line.count("|") for line in lines if line.startswith("|")] == [6] * 4 + [6] * 9
    assert "| everything on |" in "\n".join(lines)
    assert "not reached" in "\n".join(lines)
    rate = result["arms"]["no_bf16"]["images_per_second"]
    assert rate == np.median(result["arms"]["no_bf16"]["windows"])
    assert f"| float32 instead of bfloat16 | {rate:,.0f} | {2 * rate:,.0f} |" in "\n".join(lines)
    part = {**result, "arms": {"all_on": result["arms"]["all_on"]}}
    assert "| everything on |" in "\n".join(speedrun(part))
    result["arms"]["short"]["device_busy"] = {"share": 0.9, "num_steps": 30, "seconds": 1.0}
    assert "busy 90 % of the time" in speedrun(result)[-1]
    result["arms"]["short"]["device_busy"]["share"] = None
    assert "could not be measured" in speedrun(result)[-1]
    assert result["arms"]["long"]["compile_seconds"] == result["arms"]["short"]["compile_seconds"]


def test_arms_of_another_seed_are_not_mixed(arguments):
    assert measure(arguments("run", "--arms", "all_on"), After(10**6))
    with pytest.raises(SystemExit, match=r"run.json must hold arms of this preset.* others. Move"):
        measure(arguments("run", "--arms", "all_on", "--seed", "1"), After(10**6))


def test_a_gpu_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse(["--dataset", "x"])
    assert "--preset gpu needs a GPU" in capsys.readouterr().err


def test_minutes_and_a_signal_stop(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert not Stop(None)
        assert not Stop(1)
        assert Stop(0)
        stop = Stop(None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("killed_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_goes_on(jpegs, tmp_path, killed_by):
    """In processes of their own, not compiled; files are whole whenever they are looked at."""

    def command(name):
        words = ["--dataset", str(jpegs), "--preset", "tiny", "--arms", "short", "all_on", "long"]
        places = ["--output", f"{tmp_path / name}.json", "--work_dir", str(tmp_path / name)]
        return [sys.executable, str(BENCHMARKS / "cifar10_speedrun.py"), *words, *places]

    def arms(name):
        return json.loads((tmp_path / f"{name}.json").read_text())["arms"]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        command("killed"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    for line in process.stdout:
        if line.startswith(b"long"):  # its first evaluation
            break
    process.send_signal(killed_by)
    code = process.wait()
    process.stdout.close()
    assert code == (75 if killed_by == signal.SIGTERM else -signal.SIGKILL)
    assert list(arms("killed")) == ["short", "all_on"]
    stored = arms("killed")["short"]
    subprocess.run(command("killed"), check=True, env=environment, capture_output=True)
    assert arms("killed")["short"] == stored
    assert arms("killed")["long"]["calls"] == 2
    assert without_times(arms("killed")["long"]) == without_times(arms("whole")["long"])


@pytest.mark.slow
def test_nothing_but_the_named_packages_is_needed(jpegs):
    """Neither `datasets` nor simplejpeg, where the images lie in a folder of parquet files."""
    script = f"""
import sys
sys.path.append({str(BENCHMARKS)!r})
sys.modules.update(datasets=None, simplejpeg=None)
import torch
import speedrun_parts as parts
images = parts.Images({str(jpegs)!r}, "train", 64, torch.device("cpu"))
import cifar10_speedrun as run
tiny = run.PRESETS["tiny"]
tricks = parts.Tricks(compiled=False)
learner = parts.Learner(tiny, tiny["schedules"]["short"], tricks, 0, images.device.device)
batches = parts.Batches(images, learner.recipe, tricks, 32, 0, images.device.device)
for number, views in enumerate(batches(range(2))):
    learner.step(views, number)
print(parts.decoder()[0], learner.accuracy(images, images) >= 0)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Pillow", "True"]
    assert speedrun_parts.SIZE == 32
