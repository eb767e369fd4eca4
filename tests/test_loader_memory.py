"""Memory, devices and wrong arguments of the loader with threads."""

import gc
import threading

import numpy as np
import pytest
import torch
from loader_cases import (
    NATIVE,
    RECIPE,
    assert_same,
    encoded,
    is_same,
    our_threads,
    pixels,
    plain,
    stock,
    threaded,
)

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    MultiViewLoader,
    PixelCache,
    ViewRecipe,
)
from ssl_views.data.loader import BufferPool

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
