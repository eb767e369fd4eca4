"""Batches of threads are those of a stock DataLoader; data sets and the collator they use."""

import gc
import io
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    MultiViewLoader,
    PixelCache,
    ViewRecipe,
    load_images,
)
from ssl_views.data import loading
from ssl_views.data.decode import ImageError
from ssl_views.data.loader import BufferPool
from ssl_views.native import why_missing

NATIVE = why_missing() is None
needs_library = pytest.mark.skipif(not NATIVE, reason="the native engine was not built")
RECIPE = ViewRecipe.named("cifar", image_size=16, num_views=2)
SIZES = [(9, 13), (16, 16), (31, 20), (12, 40), (8, 8)]


def pixels(number, size):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(array, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mixed():
    """Forty-two images of five sizes, every other one a JPEG."""
    images = [encoded(pixels(i, SIZES[i % 5]), "JPEG" if i % 2 else "PNG") for i in range(42)]
    columns = {"image": images, "index": [7 * i + 2**40 for i in range(42)]}
    return datasets.Dataset.from_dict(columns)


def plain(count=10, size=(12, 12)):
    return [{"image": pixels(i, size)} for i in range(count)]


def stock(dataset, collator=None, batch_size=8, **options):
    collator = collator or MultiViewCollator(RECIPE, seed=3)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, **options)


def threaded(dataset, collator=None, batch_size=8, loading=None, **options):
    collator = collator or MultiViewCollator(RECIPE, seed=3)
    items = DataLoader(dataset, batch_size=batch_size, collate_fn=MultiViewLoader.items, **options)
    return MultiViewLoader(items, collator, **(loading or {}))


def is_same(views, other, engine="native"):
    """Bit for bit; the torch engine rounds a view as its place among others has it."""
    if NATIVE and engine == "native":
        return torch.equal(views, other)
    limit = 1e-5 if views.dtype == torch.float32 else 0.02
    return torch.allclose(views, other, atol=limit, rtol=0)


def assert_same(loader, expected, engine="native"):
    found = list(loader)
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, views in batch.items():
            assert views.stride() == other[name].stride()
            assert views.dtype == other[name].dtype
            assert is_same(views, other[name], engine)


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ssl_views")]


def wait_until(condition, seconds=10.0):
    stop = time.monotonic() + seconds
    while not condition() and time.monotonic() < stop:
        time.sleep(0.001)
    assert condition()


class Counting(MultiViewDataset):
    """Counts the images that are decoded, and the most at once; may wait before each."""

    def __init__(self, rows, gate=None):
        super().__init__(rows, epoch=0)
        self.seen, self.most, self.gate, self._lock = 0, 0, gate, threading.Lock()

    def pixels(self, rows, num_channels):
        with self._lock:
            self.seen, self.most = self.seen + len(rows), max(self.most, len(rows))
        if self.gate is not None:
            self.gate(self.seen)
        return super().pixels(rows, num_channels)


class TestSameBatches:
    @pytest.mark.parametrize("prefetch", [1, 3])
    @pytest.mark.parametrize("num_threads", [1, 2, 4])
    @pytest.mark.parametrize("drop_last", [False, True])
    def test_mixed_sizes_in_random_order(self, mixed, drop_last, num_threads, prefetch):
        def options():
            generator = torch.Generator().manual_seed(5)
            return {"shuffle": True, "generator": generator, "drop_last": drop_last}

        dataset = MultiViewDataset(mixed, epoch=2)
        expected = list(stock(dataset, **options()))
        loader = threaded(
            dataset, loading={"num_threads": num_threads, "prefetch": prefetch}, **options()
        )
        assert len(expected) == len(loader) == (5 if drop_last else 6)
        assert_same(loader, expected)
        assert not our_threads()

    def test_two_passes_in_a_new_order_each(self, mixed):
        dataset = MultiViewDataset(mixed, epoch=0)
        reference = stock(dataset, shuffle=True, generator=torch.Generator().manual_seed(1))
        loader = threaded(dataset, shuffle=True, generator=torch.Generator().manual_seed(1))
        first, second = list(reference), list(reference)
        assert_same(loader, first)
        assert_same(loader, second)
        assert not torch.equal(first[0]["pixel_values"], second[0]["pixel_values"])

    @pytest.mark.parametrize("num_threads", [1, 3])
    @pytest.mark.parametrize("batch_size", [1, 5, 10, 30])
    def test_lists_and_any_batch_size(self, batch_size, num_threads):
        dataset = MultiViewDataset(plain(), epoch=0)
        expected = list(stock(dataset, batch_size=batch_size))
        loader = threaded(dataset, batch_size=batch_size, loading={"num_threads": num_threads})
        assert_same(loader, expected)

    def test_batches_larger_than_a_thread_takes_at_once(self):
        dataset = MultiViewDataset(plain(300, (4, 4)), epoch=0)
        assert_same(threaded(dataset, batch_size=290), list(stock(dataset, batch_size=290)))

    @pytest.mark.parametrize("num_threads", [1, 2])
    def test_streams(self, mixed, num_threads):
        """Six images a pass and batches of eight: every batch holds two epochs."""
        rows = mixed.select(range(6))

        def first(loader):
            iterator = iter(loader)
            batches = [next(iterator) for _ in range(4)]
            del iterator
            return batches

        def stream():
            return MultiViewIterableDataset(rows.to_iterable_dataset())

        expected = first(stock(stream()))
        found = first(threaded(stream(), loading={"num_threads": num_threads}))
        assert_same(found, expected)
        views = torch.cat([batch["pixel_values"] for batch in found])
        assert not torch.isclose(views[:6], views[6:12]).all()
        assert not our_threads()

    def test_a_list_of_lists_of_items(self):
        dataset = MultiViewDataset(plain(), epoch=0)
        batches = [[dataset[i] for i in range(5)], [dataset[9]]]
        collator = MultiViewCollator(RECIPE, seed=3)
        loader = MultiViewLoader(batches, collator)
        assert len(loader) == 2
        assert_same(loader, [collator(batch) for batch in batches])

    @pytest.mark.parametrize("folder", [None, "cache"])
    def test_decoded_images(self, mixed, folder, tmp_path):
        rows = MultiViewDataset(mixed, epoch=1)
        where = None if folder is None else tmp_path / folder
        cache = PixelCache.of(rows, 3, limit_bytes=10**6, folder=where)
        cached = MultiViewDataset(mixed, epoch=1, cache=cache)
        expected = list(stock(rows))
        assert_same(stock(cached), expected)
        assert_same(threaded(cached, loading={"num_threads": 2}), expected)

    def test_parts_and_unions_of_data_sets(self, mixed):
        dataset = MultiViewDataset(mixed, epoch=0)
        for part in (Subset(dataset, [5, 3, 30, 8]), ConcatDataset([dataset, dataset])):
            assert_same(threaded(part), list(stock(part)))

    def test_batch_samplers_of_arrays_and_tensors(self, mixed):
        cache = PixelCache.of(MultiViewDataset(mixed), 3, limit_bytes=10**6)
        expected = list(stock(MultiViewDataset(mixed, epoch=0), batch_size=2))[:2]
        for dataset in (
            MultiViewDataset(mixed, epoch=0),
            MultiViewDataset(mixed, epoch=0, cache=cache),
            MultiViewDataset([mixed[i] for i in range(8)], epoch=0),
        ):
            for kind in (np.array, torch.tensor, lambda x: [torch.tensor(i) for i in x]):
                items = DataLoader(
                    dataset,
                    batch_sampler=[kind([0, 1]), kind([2, 3])],
                    collate_fn=MultiViewLoader.items,
                )
                assert_same(MultiViewLoader(items, MultiViewCollator(RECIPE, 3)), expected)

    @pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_library), "torch"])
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_engine_dtype_and_layout(self, mixed, dtype, channels_last, engine):
        collator = MultiViewCollator(
            RECIPE, 3, engine=engine, dtype=dtype, channels_last=channels_last
        )
        dataset = MultiViewDataset(mixed.select(range(12)), epoch=0)
        expected = list(stock(dataset, collator))
        assert_same(threaded(dataset, collator, loading={"num_threads": 2}), expected, engine)
        views = expected[0]["pixel_values"]
        assert views.dtype == dtype
        assert views.shape == (8, 2, 3, 16, 16)
        memory = views.permute(0, 1, 3, 4, 2) if channels_last else views
        assert memory.is_contiguous()

    def test_local_views(self, mixed):
        recipe = ViewRecipe.named("global_local", image_size=32)
        dataset = MultiViewDataset(mixed, epoch=0)
        collator = MultiViewCollator(recipe)
        expected = list(stock(dataset, collator, batch_size=21))
        assert_same(
            threaded(dataset, collator, batch_size=21, loading={"num_threads": 2}), expected
        )

    def test_items_of_worker_processes(self, mixed):
        """Rows cross to this process; a new epoch reaches a process that lives on."""
        dataset = MultiViewDataset(mixed)
        loader = threaded(dataset, num_workers=1, persistent_workers=True)
        for epoch in (0, 1):
            dataset.epoch = epoch
            assert_same(loader, list(stock(MultiViewDataset(mixed, epoch=epoch))))


class TestOrderOfEvents:
    @pytest.mark.parametrize("num_threads", [1, 4])
    @pytest.mark.parametrize("prefetch", [1, 3])
    def test_so_many_batches_are_ahead_and_no_more(self, prefetch, num_threads):
        dataset = Counting(plain(24))
        started = []

        def batches():
            for i in range(0, 24, 2):
                started.append(i)
                yield dataset.__getitems__([i, i + 1])

        loader = MultiViewLoader(
            batches(), MultiViewCollator(RECIPE), num_threads=num_threads, prefetch=prefetch
        )
        assert not started
        for got, _ in enumerate(loader, 1):
            ahead = min(12, got + prefetch)
            assert len(started) == ahead
            wait_until(lambda ahead=ahead: dataset.seen == 2 * ahead)
            time.sleep(0.002)
            assert dataset.seen == 2 * ahead
        assert got == 12

    def test_a_new_epoch_gives_new_views(self, mixed):
        dataset = MultiViewDataset(mixed)
        loader = threaded(dataset)
        for epoch in (0, 1, 0):
            dataset.epoch = epoch
            assert_same(loader, list(stock(MultiViewDataset(mixed, epoch=epoch))))

    def test_two_passes_at_the_same_time(self, mixed):
        loader = threaded(MultiViewDataset(mixed, epoch=0))
        pairs = list(zip(loader, loader, strict=True))
        assert_same([a for a, _ in pairs], [b for _, b in pairs])
        assert len({x["pixel_values"].data_ptr() for pair in pairs for x in pair}) == 12


class TestEnds:
    @pytest.mark.parametrize("num_threads", [1, 3])
    def test_an_unreadable_image_is_named(self, num_threads):
        rows = [{"image": {"bytes": encoded(pixels(i, (8, 8))), "path": None}} for i in range(12)]
        rows[5] = {"image": {"bytes": b"broken", "path": "folder/a.jpg"}}
        loader = threaded(
            MultiViewDataset(rows, epoch=0), batch_size=2, loading={"num_threads": num_threads}
        )
        got = []
        with pytest.raises(ImageError, match=r"image 5 \(folder/a.jpg\): the bytes cannot be deco"):
            got.extend(loader)
        assert len(got) == 2  # the batches before
        assert not our_threads()

    def test_an_unreadable_image_of_a_stream_is_named(self, mixed):
        rows = [mixed[0], {"image": {"bytes": b"broken", "path": "b.jpg"}}]
        with pytest.raises(ImageError, match=r"image \d+ \(b.jpg\): the bytes cannot be decoded"):
            next(iter(threaded(MultiViewIterableDataset(rows))))
        assert not our_threads()

    def test_an_error_of_the_batches_reaches_the_caller(self):
        dataset = MultiViewDataset(plain(), epoch=0)

        def batches():
            yield dataset.__getitems__([0, 1])
            raise RuntimeError("no more disk")

        with pytest.raises(RuntimeError, match="no more disk"):
            list(MultiViewLoader(batches(), MultiViewCollator(RECIPE)))
        assert not our_threads()

    def test_an_unset_epoch_gets_a_sentence(self):
        with pytest.raises(RuntimeError, match=r"callbacks=\[EpochCallback\(dataset\)\]"):
            list(threaded(MultiViewDataset(plain())))
        assert not our_threads()

    def test_threads_end_when_the_caller_stops(self, mixed):
        loader = threaded(MultiViewDataset(mixed, epoch=0), batch_size=2)
        for _ in loader:
            assert our_threads()
            break
        assert not our_threads()

        iterator = iter(loader)
        next(iterator)
        assert our_threads()
        iterator.close()
        assert not our_threads()

    def test_threads_end_when_the_caller_raises(self, mixed):
        loader = threaded(MultiViewDataset(mixed, epoch=0), batch_size=2)

        def train():
            for _ in loader:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train()
        assert not our_threads()

    def test_work_that_was_not_begun_is_left_when_the_caller_stops(self):
        go_on = threading.Event()

        def gate(seen):
            if seen > 2:
                assert go_on.wait(10)

        dataset = Counting(plain(20), gate)
        iterator = iter(threaded(dataset, batch_size=2, loading={"prefetch": 4}))
        next(iterator)
        wait_until(lambda: dataset.seen == 4)
        timer = threading.Timer(0.05, go_on.set)  # closing waits for the batch in work alone
        timer.start()
        iterator.close()
        timer.join()
        assert dataset.seen == 4
        assert not our_threads()


SHARING = {
    "itself": lambda x: x,
    "a slice": lambda x: x[1:, :2],
    "one number": lambda x: x[3, 3],
    "transposed": lambda x: x.T,
    "flat": lambda x: x.view(-1),
    "other numbers": lambda x: x.view(torch.int32),
    "detached": lambda x: x.detach(),
    "an array": lambda x: x.numpy(),
    "a part of an array": lambda x: x.numpy()[1:3],
    "another library": lambda x: np.from_dlpack(x),
    "its storage": lambda x: x.untyped_storage(),
    "a dictionary": lambda x: {"pixel_values": [x[0]]},
    "saved by autograd": lambda x: (x * torch.ones(4, requires_grad=True)).sum(),
    "saved as a view": lambda x: (x[1] * torch.ones(4, requires_grad=True)).sum(),
}


class TestMemory:
    def test_it_is_used_again_for_any_dtype_and_shape(self):
        pool = BufferPool()
        memory = pool.empty((2, 3), torch.float32)
        assert memory.shape == (2, 3)
        assert memory.dtype == torch.float32
        address = memory.data_ptr()
        del memory
        again = pool.empty((3, 4), torch.bfloat16)
        assert again.data_ptr() == address
        assert again.shape == (3, 4)
        assert again.dtype == torch.bfloat16
        assert pool.empty((3, 4), torch.bfloat16).data_ptr() != address
        assert pool.empty((2, 4), torch.float32).data_ptr() != address

    @pytest.mark.parametrize("kind", SHARING)
    def test_it_is_left_alone_while_something_shares_it(self, kind):
        pool = BufferPool()
        memory = pool.empty((4, 4), torch.float32).fill_(1)
        address = memory.data_ptr()
        kept = SHARING[kind](memory)
        del memory
        others = [pool.empty((4, 4), torch.float32).fill_(7) for _ in range(3)]
        assert address not in [other.data_ptr() for other in others]
        if isinstance(kept, torch.Tensor) and kept.dtype == torch.float32 and not kept.grad_fn:
            assert (kept == 1).all()
        del kept, others
        later = [pool.empty((4, 4), torch.float32) for _ in range(4)]
        assert address in [memory.data_ptr() for memory in later]

    def test_gradients_are_those_of_the_batch_that_was_given(self):
        pool = BufferPool()
        weight = torch.ones(4, requires_grad=True)
        memory = pool.empty((4,), torch.float32).fill_(3)
        loss = (memory * weight).sum()
        del memory
        for _ in range(3):
            pool.empty((4,), torch.float32).fill_(9)
        loss.backward()
        assert weight.grad.tolist() == [3] * 4

    def test_it_may_be_given_back_by_another_thread(self):
        pool = BufferPool()
        held = [pool.empty((4,), torch.float32)]
        address = held[0].data_ptr()
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert pool.empty((4,), torch.float32).data_ptr() == address

    def test_it_outlives_its_pool(self):
        pool = BufferPool()
        memory = pool.empty((1000,), torch.float32).fill_(5)
        del pool
        gc.collect()
        assert (memory == 5).all()

    @pytest.mark.parametrize("keep", [lambda x: x, lambda x: x[1:, 0], lambda x: x.transpose(1, 2)])
    def test_batches_that_are_kept_are_not_written_to(self, mixed, keep):
        dataset = MultiViewDataset(mixed, epoch=0)
        loader = threaded(dataset, loading={"num_threads": 2, "prefetch": 3})
        kept = [keep(batch["pixel_values"]) for _ in range(3) for batch in loader]
        expected = [keep(batch["pixel_values"]) for batch in stock(dataset)] * 3
        assert all(is_same(a, b) for a, b in zip(kept, expected, strict=True))

    def test_no_more_is_taken_than_batches_are_ahead(self):
        dataset = MultiViewDataset(plain(4), epoch=0)
        batches = [dataset.__getitems__([0, 1, 2, 3])] * 40
        loader = MultiViewLoader(batches, MultiViewCollator(RECIPE), prefetch=2)
        addresses = [batch["pixel_values"].data_ptr() for _ in range(2) for batch in loader]
        assert len(addresses) == 80
        assert len(set(addresses)) <= 2 + 2 + 1  # one more where a thread is late to let go


class TestOnDevice:
    @pytest.mark.parametrize("num_threads", [1, 3])
    def test_views_are_those_of_the_torch_engine(self, num_threads):
        dataset = MultiViewDataset(plain(20), epoch=0)
        loading = {"num_threads": num_threads, "render_on_device": True, "device": "cpu"}
        found = list(threaded(dataset, loading=loading))
        for engine, limit in (("torch", 1e-6), ("native" if NATIVE else "auto", 1e-5)):
            expected = list(stock(dataset, MultiViewCollator(RECIPE, 3, engine=engine)))
            for batch, other in zip(found, expected, strict=True):
                assert batch.keys() == other.keys()
                torch.testing.assert_close(
                    batch["pixel_values"], other["pixel_values"], atol=limit, rtol=0
                )

    def test_streams_local_views_and_dtypes(self):
        recipe = ViewRecipe.named("global_local", image_size=32)
        rows = [{"image": encoded(pixels(i, (20, 24)))} for i in range(6)]
        collator = MultiViewCollator(recipe, dtype=torch.bfloat16, engine="torch")
        expected = next(iter(stock(MultiViewIterableDataset(rows), collator)))
        options = {"render_on_device": True}
        found = next(iter(threaded(MultiViewIterableDataset(rows), collator, loading=options)))
        assert list(found) == ["pixel_values", "local_pixel_values"]
        for name, views in found.items():
            assert views.dtype == torch.bfloat16
            torch.testing.assert_close(views, expected[name])

    def test_decoded_images(self):
        rows = MultiViewDataset(plain(), epoch=0)
        cached = MultiViewDataset(
            rows.rows, epoch=0, cache=PixelCache.of(rows, 3, limit_bytes=10**6)
        )
        options = {"render_on_device": True}
        assert_same(threaded(cached, loading=options), list(threaded(rows, loading=options)))

    def test_images_of_several_sizes_get_a_sentence(self, mixed):
        loader = threaded(MultiViewDataset(mixed, epoch=0), loading={"render_on_device": True})
        with pytest.raises(
            ValueError,
            match=r"needs images of one size.*got \[\(3, 8, 8\), \(3, 9, 13\), .*Render on the CPU",
        ):
            next(iter(loader))
        assert not our_threads()


class TestWhatItIsGiven:
    def test_the_length_is_that_of_the_batches(self):
        loader = threaded(MultiViewDataset(plain(10), epoch=0), batch_size=4)
        assert len(loader) == len(list(loader)) == 3

    def test_a_stream_has_no_length(self):
        with pytest.raises(TypeError, match="has no len"):
            len(threaded(MultiViewIterableDataset(plain())))

    @pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 2), (1, 0), (-1, 2)])
    def test_wrong_numbers_get_a_sentence(self, num_threads, prefetch):
        with pytest.raises(
            ValueError,
            match=rf"num_threads and prefetch must be at least 1; got {num_threads} and {prefetch}"
            r"\. For batches made when they are asked for, use a DataLoader with the collator",
        ):
            MultiViewLoader(
                [], MultiViewCollator(RECIPE), num_threads=num_threads, prefetch=prefetch
            )

    def test_plain_items_get_a_sentence(self):
        for batch, found in ((plain(2), r"\['image'\]"), ([], "no items")):
            with pytest.raises(
                ValueError,
                match=rf"takes items with image, index and epoch; got {found}\. Wrap your data "
                "set: MultiViewDataset",
            ):
                list(MultiViewLoader([batch], MultiViewCollator(RECIPE)))
        assert not our_threads()


class TestCollator:
    def test_local_views_are_apart(self, mixed):
        recipe = ViewRecipe.named("global_local", image_size=32)
        batch = MultiViewCollator(recipe)(MultiViewDataset(mixed, epoch=0).__getitems__([0, 1, 2]))
        assert {name: tuple(x.shape) for name, x in batch.items()} == {
            "pixel_values": (3, 2, 3, 32, 32),
            "local_pixel_values": (3, 6, 3, 14, 14),
        }
        assert all(torch.isfinite(x).all() for x in batch.values())

    def test_a_layout_and_a_dtype_change_nothing_else(self, mixed):
        items = MultiViewDataset(mixed, epoch=0).__getitems__(range(10))
        expected = MultiViewCollator(RECIPE)(items)["pixel_values"]
        last = MultiViewCollator(RECIPE, channels_last=True)(items)["pixel_values"]
        assert torch.equal(last, expected)
        assert last[0].is_contiguous(memory_format=torch.channels_last)
        half = MultiViewCollator(RECIPE, dtype=torch.bfloat16)(items)["pixel_values"]
        assert torch.equal(half, expected.bfloat16())

    @needs_library
    def test_engines_agree(self, mixed):
        items = MultiViewDataset(mixed, epoch=0).__getitems__(range(42))
        native, other = (
            MultiViewCollator(RECIPE, engine=engine)(items)["pixel_values"]
            for engine in ("native", "torch")
        )
        torch.testing.assert_close(native, other, atol=1e-5, rtol=0)

    def test_large_images_are_taken_a_few_at_a_time(self, monkeypatch):
        dataset = Counting(plain(30))
        expected = MultiViewCollator(RECIPE)(dataset.__getitems__(range(30)))["pixel_values"]
        assert dataset.most == 22  # eight first, then all others
        for pixels_at_once, most in ((12 * 12 * 3, 3), (1, 1)):
            monkeypatch.setattr(loading, "_PIXELS_AT_ONCE", pixels_at_once)
            collator = MultiViewCollator(RECIPE)
            for at_once in (8, most):
                dataset.most = 0
                found = collator(dataset.__getitems__(range(30)))["pixel_values"]
                assert is_same(found, expected)
                assert dataset.most == at_once

    def test_items_and_rows_give_the_same(self, mixed):
        dataset = MultiViewDataset(mixed, epoch=0)
        collator = MultiViewCollator(RECIPE)
        rows = collator(dataset.__getitems__([4, 30, 7]))
        items = collator([dataset[i] for i in (4, 30, 7)])
        assert is_same(rows["pixel_values"], items["pixel_values"])


class Rows(list):
    """Counts the rows that are read."""

    count = 0

    def __getitem__(self, place):
        self.count += 1
        return super().__getitem__(place)


class TestDataset:
    def test_rows_are_read_when_they_are_looked_at(self):
        rows = Rows(plain(10))
        dataset = MultiViewDataset(rows, epoch=4)
        items = dataset.__getitems__([3, 1, 8])
        assert len(items) == 3
        part = items[1:]
        assert len(part) == 2
        assert rows.count == 0
        assert part[0]["index"] == 1
        assert rows.count == 1
        assert np.array_equal(part[1]["image"], pixels(8, (12, 12)))
        assert [item["index"] for item in items] == [3, 1, 8]
        assert items[-1].keys() == {"image", "index", "epoch"}
        with pytest.raises(IndexError):
            items[3]

    def test_items_keep_the_epoch_they_were_asked_for_in(self):
        dataset = MultiViewDataset(plain(), epoch=1)
        items = dataset.__getitems__([0])
        dataset.epoch = 2
        assert items[0]["epoch"] == items[:1][0]["epoch"] == 1
        assert dataset[0]["epoch"] == 2

    def test_reading_a_batch_gives_what_reading_rows_gives(self, mixed, image_folder, tmp_path):
        folder = load_images(str(image_folder))
        assert folder[0]["image"]["bytes"] is None  # paths alone
        files = [Path(image["path"]).read_bytes() for image in folder["image"]]
        datasets.Dataset.from_dict(
            {"image": [{"bytes": file, "path": None} for file in files]},
            features=datasets.Features({"image": datasets.Image()}),
        ).to_parquet(tmp_path / "a.parquet")
        stored = load_images(str(tmp_path / "a.parquet"))
        assert stored[0]["image"]["bytes"] is not None
        images = mixed.select_columns(["image"])
        for rows in (
            folder,
            stored,
            folder.shuffle(seed=0),
            stored.select([5, 3, 29, 3, 11]),
            stored.select(range(4, 20)),
            datasets.concatenate_datasets([stored, stored.shuffle(seed=1)]),
            mixed,
            mixed.cast_column("image", datasets.Value("large_binary")),
            images,
            images.shuffle(seed=2),
            images.cast_column("image", datasets.Image(decode=False)),
            mixed.to_list(),
            plain(),
        ):
            dataset = MultiViewDataset(rows, epoch=0)
            for places in ([2, 0, 4], [1], range(1, 4), np.array([4, 4, 0])):
                values, indices = dataset.read(places)
                members = [rows[int(i)] for i in places]
                assert list(indices) == [
                    member.get("index", i) for member, i in zip(members, places, strict=True)
                ]
                for value, member in zip(values, members, strict=True):
                    assert np.array_equal(value, member["image"])

    def test_another_column_is_read(self, mixed):
        rows = mixed.rename_column("image", "photo").add_column("image", [b""] * 42)
        assert MultiViewDataset(rows, "photo", epoch=0)[3]["image"] == mixed[3]["image"]

    def test_a_transform_of_the_rows_is_applied(self, mixed):
        rows = mixed.with_transform(
            lambda rows: {"image": [pixels(0, (4, 4))] * len(rows["image"])}
        )
        assert np.array_equal(MultiViewDataset(rows, epoch=0)[3]["image"], pixels(0, (4, 4)))

    def test_a_process_sees_the_epoch(self, mixed):
        dataset = MultiViewDataset(mixed.select(range(4)))
        loader = DataLoader(
            dataset, collate_fn=list, batch_size=2, num_workers=1, persistent_workers=True
        )
        for epoch in (3, 5):
            dataset.epoch = epoch
            assert [item["epoch"] for batch in loader for item in batch] == [epoch] * 4

    def test_a_cache_of_other_rows_gets_a_sentence(self):
        cache = PixelCache.of(MultiViewDataset(plain(5)), 3, limit_bytes=10**6)
        with pytest.raises(
            ValueError,
            match=r"must hold the images of the rows; got 5 images and 4 rows\. Make it from",
        ):
            MultiViewDataset(plain(4), cache=cache)
