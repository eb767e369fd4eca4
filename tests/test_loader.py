"""Batches of threads are those of a stock DataLoader, in order, and end well."""

import threading
import time

import numpy as np
import pytest
import torch
from loader_cases import (
    RECIPE,
    Counting,
    assert_same,
    encoded,
    needs_library,
    our_threads,
    pixels,
    plain,
    stock,
    threaded,
    wait_until,
)
from torch.utils.data import ConcatDataset, DataLoader, Subset

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    MultiViewLoader,
    PixelCache,
    ViewRecipe,
)
from ssl_views.data.image_limits import BadImage


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
        dataset = MultiViewDataset(plain(300, (8, 8)), epoch=0)
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

    def test_worker_processes_are_refused(self, mixed):
        with pytest.raises(ValueError, match=r"no worker processes.*got num_workers=1"):
            threaded(MultiViewDataset(mixed), num_workers=1)


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
        with pytest.raises(BadImage, match=r"image 5 \(folder/a.jpg\): the bytes cannot be deco"):
            got.extend(loader)
        assert len(got) == 2  # the batches before
        assert not our_threads()

    def test_an_unreadable_image_of_a_stream_is_named(self, mixed):
        rows = [mixed[0], {"image": {"bytes": b"broken", "path": "b.jpg"}}]
        with pytest.raises(BadImage, match=r"image \d+ \(b.jpg\): the bytes cannot be decoded"):
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
