"""Data sets and the collator they use."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from loader_cases import RECIPE, Counting, is_same, needs_library, pixels, plain
from torch.utils.data import DataLoader

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    PixelCache,
    ViewRecipe,
    load_images,
)
from ssl_views.data import collator as collator_module


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
            monkeypatch.setattr(collator_module, "_PIXELS_AT_ONCE", pixels_at_once)
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
