"""Rows may name files below folders that were allowed; nothing else is read or fetched."""

import io
import multiprocessing
import os
import pickle
import zipfile

import datasets
import fsspec
import numpy as np
import pyarrow.parquet
import pytest
import torch
from loader_cases import RECIPE, encoded, pixels
from torch.utils.data import DataLoader

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    allow_images_below,
    load_images,
)
from ssl_views.data import image_roots
from ssl_views.data.decode import decode_pixels
from ssl_views.data.image_limits import LIMITS, BadImage, ImageLimits
from ssl_views.data.image_roots import read_image_file

PICTURE = encoded(pixels(0, (12, 12)))
OUTSIDE = r"must lie below the folder of the data set or one that was allowed; got .*--image_root"
ADDRESS = r"below an address that was allowed; got .*pass --allow_remote_images, or load_images"


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch):
    monkeypatch.setattr(image_roots, "_allowed", set())


@pytest.fixture
def places(tmp_path):
    """Two folders with an image each: data/a.png and private/b.png."""
    for name in ("data/a.png", "private/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(PICTURE)
    return tmp_path


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that are opened, in the place of a network."""
    seen = []

    def opened(address, mode):
        seen.append(address)
        return io.BytesIO(PICTURE)

    monkeypatch.setattr(fsspec, "open", opened)
    return seen


def by_path(path):
    return decode_pixels({"bytes": None, "path": str(path)}, 3)


def parquet_of(path, *images):
    """A parquet file whose rows name images by path alone."""
    rows = [{"bytes": None, "path": str(image)} for image in images]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    pyarrow.parquet.write_table(table.data.table, path)  # `to_parquet` looks at the files
    return str(path)


class TestFiles:
    def test_a_file_below_an_allowed_folder_is_read(self, places):
        with pytest.raises(BadImage, match=OUTSIDE):
            by_path(places / "data" / "a.png")
        allow_images_below(places / "data")
        assert np.array_equal(by_path(places / "data" / "a.png"), pixels(0, (12, 12)))
        (places / "data" / "deep").mkdir()
        (places / "data" / "deep" / "a.png").symlink_to(places / "data" / "a.png")
        assert by_path(places / "data" / "deep" / "a.png").shape == (12, 12, 3)

    def test_a_relative_path_and_a_root_that_is_a_link(self, places, monkeypatch):
        (places / "link").symlink_to(places / "data")
        allow_images_below(places / "link")
        monkeypatch.chdir(places)
        for path in ("data/a.png", "./link/a.png", "private/../data/a.png"):
            assert by_path(path).shape == (12, 12, 3)

    def test_nothing_outside_is_read(self, places):
        allow_images_below(places / "data")
        (places / "data" / "link.png").symlink_to(places / "private" / "b.png")
        (places / "data" / "folder").symlink_to(places / "private")
        (places / "data-private").mkdir()  # begins like an allowed one
        (places / "data-private" / "b.png").write_bytes(PICTURE)
        for path in (
            places / "private" / "b.png",
            places / "data" / "link.png",
            places / "data" / "folder" / "b.png",
            places / "data" / ".." / "private" / "b.png",
            places / "data-private" / "b.png",
            "/etc/passwd",
            "~/a.png",
            "",
        ):
            with pytest.raises(BadImage, match=OUTSIDE):
                by_path(path)

    def test_what_is_no_image_file_is_not_opened(self, places):
        allow_images_below(places)
        os.mkfifo(places / "data" / "pipe.png")
        (places / "data" / "loop.png").symlink_to(places / "data" / "loop.png")
        for path, message in (
            ("pipe.png", "cannot be read: it is no regular file"),
            ("", "cannot be read: it is no regular file"),
            ("missing.png", "cannot be read: No such file: .*missing.png"),
            ("loop.png", "cannot be read"),
            ("a\0.png", "cannot be read: .*null"),
            ("x" * 300, "cannot be read: "),
        ):
            with pytest.raises(BadImage, match=message):
                by_path(places / "data" / path)

    def test_a_large_file_is_not_read(self, places, monkeypatch):
        allow_images_below(places)
        limits = ImageLimits(max_bytes=len(PICTURE) - 1)
        monkeypatch.setattr("pathlib.Path.open", None)
        with pytest.raises(
            BadImage, match=rf"at most {len(PICTURE) - 1:,} bytes; this one has mor"
        ):
            read_image_file(str(places / "data" / "a.png"), limits)

    def test_a_missing_root_gets_a_sentence(self, places):
        for path in (places / "none", places / "data" / "a.png"):
            with pytest.raises(ValueError, match=r"an existing folder only; got .*Check the path"):
                allow_images_below(path)


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "http://127.0.0.1:1/a.png",
            "https://example.org/a.png",
            "s3://bucket/a.png",
            "file:///etc/passwd",
            "FILE:///etc/passwd",
            "memory://a.png",
            "hf://datasets/a/b/c.png",
            "zip://a.png::http://127.0.0.1:1/a.zip",
        ],
    )
    def test_nothing_is_fetched_unless_it_was_allowed(self, address, places, fetched):
        allow_images_below(places)
        with pytest.raises(BadImage, match=ADDRESS):
            by_path(address)
        assert not fetched

    def test_an_allowed_network_is_used(self, fetched, places):
        source = parquet_of(places / "data" / "rows.parquet", "http://127.0.0.1:1/a.png")
        rows = load_images(source)
        dataset = MultiViewDataset(rows, epoch=0)
        with pytest.raises(BadImage, match=rf"image 0 \(http://127.0.0.1:1/a.png\): .*{ADDRESS}"):
            dataset.pixels([0], 3)
        load_images(source, allow_remote_images=True)
        assert dataset.pixels([0], 3)[0].heights == [12]
        for address in ("s3://bucket/a.png", "hf://datasets/a/b/c.png", "zip://a::https://b/c.zip"):
            assert by_path(address).shape == (12, 12, 3)
        assert len(fetched) == 4

    @pytest.mark.parametrize(
        "address",
        [
            "file:///etc/passwd",
            "local:///etc/passwd",
            "file:///etc/passwd::https://example.org/a",
            "simplecache::https://example.org/a",
            "zip://a.png::file:///etc/a.zip",
            "dir://a::https://example.org/a",
        ],
    )
    def test_an_allowed_network_is_not_this_machine(self, address, fetched):
        image_roots.allow_remote_images()
        with pytest.raises(BadImage, match=ADDRESS):
            by_path(address)
        assert not fetched

    def test_a_stream_reads_its_own_data_set_on_the_hub(self, fetched):
        image_roots.allow_hub_images("some/images")
        for address in (
            "hf://datasets/some/images/a.png",
            "hf://datasets/some/images@0123abc/train/a.png",
            "zip://cat/a.png::hf://datasets/some/images@0123abc/a.zip",
        ):
            assert by_path(address).shape == (12, 12, 3)
        fetched.clear()
        for address in (
            "hf://datasets/some/images-private/a.png",
            "hf://datasets/some/images/../private/a.png",
            "hf://datasets/some/images/%2e%2e/private/a.png",
            "hf://datasets/other/images/a.png",
            "zip://a.png::hf://datasets/other/images/a.zip",
            "zip://../a.png::hf://datasets/some/images/a.zip",
            "file:///etc/passwd::hf://datasets/some/images/a.zip",
            "hf://datasets/some/images/a::http://127.0.0.1:1/a.png",
        ):
            with pytest.raises(BadImage, match=ADDRESS):
                by_path(address)
        assert not fetched

    def test_an_archive_below_an_allowed_folder_is_read(self, places):
        for name in ("data/a.zip", "private/b.zip"):
            with zipfile.ZipFile(places / name, "w") as archive:
                archive.writestr("cat/a.png", PICTURE)
        allow_images_below(places / "data")
        assert by_path(f"zip://cat/a.png::{places}/data/a.zip").shape == (12, 12, 3)
        with pytest.raises(BadImage, match=OUTSIDE):
            by_path(f"zip://cat/a.png::{places}/private/b.zip")
        with pytest.raises(BadImage, match=r"the file cannot be read: .*none"):
            by_path(f"zip://none.png::{places}/data/a.zip")
        (places / "data" / "a.zip").write_bytes(b"no archive")
        with pytest.raises(BadImage, match="the file cannot be read: "):
            by_path(f"zip://cat/a.png::{places}/data/a.zip")

    def test_more_bytes_than_allowed_are_not_read(self, fetched):
        image_roots.allow_remote_images()
        with pytest.raises(BadImage, match="at most 20 bytes; this one has more"):
            read_image_file("http://127.0.0.1:1/a.png", ImageLimits(max_bytes=20))


class TestSources:
    def test_a_source_allows_its_own_folder(self, places, image_folder):
        rows = load_images(str(image_folder))
        assert rows[0]["image"]["bytes"] is None
        assert MultiViewDataset(rows).pixels([0], 3)[0].heights == [20]
        with pytest.raises(BadImage, match=OUTSIDE):
            by_path(places / "data" / "a.png")
        source = parquet_of(
            places / "data" / "rows.parquet", places / "data/a.png", places / "private/b.png"
        )
        dataset = MultiViewDataset(load_images(source))
        assert dataset.pixels([0], 3)[0].heights == [12]
        with pytest.raises(BadImage, match=rf"image 1 \(.*b.png\): a file {OUTSIDE}"):
            dataset.pixels([1], 3)
        allow_images_below(places / "private")
        assert dataset.pixels([1], 3)[0].heights == [12]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_images_in_an_archive_of_a_folder(self, tmp_path, streaming):
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for i in range(3):
                archive.writestr(f"cat/{i}.png", PICTURE)
        rows = load_images(str(tmp_path), streaming=streaming)
        if streaming:
            item = next(iter(MultiViewIterableDataset(rows)))
            assert decode_pixels(item["image"], 3).shape == (12, 12, 3)
        else:
            assert MultiViewDataset(rows).pixels([0, 1, 2], 3)[0].heights.tolist() == [12] * 3

    def test_a_link_out_of_an_image_folder_is_a_bad_image(self, image_folder, places):
        link = sorted(image_folder.rglob("*.png"))[0]
        link.unlink()
        link.symlink_to(places / "private" / "b.png")
        dataset = MultiViewDataset(load_images(str(image_folder)))
        with pytest.raises(BadImage, match=OUTSIDE):
            dataset.pixels([0], 3)
        allow_images_below(places / "private")
        assert dataset.pixels([0], 3)[0].heights == [12]

    def test_a_stream_of_links_out_gives_bad_images(self, places):
        rows = [{"image": {"bytes": None, "path": str(places / "private" / "b.png")}}]
        item = next(iter(MultiViewIterableDataset(rows)))
        with pytest.raises(BadImage, match=OUTSIDE):
            decode_pixels(item["image"], 3)
        allow_images_below(places / "private")
        allowed = next(iter(MultiViewIterableDataset(rows)))
        assert allowed["image"]["bytes"] == PICTURE
        small = MultiViewIterableDataset(rows, limits=ImageLimits(max_bytes=9))
        assert next(iter(small))["image"]["bytes"] is None


class TestProcesses:
    def test_what_is_allowed_is_pickled_with_a_data_set(self, places, monkeypatch):
        allow_images_below(places / "data")
        rows = [{"image": {"bytes": None, "path": str(places / "data" / "a.png")}}]
        for dataset in (MultiViewDataset(rows, epoch=0), MultiViewIterableDataset(rows)):
            pickled = pickle.dumps(dataset)
            with monkeypatch.context() as patch:
                patch.setattr(image_roots, "_allowed", set())
                pickle.loads(pickled)
                assert read_image_file(rows[0]["image"]["path"], LIMITS) == PICTURE

    @pytest.mark.slow
    def test_a_spawned_worker_reads_them(self, places):
        allow_images_below(places / "data")
        rows = [{"image": {"bytes": None, "path": str(places / "data" / "a.png")}}] * 4
        dataset, collator = MultiViewDataset(rows, epoch=0), MultiViewCollator(RECIPE)
        loader = DataLoader(
            dataset,
            batch_size=4,
            collate_fn=collator,
            num_workers=1,
            multiprocessing_context=multiprocessing.get_context("spawn"),
        )
        (batch,) = loader
        assert torch.equal(
            batch["pixel_values"], collator(dataset.__getitems__(range(4)))["pixel_values"]
        )
