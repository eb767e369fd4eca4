"""Parts of the speed run: images, batches of views, training steps, how busy the device is."""

import functools
import io
import json
import math
import os
import signal
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, ViewRecipe
from ssl_views.evaluation.linear_probe import linear_probe_accuracy
from ssl_views.pixels import PixelBatch

SIZE = 32
CORES = os.cpu_count() or 1
PREFETCH = 4  # batches that are prepared ahead
PRODUCERS = 2  # threads that prepare them
WARMUP = 0.1  # of the steps
EVALUATED_AT_ONCE = 1000
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")


class Tricks(NamedTuple):
    """What makes training fast, and what takes its place where it is off."""

    bf16: bool = True  # autocast and views in bfloat16; else float32, convolutions in TF32
    channels_last: bool = True  # weights and views; else channels first, but for what is compiled
    compiled: bool = True  # backbone and projector; else eager
    device_views: bool = True  # torch engine, on the device; else the CPU's engine, in threads
    fused_optimizer: bool = True  # else torch's foreach
    decoded_copy: bool = True  # uint8 pixels on the device; else JPEG is decoded for every batch


class Stop:
    """True when SIGTERM came, or the minutes are over."""

    def __init__(self, minutes):
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.told = False
        signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, number, frame):
        self.told = True

    def __bool__(self):
        return self.told or time.monotonic() > self.deadline


def synchronize(device):
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def peak_bytes(device):
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def write_whole(path, write):
    """Write a file aside and rename it, so that it is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial")
    write(aside)
    aside.replace(path)


def read_jpegs(dataset, split, count):
    """Return the encoded images of a split, a seeded draw of them, and their labels (N,) int64.

    A local folder of train.parquet and test.parquet is read without `datasets`.
    """
    file = Path(dataset) / f"{split}.parquet"
    if file.is_file():
        import pyarrow.parquet

        columns = pyarrow.parquet.read_table(file).to_pydict()
        encoded, labels = [image["bytes"] for image in columns["image"]], columns["label"]
    else:
        from ssl_views.data.sources import load_train_and_test

        rows = dict(zip(("train", "test"), load_train_and_test(dataset), strict=True))[split]
        encoded, labels = [row["bytes"] for row in rows["image"]], rows["label"]
    if count is not None and count < len(encoded):
        chosen = np.random.default_rng(0).permutation(len(encoded))[:count]
        encoded, labels = [encoded[i] for i in chosen], [labels[i] for i in chosen]
    return encoded, torch.tensor(labels)


@functools.cache
def decoder():
    """Return a name and a function from bytes to (H, W, 3) uint8: the package's, else Pillow's."""
    try:
        from ssl_views.data.decode import decode_pixels
    except ModuleNotFoundError:  # simplejpeg is not there
        from PIL import Image

        return "Pillow", lambda code: np.array(Image.open(io.BytesIO(code)).convert("RGB"))
    return "simplejpeg", functools.partial(decode_pixels, num_channels=3)


def decoded(encoded, threads):
    """Return the pixels (N, 32, 32, 3) uint8 of JPEG files."""
    _, decode = decoder()
    share = -(-len(encoded) // (4 * CORES))
    parts = [encoded[i : i + share] for i in range(0, len(encoded), share)]
    arrays = threads.map(lambda part: [decode(code) for code in part], parts)
    arrays = [array for part in arrays for array in part]
    if sizes := {array.shape for array in arrays} - {(SIZE, SIZE, 3)}:
        raise SystemExit(f"images must be of {SIZE} x {SIZE} pixels; got {sorted(sizes)[:3]}")
    return np.stack(arrays)


class Images:
    """Images of a split: JPEG files, their pixels on the host and on the device, and labels.

    Attributes:
        seconds: of reading the files, and of decoding them and bringing them to the device.
    """

    def __init__(self, dataset, split, count, device):
        decoder()  # imports
        torch.zeros(1, device=device)  # starts the device
        start = time.perf_counter()
        self.encoded, labels = read_jpegs(dataset, split, count)
        read = time.perf_counter()
        with ThreadPoolExecutor(CORES) as threads:
            self.host = decoded(self.encoded, threads)
        self.device = torch.from_numpy(self.host).permute(0, 3, 1, 2).contiguous().to(device)
        self.labels = labels.to(device)
        synchronize(device)
        self.seconds = {"read": read - start, "decode": time.perf_counter() - read}

    def __len__(self):
        return len(self.encoded)


class Batches:
    """Views of any step: its images and their records follow from the seed and its number."""

    def __init__(self, images, recipe, tricks, batch_size, seed, device):
        self.images, self.recipe, self.tricks = images, recipe, tricks
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.per_epoch = len(images) // batch_size
        self.on_gpu = device.type == "cuda"
        self.options = {
            "dtype": torch.bfloat16 if tricks.bf16 else torch.float32,
            "channels_last": tricks.channels_last,
        }
        self._order = functools.lru_cache(maxsize=4)(self._shuffled)

    def __call__(self, steps):
        """Yield views (B, V, 3, 32, 32) on the device, of a range of steps."""
        waiting, threads = deque(), ThreadPoolExecutor(PRODUCERS)
        with ThreadPoolExecutor(CORES) as decoders:
            try:
                for step in steps:
                    waiting.append(threads.submit(self._prepare, step, decoders))
                    if len(waiting) > PREFETCH:
                        yield self._finish(*waiting.popleft().result())
                while waiting:
                    yield self._finish(*waiting.popleft().result())
            finally:
                threads.shutdown(cancel_futures=True)

    def _shuffled(self, epoch):
        rng = np.random.default_rng((self.seed, epoch))
        return rng.permutation(len(self.images))

    def _prepare(self, step, decoders):
        """Return what the host sends for a step, in pinned memory, and the records to render."""
        epoch, position = divmod(step, self.per_epoch)
        rows = self._order(epoch)[position * self.batch_size :][: self.batch_size]
        sides = np.full(len(rows), SIZE)
        records = self.recipe.draw(rows.tolist(), sides, sides, epoch=epoch, seed=self.seed)
        sent = torch.from_numpy(rows)
        if not self.tricks.decoded_copy:
            pixels = decoded([self.images.encoded[row] for row in rows], decoders)
            sent = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if not self.tricks.device_views:
            pixels = PixelBatch.of_arrays([self.images.host[row] for row in rows])
            sent = self.recipe.render(pixels, records, num_threads=CORES, **self.options)
        return sent.pin_memory() if self.on_gpu else sent, records

    def _finish(self, sent, records):
        """Bring a batch to the device, and render it there."""
        sent = sent.to(self.device, non_blocking=self.on_gpu)
        if not self.tricks.device_views:
            return sent
        pixels = self.images.device[sent] if self.tricks.decoded_copy else sent
        return self.recipe.render(list(pixels), records, engine="torch", **self.options)


class Learner:
    """Model and optimizer, and the steps that train them.

    Args:
        setting: an entry of PRESETS.
        schedule: one of its schedules.
        tricks: what is on.
        seed: of the weights.
        device: to train on.
    """

    def __init__(self, setting, schedule, tricks, seed, device):
        torch.compiler.reset()  # or the models of all arms would share one limit of recompilations
        torch.manual_seed(seed)
        self.tricks, self.schedule, self.device = tricks, schedule, device
        config = SSLViewsConfig(
            backbone="ssl_views_resnet18",
            model_args=setting["model_args"],
            image_size=SIZE,
            num_views=schedule["num_views"],
            projector_dim=setting["projector_dim"],
            loss=setting["loss"],
            orthogonality_weight=setting["orthogonality_weight"],
            recipe="cifar",
            recipe_args={"crop_scale": schedule["crop_scale"]},
        )
        self.recipe = ViewRecipe.for_config(config)
        self.model = SSLViewsForPreTraining(config).to(device)
        if tricks.channels_last:
            self.model.to(memory_format=torch.channels_last)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            weight_decay=setting["weight_decay"],
            fused=tricks.fused_optimizer,
            foreach=None if tricks.fused_optimizer else True,
        )
        self._embed = self._eager
        if tricks.compiled:
            self._embed = torch.compile(self._eager, fullgraph=True, dynamic=False)

    def _eager(self, rows):
        """Rows (B V, 3, 32, 32) to embeddings (B V, D)."""
        return self.model.projector(self.model.ssl_views.backbone(rows))

    def _autocast(self):
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16) if self.tricks.bf16 else nullcontext()

    def loss(self, views):
        """Return the loss of views (B, V, 3, 32, 32)."""
        with self._autocast():
            embeddings = self._embed(views.flatten(0, 1))
        return self.model.loss(embeddings.unflatten(0, views.shape[:2]).transpose(0, 1)).total

    def learning_rate(self, step):
        """One cycle: linearly up, and down along a cosine."""
        num_steps, highest = self.schedule["num_steps"], self.schedule["learning_rate"]
        warmup = max(1, round(WARMUP * num_steps))
        if step < warmup:
            return highest * (step + 1) / warmup
        return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))

    def step(self, views, number):
        """Train on one batch; return its loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def warm_up(self, batches):
        """Compile everything; return the seconds that the first step took more than a later one.

        Nothing is learned from these steps.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        times, start = [], time.perf_counter()
        for views in batches(range(3)):
            self.loss(views).backward()
            synchronize(self.device)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
        self.optimizer.zero_grad()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])
        return max(0.0, times[0] - times[-1])

    @torch.no_grad()
    def features(self, images):
        """Return frozen features (N, D) of one clean view per image, in float32."""
        mean, std = (
            torch.tensor(x, device=self.device)[:, None, None]
            for x in (self.recipe.mean, self.recipe.std)
        )
        self.model.eval()
        parts = [
            self.model.ssl_views.backbone((pixels.float() / 255 - mean) / std)
            for pixels in images.device.split(EVALUATED_AT_ONCE)
        ]
        self.model.train()
        return torch.cat(parts)

    def accuracy(self, train, test):
        """Return the test accuracy of the package's linear probe."""
        return linear_probe_accuracy(
            self.features(train), train.labels, self.features(test), test.labels
        )

    def state(self):
        """Return what `load` takes."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def covered(intervals):
    """Return the length of the union of intervals (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def kernel_seconds(trace):
    """Return the seconds in which at least one kernel or copy of a profiler's trace ran."""
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X" and e.get("cat") in KERNELS]
    return covered((e["ts"], e["ts"] + e["dur"]) for e in events) / 1e6


def device_busy(learner, batches, first_step, num_steps):
    """Train some steps under torch.profiler; return the share of wall time with kernels running."""
    from torch.profiler import ProfilerActivity, profile

    profiler, before = profile(activities=[ProfilerActivity.CUDA]), 5
    for number, views in enumerate(batches(range(first_step, first_step + before + num_steps))):
        if number == before:
            synchronize(learner.device)
            profiler.start()
            start = time.perf_counter()
        learner.step(views, first_step + number)
    synchronize(learner.device)
    seconds = time.perf_counter() - start
    profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        busy = kernel_seconds(json.loads(path.read_text()))
    share = busy / seconds if busy else None  # without a kernel, the profiler saw nothing
    return {"share": share, "num_steps": num_steps, "seconds": seconds}
