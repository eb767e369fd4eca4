"""A view depends on (seed, epoch, index, view): not on workers, order, or a resume."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerState

from ssl_views import (
    EpochCallback,
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    ViewRecipe,
)
from ssl_views.data.image_limits import BadImage, PixelFormatError
from ssl_views.data.sources import load_images

RECIPE = ViewRecipe.named("digits", image_size=8, num_views=2)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").select(range(64))


def batches(dataset, seed=0, **options):
    loader = DataLoader(
        dataset, batch_size=16, collate_fn=MultiViewCollator(RECIPE, seed), **options
    )
    return [batch["pixel_values"] for batch in loader]


def test_batches_have_views(digits):
    (first, *_) = batches(MultiViewDataset(digits, epoch=0))
    assert first.shape == (16, 2, 1, 8, 8)
    assert first.dtype == torch.float32
    assert not torch.equal(first[:, 0], first[:, 1])


def test_workers_change_nothing(digits):
    alone = torch.cat(batches(MultiViewDataset(digits, epoch=3)))
    workers = torch.cat(batches(MultiViewDataset(digits, epoch=3), num_workers=2))
    assert torch.equal(alone, workers)


def test_persistent_workers_see_a_new_epoch(digits):
    dataset = MultiViewDataset(digits)
    loader = DataLoader(
        dataset,
        batch_size=16,
        collate_fn=MultiViewCollator(RECIPE),
        num_workers=1,
        persistent_workers=True,
    )
    for epoch in (0, 1):
        dataset.epoch = epoch
        seen = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(seen, torch.cat(batches(MultiViewDataset(digits, epoch=epoch))))


def test_order_and_batch_do_not_matter(digits):
    dataset = MultiViewDataset(digits, epoch=1)
    collate = MultiViewCollator(RECIPE)
    together = collate([dataset[i] for i in (5, 40, 9)])["pixel_values"]
    for place, i in enumerate((5, 40, 9)):
        assert torch.equal(collate([dataset[i]])["pixel_values"][0], together[place])


def test_seed_and_epoch_matter(digits):
    base = batches(MultiViewDataset(digits, epoch=0))[0]
    assert not torch.isclose(base, batches(MultiViewDataset(digits, epoch=1))[0]).all()
    assert not torch.isclose(base, batches(MultiViewDataset(digits, epoch=0), seed=1)[0]).all()


def test_an_unset_epoch_gets_a_sentence(digits):
    with pytest.raises(RuntimeError, match=r"callbacks=\[EpochCallback\(dataset\)\]"):
        MultiViewDataset(digits)[0]


@pytest.mark.parametrize(
    ("fraction", "expected"), [(None, 0), (0.0, 0), (1.4, 1), (1.9999999, 2), (2.0, 2)]
)
def test_the_callback_sets_the_epoch(digits, fraction, expected):
    dataset = MultiViewDataset(digits)
    EpochCallback(dataset).on_epoch_begin(None, TrainerState(epoch=fraction), None)
    assert dataset.epoch == expected


def test_plain_sequences_work_too():
    rows = [{"picture": np.full((8, 8), i, dtype=np.uint8)} for i in range(4)]
    dataset = MultiViewDataset(rows, "picture", epoch=0)
    loader = DataLoader(dataset, batch_size=4, collate_fn=MultiViewCollator(RECIPE))
    assert next(iter(loader))["pixel_values"].shape == (4, 2, 1, 8, 8)


def test_a_stream_repeats_with_new_views_and_does_not_depend_on_workers(digits):
    def first(count, **options):
        stream = MultiViewIterableDataset(digits.to_iterable_dataset())
        loader = DataLoader(stream, batch_size=16, collate_fn=MultiViewCollator(RECIPE), **options)
        iterator = iter(loader)
        return [next(iterator)["pixel_values"] for _ in range(count)]

    views = first(8)
    assert not torch.isclose(views[0], views[4]).all()  # 64 images: batch 4 is the second pass
    assert all(torch.equal(a, b) for a, b in zip(views, first(8, num_workers=1), strict=True))


def test_two_workers_stream_the_same_views(digits):
    """In another order, for each worker reads its own shards."""

    def views(**options):
        stream = MultiViewIterableDataset(digits.to_iterable_dataset(num_shards=2))
        loader = DataLoader(stream, batch_size=16, collate_fn=MultiViewCollator(RECIPE), **options)
        iterator = iter(loader)
        images = torch.cat([next(iterator)["pixel_values"] for _ in range(4)])
        return sorted(images.sum(dim=(1, 2, 3, 4)).tolist())

    assert views() == pytest.approx(views(num_workers=2))


def test_a_batch_that_ends_a_pass_has_views_of_both_epochs(digits):
    stream = MultiViewIterableDataset(digits.select(range(10)).to_iterable_dataset())
    loader = DataLoader(stream, batch_size=16, collate_fn=MultiViewCollator(RECIPE))
    batch = next(iter(loader))["pixel_values"]
    assert not torch.isclose(batch[:6], batch[10:]).all()  # the same six images again


def test_a_stream_of_files_is_read(image_folder):
    recipe = ViewRecipe.named("cifar", num_views=2)
    stream = MultiViewIterableDataset(load_images(str(image_folder), streaming=True))
    loader = DataLoader(stream, batch_size=30, collate_fn=MultiViewCollator(recipe))
    assert next(iter(loader))["pixel_values"].shape == (30, 2, 3, 32, 32)


def test_an_empty_stream_ends():
    assert list(MultiViewIterableDataset([])) == []


def test_plain_rows_get_a_sentence(digits):
    with pytest.raises(
        ValueError, match=r"got \['image', 'index', 'label'\]. Wrap your data set: MultiViewDataset"
    ):
        MultiViewCollator(RECIPE)([digits[0]])


def test_an_unreadable_image_is_named():
    rows = [{"image": {"bytes": b"broken", "path": "folder/a.jpg"}}]
    with pytest.raises(BadImage, match=r"image 0 \(folder/a.jpg\): the bytes cannot be decoded"):
        MultiViewCollator(RECIPE)([MultiViewDataset(rows, epoch=0)[0]])


def test_a_stream_of_arrays_gets_a_sentence():
    stream = MultiViewIterableDataset([{"image": np.zeros((8, 8), dtype=np.uint8)}])
    with pytest.raises(
        PixelFormatError, match=r"must be encoded bytes; got ndarray. Turn streaming off"
    ):
        next(iter(stream))
