"""Cached pixels are the decoded ones, and only those of the rows at hand."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ssl_views import MultiViewDataset, PixelCache, allow_images_below, load_images
from ssl_views.data import cache as cache_module
from ssl_views.data.decode import decode_pixels
from ssl_views.data.image_limits import BadImage, ImageLimits, PixelFormatError

SIZES = [(9, 13), (16, 16), (31, 20), (12, 40), (8, 8)]
LIMIT = 10**6
Usage = namedtuple("Usage", "total used free")


def encoded(array, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(number, size=(8, 8)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def rows_of(count=40, **columns):
    """PNG and JPEG images of five sizes, some turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = []
    for i in range(count):
        array = pixels(i, SIZES[i % 5])
        images.append(
            encoded(array, "JPEG", exif=exif)
            if i % 3 == 0
            else encoded(array, "JPEG" if i % 3 == 1 else "PNG")
        )
    return datasets.Dataset.from_dict({"image": images, **columns})


@pytest.fixture(scope="module")
def rows():
    return rows_of(index=[2**60 + i for i in range(40)])


@pytest.fixture(scope="module")
def simple():
    """Ten images of 8 x 8 pixels: 1,920 bytes in colour."""
    return datasets.Dataset.from_dict({"image": [encoded(pixels(i)) for i in range(10)]})


def build(rows, num_channels=3, folder=None, limit_bytes=LIMIT, **options):
    dataset = MultiViewDataset(rows, options.pop("image_column", "image"))
    return PixelCache.of(dataset, num_channels, limit_bytes=limit_bytes, folder=folder, **options)


def images_in(cache, places=None):
    places = range(len(cache)) if places is None else places
    batch, indices = cache.batch(places, cache.num_channels)
    return [image.permute(1, 2, 0).numpy() for image in batch.tensors()], indices


def assert_holds(cache, rows, num_channels=3, column="image"):
    assert len(cache) == len(rows)
    images, indices = images_in(cache)
    assert indices == [row.get("index", i) for i, row in enumerate(rows)]
    for image, row in zip(images, rows, strict=True):
        assert np.array_equal(image, decode_pixels(row[column], num_channels))
    assert cache.num_bytes == sum(image.size for image in images)


@pytest.fixture
def decoding(monkeypatch):
    """Counts the images that are decoded; an error can be put in the place of one."""
    seen = []

    class Seen:
        fail_at = None
        count = property(lambda self: len(seen))

    def counted(value, num_channels, limits):
        seen.append(value)
        if Seen.fail_at == len(seen):
            raise KeyboardInterrupt
        return decode_pixels(value, num_channels, limits)

    monkeypatch.setattr("ssl_views.data.decode.decode_pixels", counted)
    monkeypatch.setattr(Seen, "clear", seen.clear, raising=False)
    return Seen()


class TestContents:
    @pytest.mark.parametrize("num_threads", [1, 3])
    @pytest.mark.parametrize("num_channels", [1, 3])
    @pytest.mark.parametrize("folder", [None, "some/folder"])
    def test_it_holds_what_decoding_gives(self, rows, tmp_path, folder, num_channels, num_threads):
        where = None if folder is None else tmp_path / folder
        cache = build(rows, num_channels, where, num_threads=num_threads)
        assert cache.num_channels == num_channels
        assert_holds(cache, rows, num_channels)

    @pytest.mark.parametrize("folder", [None, "cache"])
    def test_images_turned_by_exif_have_their_size(self, rows, tmp_path, folder):
        cache = build(rows, 3, None if folder is None else tmp_path / folder)
        assert images_in(cache, [0])[0][0].shape == (13, 9, 3)
        assert images_in(cache, [3])[0][0].shape == (40, 12, 3)

    def test_some_rows_in_any_order(self, rows):
        cache = build(rows)
        for places in ([30, 2, 2, 7], np.array([39, 0]), range(5, 8), [11]):
            images, indices = images_in(cache, places)
            assert indices == [2**60 + int(i) for i in places]
            for image, place in zip(images, places, strict=True):
                assert np.array_equal(image, decode_pixels(rows[int(place)]["image"], 3))

    def test_rows_of_arrays_and_of_five_channels(self):
        arrays = [
            np.random.default_rng(i).integers(0, 256, (i + 8, 9, 5), dtype=np.uint8)
            for i in range(7)
        ]
        members = [{"image": array, "index": 100 - i} for i, array in enumerate(arrays)]
        assert_holds(build(members, 5), members, 5)

    def test_files_of_a_folder(self, image_folder, tmp_path):
        rows = load_images(str(image_folder))
        build(rows, 3, tmp_path / "cache")
        assert_holds(build(rows, 3, tmp_path / "cache"), rows)

    def test_a_batch_outlives_the_cache(self, simple, tmp_path):
        for folder in (None, tmp_path):
            batch, _ = build(simple, 3, folder).batch([4], 3)
            assert np.array_equal(batch.tensors()[0].permute(1, 2, 0), pixels(4))

    def test_a_data_set_reads_from_it(self, rows, decoding):
        cache = build(rows)
        assert decoding.count == 40
        dataset = MultiViewDataset(rows, epoch=0, cache=cache)
        batch, indices = dataset.pixels([7, 3], 3)
        assert decoding.count == 40
        assert indices == [2**60 + 7, 2**60 + 3]
        assert batch.tensors()[1].shape == (3, 40, 12)

    def test_other_channels_get_a_sentence(self, simple):
        with pytest.raises(
            ValueError, match=r"must have the channels of the recipe; got 3 and 1\. Make it"
        ):
            build(simple).batch([0], 1)

    @pytest.mark.parametrize("folder", [None, "cache"])
    def test_an_unreadable_image_is_named(self, simple, tmp_path, folder):
        members = [{"bytes": row["image"], "path": None} for row in simple]
        where = None if folder is None else tmp_path / folder
        for wrong in (b"broken", members[6]["bytes"][:100]):  # known by its header, and not
            members[6] = {"bytes": wrong, "path": "folder/a.png"}
            features = datasets.Features({"image": datasets.Image(decode=False)})
            rows = datasets.Dataset.from_dict({"image": members}, features=features)
            cache = build(rows, 3, where, num_threads=2)
            message = (
                r"image 6 \(folder/a.png\): the bytes cannot be decoded: .*Remove or repair it"
            )
            for dataset in (MultiViewDataset(rows), MultiViewDataset(rows, cache=cache)):
                with pytest.raises(BadImage, match=message):
                    dataset.pixels([2, 6], 3)
                assert dataset.pixels([2, 5], 3)[1] == [2, 5]

    def test_wrong_channels_are_named(self):
        members = [{"image": np.zeros((9, 9, 3), dtype=np.uint8)}] * 3
        with pytest.raises(
            PixelFormatError, match="image 0: the image has 3 channels; the model takes"
        ):
            build(members, 5)


class Changing(list):
    """Rows whose second image grows when it is read again."""

    reads = 0

    def __getitem__(self, place):
        self.reads += 1
        side = 8 if place != 1 or self.reads <= len(self) else 9
        return {"image": np.zeros((side, side, 3), dtype=np.uint8)}


class TestRoom:
    def test_rows_that_change_are_refused(self):
        message = "row 1 must decode to the size of its header; got 243"
        with pytest.raises(ValueError, match=message):
            build(Changing(range(3)))

    def test_bytes_from_headers(self, rows):
        expected = sum(height * width for height, width in SIZES) * 8
        for channels in (1, 3):
            said = []
            assert build(rows, channels, on_size=said.append).num_bytes == channels * expected
            assert said == [channels * expected]

    def test_the_size_is_said_before_anything_is_decoded(self, rows, decoding):
        counts = []
        build(rows, on_size=lambda size: counts.append(decoding.count))
        assert counts == [0]

    @pytest.mark.parametrize("folder", [None, "cache"])
    def test_the_limit(self, simple, tmp_path, folder, decoding):
        where = None if folder is None else tmp_path / folder
        with pytest.raises(
            ValueError, match="must fit into the cache; they take 1,920 bytes, and 1,919 are allo"
        ):
            build(simple, 3, where, limit_bytes=1919)
        assert decoding.count == 0
        assert not (tmp_path / "cache").exists()
        build(simple, 3, where, limit_bytes=1920)
        assert decoding.count == 10

    def test_the_disk(self, simple, tmp_path, monkeypatch, decoding):
        asked = []

        def usage(free):
            monkeypatch.setattr(
                shutil, "disk_usage", lambda path: asked.append(path) or Usage(10**9, 0, free)
            )

        usage(1919)
        with pytest.raises(ValueError, match="1,920 bytes, and 1,000,000 are allowed, 1,919 free"):
            build(simple, 3, tmp_path / "a" / "b")
        assert asked == [tmp_path]  # what there is of the path
        assert decoding.count == 0
        assert not (tmp_path / "a").exists()
        build(simple, 3)  # memory needs no disk
        usage(1920)
        build(simple, 3, tmp_path / "a" / "b")

    def test_a_relative_folder(self, simple, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        build(simple, 3, "new/folder")
        assert (tmp_path / "new" / "folder" / "cache.json").is_file()


class TestStored:
    def test_it_is_opened_again(self, rows, tmp_path, decoding):
        build(rows, 3, tmp_path)
        assert decoding.count == 40
        again = build(rows, 3, tmp_path)
        assert decoding.count == 40
        assert_holds(again, rows)
        assert_holds(build(rows, 3, str(tmp_path)), rows)
        assert decoding.count == 40

    def test_it_is_made_again_for_other_rows(self, rows, tmp_path, decoding):
        changed = rows.map(lambda row: {"image": encoded(pixels(99))}, load_from_cache_file=False)
        for other in (
            rows.select(range(5, 25)),
            rows.select(range(6, 26)),
            rows.shuffle(seed=1),
            rows.shuffle(seed=2),
            rows.remove_columns("index"),
            rows_of(index=[2**60 + 2 * i for i in range(40)]),
            changed,
            rows,
        ):
            decoding.clear()
            assert_holds(build(other, 3, tmp_path), other)
            assert decoding.count == len(other)
            decoding.clear()
            assert_holds(build(other, 3, tmp_path), other)
            assert decoding.count == 0

    def test_it_is_made_again_for_other_channels(self, rows, tmp_path):
        for num_channels in (3, 1, 3):
            assert_holds(build(rows, num_channels, tmp_path), rows, num_channels)

    def test_it_is_made_again_for_another_column(self, tmp_path):
        rows = datasets.Dataset.from_dict(
            {
                side: [encoded(pixels(i)) for i in numbers]
                for side, numbers in (("left", range(5)), ("right", range(5, 10)))
            }
        )
        for column in ("left", "right", "left"):
            cache = build(rows, 3, tmp_path, image_column=column)
            assert_holds(cache, rows, column=column)

    def test_one_in_use_keeps_its_images_when_another_takes_its_folder(self, rows, tmp_path):
        """Of as many bytes: with fewer, reading the first would end the process."""
        turned = rows.select(range(39, -1, -1))
        first = build(rows, 3, tmp_path)
        second = build(turned, 3, tmp_path)
        assert_holds(second, turned)
        assert_holds(first, rows)

    def test_rows_without_a_fingerprint_get_a_sentence(self, simple, tmp_path):
        members = simple.to_list()
        with pytest.raises(
            ValueError,
            match=r"needs rows with a fingerprint, to know when it is out of date; got list\. Use "
            r"rows of datasets, or a cache in memory",
        ):
            build(members, 3, tmp_path)
        assert_holds(build(members, 3), members)


class TestInterrupted:
    @pytest.mark.parametrize("before", [False, True])
    def test_a_build_that_stopped_is_not_used(self, rows, tmp_path, decoding, before):
        """Neither over nothing nor over a cache of other rows."""
        if before:
            build(rows.select(range(39, -1, -1)), 3, tmp_path)
            decoding.clear()
        type(decoding).fail_at = 36  # in the second part
        with pytest.raises(KeyboardInterrupt):
            build(rows, 3, tmp_path)
        assert (tmp_path / "pixels.bin").is_file()
        assert not (tmp_path / "cache.json").exists()
        type(decoding).fail_at = None
        decoding.clear()
        assert_holds(build(rows, 3, tmp_path), rows)
        assert decoding.count == 40

    def test_a_build_over_an_unreadable_image_is_used_again(self, simple, tmp_path, decoding):
        build(simple, 3, tmp_path)
        broken = simple.select(range(9)).add_item({"image": simple[9]["image"][:100]})
        for _ in range(2):
            cache = build(broken, 3, tmp_path)
            assert cache.batch([9], 3)[0].heights == [0]
            assert images_in(cache, range(9))[1] == list(range(9))
        assert decoding.count == 10 + 10 + 1  # the bad image is looked at again
        assert_holds(build(simple, 3, tmp_path), simple)

    def test_it_is_made_again_when_a_bad_image_is_usable(self, tmp_path):
        """A folder was allowed, for one: the rows are the same."""
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "a.png").write_bytes(encoded(pixels(3)))
        members = [{"bytes": encoded(pixels(i)), "path": None} for i in range(4)]
        members[2] = {"bytes": None, "path": str(tmp_path / "later" / "a.png")}
        features = datasets.Features({"image": datasets.Image(decode=False)})
        rows = datasets.Dataset.from_dict({"image": members}, features=features)
        assert build(rows, 3, tmp_path).image(2) is None
        allow_images_below(tmp_path / "later")
        assert np.array_equal(build(rows, 3, tmp_path).image(2), pixels(3))

    @pytest.mark.parametrize("folder", [None, "cache"])
    def test_no_usable_image_gets_a_sentence(self, tmp_path, folder):
        where = None if folder is None else tmp_path / folder
        rows = datasets.Dataset.from_dict({"image": [b"none"] * 3})
        message = r"needs an image that can be used; got none\. First image 0: the bytes cannot be"
        with pytest.raises(ValueError, match=message):
            build(rows, 3, where)

    def test_it_is_made_again_for_other_limits(self, rows, tmp_path, decoding):
        for min_side, count in ((9, 32), (9, 40), (8, 80)):  # those of 8 x 8 are bad
            cache = build(rows, 3, tmp_path, limits=ImageLimits(min_side=min_side))
            assert decoding.count == count
            assert (cache.image(4) is None) == (min_side == 9)
        with pytest.raises(ValueError, match=r"the limits of the collator; got ImageLimits\(min_s"):
            cache.batch([0], 3, ImageLimits(min_side=9))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "cache.json").unlink(),
            lambda folder: (folder / "cache.json").write_text(""),
            lambda folder: (folder / "cache.json").write_text('{"format": 1, "num_ch'),
            lambda folder: (folder / "cache.json").write_text("[]"),
            lambda folder: (folder / "images.npz").unlink(),
            lambda folder: (folder / "images.npz").write_bytes(b""),
            lambda folder: (folder / "pixels.bin").unlink(),
            lambda folder: os.truncate(folder / "pixels.bin", 1919),
            lambda folder: os.truncate(folder / "pixels.bin", 0),
        ],
        ids=[
            "no stamp",
            "empty stamp",
            "half a stamp",
            "other stamp",
            "no sizes",
            "empty sizes",
            "no pixels",
            "fewer pixels",
            "empty pixels",
        ],
    )
    def test_a_damaged_cache_is_made_again(self, simple, tmp_path, damage, decoding):
        build(simple, 3, tmp_path)
        decoding.clear()
        damage(tmp_path)
        assert_holds(build(simple, 3, tmp_path), simple)
        assert decoding.count == 10

    def test_a_cache_of_another_version_is_made_again(self, simple, tmp_path, monkeypatch):
        build(simple, 3, tmp_path)
        monkeypatch.setattr(cache_module, "_FORMAT", -1)
        assert_holds(build(simple, 3, tmp_path), simple)
        assert json.loads((tmp_path / "cache.json").read_text())["format"] == -1


class TestFingerprint:
    @pytest.mark.slow
    def test_another_process_opens_what_this_one_stored(self, image_folder, tmp_path):
        rows = load_images(str(image_folder))
        code = (
            "import sys; from ssl_views import load_images\n"
            "for source in sys.argv[1:]: print(load_images(source)._fingerprint)\n"
            "print(load_images('digits').shuffle(seed=1).select([3, 1])._fingerprint)\n"
        )
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        found = subprocess.run(
            [sys.executable, "-c", code, str(image_folder), "digits"],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        digits = load_images("digits")
        assert found == [
            rows._fingerprint,
            digits._fingerprint,
            digits.shuffle(seed=1).select([3, 1])._fingerprint,
        ]

    def test_it_is_that_of_the_files(self, image_folder, tmp_path):
        rows = load_images(str(image_folder))
        build(rows, 3, tmp_path / "cache")
        assert load_images(str(image_folder))._fingerprint == rows._fingerprint
        file = next(image_folder.glob("*/*.png"))
        file.write_bytes(encoded(pixels(0, (20, 24))))
        changed = load_images(str(image_folder))
        assert changed._fingerprint != rows._fingerprint
        assert_holds(build(changed, 3, tmp_path / "cache"), changed)
        file.unlink()
        fewer = load_images(str(image_folder))
        assert len(fewer) == 29
        assert_holds(build(fewer, 3, tmp_path / "cache"), fewer)
