"""CIFAR-10, ResNet-18 with a small stem: training seconds to 80 % and to 90 % accuracy.

    python benchmarks/cifar10_speedrun.py --preset gpu                  # one GPU
    python benchmarks/cifar10_speedrun.py --preset gpu --minutes 8      # again until it ends with 0
    python benchmarks/cifar10_speedrun.py --preset cpu                  # does everything work?

The accuracy is that of the package's linear probe on one clean view per image, with all training
images to learn from. "short" and "long" train to the end of their schedules; the seconds to a
target are those of the first evaluation that reaches it. Training seconds hold drawing, rendering
and all steps, by the wall clock, after the device is done; not evaluations. Reading, decoding and
compiling, without a cache, are measured apart, and are in "seconds from JPEG". The other arms train
some steps with one trick off each, and measure images per second, the median of some windows. How
busy the device is: the share of wall time with a kernel or copy running, of steps in the middle of
"short" that are run once more under torch.profiler.

Every arm is written to the JSON when it ends, and is not repeated. "short" and "long" write a
checkpoint, with their clock, at every evaluation and when they are stopped by SIGTERM or --minutes;
the next call goes on from there. The command ends with 0 when all arms are stored, and with 75 when
it was stopped before. Needs no network, and no `datasets` for a folder of train.parquet and
test.parquet. Nothing else should run meanwhile. Writes
benchmarks/results/cifar10_speedrun_PRESET.json. The schedules of the GPU preset have not been tuned
on one.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from environment import environment
from speedrun_parts import (
    Batches,
    Images,
    Learner,
    Stop,
    Tricks,
    decoder,
    device_busy,
    peak_bytes,
    synchronize,
    write_whole,
)

from ssl_views.view_engines import engine_name

ROOT = Path(__file__).parents[1]
PLACES = (ROOT.parent / "shared" / "data" / "cifar10", ROOT / "data" / "cifar10")
PLACE = next((str(place) for place in PLACES if place.exists()), "uoft-cs/cifar10")
STOPPED = 75  # the exit code of sysexits.h for "try again later"
COMMON = {"loss": "kernel", "orthogonality_weight": "auto", "weight_decay": 0.05}
SPEED_ARMS = {"all_on": Tricks()} | {
    f"no_{trick}": Tricks()._replace(**{trick: False}) for trick in Tricks._fields
}
ARMS = ("short", *SPEED_ARMS, "long")
THIN = {
    "layers": [1, 1, 1, 1],
    "channels": [32, 64, 128, 256],
    "stem_stride": 2,
    "stem_width": 32,
}


def schedule(target, num_views, batch_size, num_steps, num_evaluations, learning_rate, crop_scale):
    """One cycle of the learning rate, with evaluations at equal distances."""
    return {
        "target": target,
        "num_views": num_views,
        "batch_size": batch_size,
        "num_steps": num_steps,
        "num_evaluations": num_evaluations,
        "learning_rate": learning_rate,
        "crop_scale": crop_scale,
    }


PRESETS = {
    "gpu": {
        **COMMON,
        "model_args": {},
        "projector_dim": 256,
        "num_train": None,
        "num_test": None,
        "schedules": {  # 12 and 90 epochs
            "short": schedule(0.80, 4, 256, 2340, 9, 3e-3, [0.25, 1.0]),
            "long": schedule(0.90, 4, 256, 17550, 15, 3e-3, [0.15, 1.0]),
        },
        "speed": {"warmup": 10, "windows": 5, "steps": 20},
        "profiled_steps": 30,
    },
    "cpu": {
        **COMMON,
        "model_args": THIN,
        "projector_dim": 64,
        "num_train": 10_000,
        "num_test": 2_000,
        "schedules": {
            "short": schedule(0.33, 2, 64, 200, 4, 5e-3, [0.25, 1.0]),
            "long": schedule(0.36, 2, 64, 480, 4, 5e-3, [0.25, 1.0]),
        },
        "speed": {"warmup": 2, "windows": 3, "steps": 10},
        "profiled_steps": 0,
    },
    "tiny": {
        **COMMON,
        "model_args": {**THIN, "channels": [8, 8, 8, 8], "stem_width": 8},
        "projector_dim": 16,
        "num_train": 256,
        "num_test": 64,
        "schedules": {
            "short": schedule(0.05, 2, 32, 12, 3, 5e-3, [0.25, 1.0]),
            "long": schedule(1.01, 2, 32, 24, 4, 5e-3, [0.25, 1.0]),
        },
        "speed": {"warmup": 1, "windows": 2, "steps": 2},
        "profiled_steps": 0,
    },
}


class Run:
    """One call: data, device, where things are stored, and when to stop."""

    def __init__(self, args, stop):
        self.args, self.stop, self.setting = args, stop, PRESETS[args.preset]
        self.arms = {}  # that are stored
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True
        counts = self.setting["num_train"], self.setting["num_test"]
        self.train, self.test = (
            Images(args.dataset, split, count, self.device)
            for split, count in zip(("train", "test"), counts, strict=True)
        )
        self.preparing = {
            f"{name}_seconds": self.train.seconds[name] + self.test.seconds[name]
            for name in ("read", "decode")
        }

    def parts(self, schedule, tricks):
        """Return a new model and its batches."""
        if self.device.type == "cuda":
            gc.collect()  # models of earlier arms
            torch.cuda.reset_peak_memory_stats()
        learner = Learner(self.setting, schedule, tricks, self.args.seed, self.device)
        batches = Batches(
            self.train, learner.recipe, tricks, schedule["batch_size"], self.args.seed, self.device
        )
        return learner, batches

    def speed_arm(self, tricks):
        """Return images per second with some tricks, or None if stopped."""
        schedule, speed = self.setting["schedules"]["short"], self.setting["speed"]
        learner, batches = self.parts(schedule, tricks)
        self.compile_into("short", empty=False)  # whose cache it finds, with everything on
        compile_seconds = learner.warm_up(batches)
        times, num_steps = [], speed["warmup"] + speed["windows"] * speed["steps"]
        for number, views in enumerate(batches(range(num_steps))):
            if self.stop:
                return None
            if number >= speed["warmup"] and (number - speed["warmup"]) % speed["steps"] == 0:
                synchronize(self.device)
                times.append(time.perf_counter())
            learner.step(views, number)
        synchronize(self.device)
        times.append(time.perf_counter())
        images = speed["steps"] * schedule["batch_size"]
        rates = [images / (end - start) for start, end in pairwise(times)]
        return {
            "images_per_second": median(rates),
            "windows": rates,
            "num_views": schedule["num_views"],
            "compile_seconds": compile_seconds,  # most of it may lie in the cache
            "peak_bytes": peak_bytes(self.device),
        }

    def target_arm(self, name):
        """Return what a whole schedule reached and when, or None if stopped."""
        schedule = self.setting["schedules"][name]
        learner, batches = self.parts(schedule, Tricks())
        path, identity = self.checkpoint(name), json.dumps(self.identity())
        stored = {"identity": None}
        if path.is_file():
            stored = torch.load(path, map_location=self.device, weights_only=True)
        goes_on = stored["identity"] == identity
        self.compile_into(name, empty=not goes_on)
        compile_seconds = learner.warm_up(batches)
        if "short" in self.arms:  # it has compiled the same, and a process keeps some of it
            compile_seconds = self.arms["short"]["compile_seconds"]
        if goes_on:
            state = stored["state"]
            learner.load(stored)
        else:
            state = {"step": 0, "train_seconds": 0.0, "calls": 0, "evaluations": []}
            state |= {"device_busy": None, "compile_seconds": compile_seconds, **self.preparing}
        state["calls"] += 1

        def save():
            content = {**learner.state(), "state": state, "identity": identity}
            write_whole(path, lambda aside: torch.save(content, aside))

        save()
        count, last = schedule["num_evaluations"], schedule["num_steps"]
        for number in range(1, count + 1):
            end = last * number // count
            if end <= state["step"]:
                continue
            loss = self.train_to(end, learner, batches, state)
            if state["step"] < end:
                save()
                return None
            accuracy = learner.accuracy(self.train, self.test)
            state["evaluations"].append(
                {
                    "step": end,
                    "train_seconds": state["train_seconds"],
                    "linear_probe": accuracy,
                    "loss": loss.item(),
                }
            )
            print(name, json.dumps(state["evaluations"][-1]), flush=True)
            save()
            self.profile_in_the_middle(name, learner, batches, state, save)
        return self.reached(schedule, state)

    def compile_into(self, name, empty):
        """Give the compiler a cache of its own, in the work folder."""
        folder = self.args.work_dir / f"compiled_{self.args.preset}_{name}"
        if empty:
            shutil.rmtree(folder, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute())

    def checkpoint(self, name):
        """Return the file of an arm in flight."""
        return self.args.work_dir / f"{self.args.preset}_{name}.pt"

    def train_to(self, end, learner, batches, state):
        """Train until a step, or until stopped; return the last loss."""
        loss, start = None, time.perf_counter()
        for views in batches(range(state["step"], end)):
            loss = learner.step(views, state["step"])
            state["step"] += 1
            if self.stop:
                break
        synchronize(self.device)
        state["train_seconds"] += time.perf_counter() - start
        return loss

    def profile_in_the_middle(self, name, learner, batches, state, save):
        """Run some steps once more under the profiler; training goes on from before them."""
        num_steps, step = self.setting["profiled_steps"], state["step"]
        is_middle = name == "short" and 2 * step >= self.setting["schedules"][name]["num_steps"]
        if self.device.type != "cuda" or not is_middle or state["device_busy"] is not None:
            return
        before = {key: _cloned(value) for key, value in learner.state().items()}
        state["device_busy"] = device_busy(learner, batches, step, num_steps)
        learner.load(before)
        save()

    def reached(self, schedule, state):
        """Return what is stored of a finished schedule."""
        hits = [e for e in state["evaluations"] if e["linear_probe"] >= schedule["target"]]
        seconds = hits[0]["train_seconds"] if hits else None
        before = sum(state[f"{name}_seconds"] for name in ("read", "decode", "compile"))
        return {
            "target": schedule["target"],
            "seconds_to_target": seconds,
            "seconds_to_target_from_jpeg": None if seconds is None else before + seconds,
            "final_linear_probe": state["evaluations"][-1]["linear_probe"],
            "images_per_second": (
                schedule["num_steps"] * schedule["batch_size"] / state["train_seconds"]
            ),
            **{key: value for key, value in state.items() if key != "step"},
        }

    def identity(self):
        """What must be the same in all calls that go into one result."""
        known = environment()
        return {
            "dataset": self.args.dataset_name,
            "preset": self.args.preset,
            "setting": self.setting,
            "seed": self.args.seed,
            "num_train": len(self.train),
            "num_test": len(self.test),
            **{key: known[key] for key in ("machine", "versions", "threads", "python")},
            "cuda": torch.version.cuda,
            "engine_of_the_cpu": engine_name(),
            "decoder": decoder()[0],
        }


def _cloned(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(inner) for key, inner in value.items()}
    return [_cloned(inner) for inner in value] if isinstance(value, list) else value


def measure(args, stop):
    """Run the arms that are not stored; return whether all are now."""
    run = Run(args, stop)
    result = {**run.identity(), "arms": {}}
    if args.output.is_file():
        stored = json.loads(args.output.read_text())
        if {**stored, "arms": {}} != json.loads(json.dumps(result)):
            raise SystemExit(
                f"{args.output} must hold arms of this preset, measured here with these versions; "
                "it holds others. Move it away, or give another --output."
            )
        result["arms"] = stored["arms"]
    run.arms = result["arms"]
    for name in args.arms:
        if name in result["arms"]:
            continue
        if stop:
            return False
        found = run.speed_arm(SPEED_ARMS[name]) if name in SPEED_ARMS else run.target_arm(name)
        if found is None:
            return False
        result["arms"][name] = found
        content = json.dumps(result, indent=1) + "\n"
        write_whole(args.output, lambda aside, content=content: aside.write_text(content))
        run.checkpoint(name).unlink(missing_ok=True)
        print(name, json.dumps(found), flush=True)
    return True


def parse(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default=PLACE, help="path or Hub id")
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--preset", choices=PRESETS, default="gpu")
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument(
        "--minutes", type=float, help="stop after them, at the next step; call again to go on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "cifar10_speedrun")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(words)
    if args.preset == "gpu" and not torch.cuda.is_available():
        parser.error("--preset gpu needs a GPU, and there is none; --preset cpu is a small check")
    # "short" comes first: it empties the compiler's cache.
    args.arms = [name for name in ARMS if name in (args.arms or ARMS)]
    default = ROOT / "benchmarks" / "results" / f"cifar10_speedrun_{args.preset}.json"
    args.output = args.output or default
    return args


if __name__ == "__main__":
    args = parse()
    sys.exit(0 if measure(args, Stop(args.minutes)) else STOPPED)
