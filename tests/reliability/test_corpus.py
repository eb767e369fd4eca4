"""Files good and bad: each gives the pixels that it shows, or is named, counted and replaced."""

import gc
import io
import json
import re
import threading

import numpy as np
import pytest
import torch
from corpus import (
    TEN_KINDS,
    assert_as_expected,
    entries,
    entries_of,
    odd_paths,
    write_bad,
    write_images,
)
from fuzz import in_child
from PIL import Image
from torch.utils.data import DataLoader

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    MultiViewLoader,
    PixelCache,
    ViewRecipe,
)
from ssl_views.cli import main
from ssl_views.data import decode
from ssl_views.data.bad_images import BadImages, TooManyBadImages
from ssl_views.data.decode import BadImage, ImageLimits, PixelFormatError, decode_pixels
from ssl_views.data.image_roots import allow_images_below
from ssl_views.data.sources import load_images

# These tell users what Pillow thinks of a file; here only what comes out counts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

RECIPE = ViewRecipe.named("cifar", image_size=16, num_views=2)


def names(items):
    return [entry.name for entry in items]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestDecoder:
    @pytest.mark.parametrize("entry", entries_of(""), ids=lambda entry: entry.name)
    def test_pixels(self, entry):
        pixels = decode_pixels(entry.data, 3, ImageLimits(**entry.limits))
        assert_as_expected(entry, pixels)
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("entry", entries_of("BadImage"), ids=lambda entry: entry.name)
    def test_bad_images(self, entry):
        with pytest.raises(BadImage, match=entry.reason) as caught:
            decode_pixels(entry.data, 3, ImageLimits(**entry.limits))
        assert not isinstance(caught.value, PixelFormatError)

    @pytest.mark.parametrize("entry", entries_of("PixelFormatError"), ids=lambda entry: entry.name)
    def test_pixel_formats(self, entry):
        with pytest.raises(PixelFormatError, match=entry.reason):
            decode_pixels(entry.data, 3)

    def test_the_corpus_holds_what_the_table_lists(self):
        assert len(entries()) >= 90
        assert len(set(names(entries()))) == len(entries())
        assert len(entries_of("BadImage")) >= 30
        assert len(entries_of("")) >= 40

    @pytest.mark.parametrize(
        ("value", "error", "reason"),
        [
            (None, BadImage, "no image"),
            ({"bytes": None, "path": None}, BadImage, "no image"),
            (np.zeros((20, 20, 3), np.float32), PixelFormatError, "float32"),
            (np.zeros((20, 20), np.int32), PixelFormatError, "int32"),
            (np.zeros((20, 20, 4), np.uint8), PixelFormatError, "4 channels; the model takes 3"),
            (np.zeros((20, 20, 5), np.uint8), PixelFormatError, "5 channels; the model takes 3"),
            (np.zeros((20, 7, 3), np.uint8), BadImage, "8 pixels"),
            (np.zeros((0, 20, 3), np.uint8), BadImage, "pixels"),
            (np.zeros((2, 20, 20, 3), np.uint8), BadImage, "shape"),
            ("text", BadImage, "shape"),
        ],
        ids=lambda value: str(getattr(value, "shape", value))[:20],
    )
    def test_values_that_are_no_files(self, value, error, reason):
        with pytest.raises(error, match=reason):
            decode_pixels(value, 3)

    def test_paths_that_are_no_files(self, tmp_path):
        """A pipe that nobody writes to must not be waited for."""
        paths = odd_paths(tmp_path / "odd")
        allow_images_below(tmp_path)
        errors = {}

        def work():
            for name, path in paths.items():
                try:
                    decode_pixels({"bytes": None, "path": str(path)}, 3)
                except BadImage as error:
                    errors[name] = str(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert set(errors) == set(paths)
        assert all("cannot be read" in error for error in errors.values())

    def test_all_bad_files_together_take_little_memory(self):
        """The bombs among them hold up to four billion pixels."""

        def work():
            for entry in entries_of("BadImage"):
                try:
                    decode_pixels(entry.data, 3, ImageLimits(**entry.limits))
                except BadImage:
                    continue
                return entry.name
            return "all bad"

        result, seconds, megabytes = in_child(work)
        assert result == "all bad"
        assert seconds < 2
        assert megabytes < 32


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """A folder of all files that the default limits judge, among a hundred good ones."""
    folder = tmp_path_factory.mktemp("corpus") / "images"
    write_images(folder, 100)
    for entry in entries():
        if not entry.limits and entry.error != "PixelFormatError":
            (folder / entry.name).write_bytes(entry.data)
    return folder


@pytest.fixture
def rows(corpus_folder):
    return load_images(str(corpus_folder))


def of_rows(rows):
    """Return the entry of each row, None for the hundred others."""
    known = {entry.name: entry for entry in entries()}
    return [known.get(row["image"]["path"].rpartition("/")[2]) for row in rows]


def bad_rows(rows):
    return [i for i, entry in enumerate(of_rows(rows)) if entry is not None and entry.error]


def batches(dataset, bad, *, threads=0, epoch_seed=None, **options):
    collator = MultiViewCollator(RECIPE, seed=3, bad_images=bad)
    if epoch_seed is not None:
        generator = torch.Generator().manual_seed(epoch_seed)
        options |= {"shuffle": True, "generator": generator}
    if threads:
        items = DataLoader(dataset, 16, collate_fn=MultiViewLoader.items, **options)
        loader = MultiViewLoader(items, collator, num_threads=threads)
    else:
        loader = DataLoader(dataset, 16, collate_fn=collator, **options)
    return [batch["pixel_values"].clone() for batch in loader]


class TestFolder:
    def test_good_files_give_their_pixels_and_bad_ones_a_line(self, rows, tmp_path):
        bad = BadImages(tmp_path / "bad.jsonl")
        dataset = MultiViewDataset(rows, epoch=0)
        pixels, indices = dataset.pixels(range(len(rows)), 3, bad_images=bad)
        assert indices == list(range(len(rows)))
        for entry, image in zip(of_rows(rows), pixels.tensors(), strict=True):
            if entry is not None and not entry.error:
                assert_as_expected(entry, image.permute(1, 2, 0).numpy())
        listed = lines(tmp_path / "bad.jsonl")
        assert sorted(line["index"] for line in listed) == bad_rows(rows)
        assert len(bad) == len(listed) >= 30
        for line in listed:
            assert set(line) == {"index", "path", "reason"}
            entry = of_rows(rows)[line["index"]]
            assert line["path"] == rows[line["index"]]["image"]["path"]
            assert line["path"].endswith("/" + entry.name)
            assert re.search(entry.reason, line["reason"]), line

    def test_views_are_those_of_the_pixels(self, rows, tmp_path):
        """A bad file changes no view of another image."""
        bad = BadImages(tmp_path / "bad.jsonl")
        views = torch.cat(batches(MultiViewDataset(rows, epoch=0), bad))
        good = [i for i in range(len(rows)) if i not in bad]
        decoded = [
            {"image": decode_pixels(rows[i]["image"], 3), "index": i, "epoch": 0} for i in good
        ]
        expected = MultiViewCollator(RECIPE, seed=3)(decoded)["pixel_values"]
        torch.testing.assert_close(views[good], expected, rtol=0, atol=1e-6)
        assert torch.isfinite(views).all()

    def test_another_image_takes_the_place_of_a_bad_one(self, rows):
        """With views drawn for the index of the bad one."""
        bad = BadImages()
        dataset = MultiViewDataset(rows, epoch=0)
        views = torch.cat(batches(dataset, bad))
        good = [i for i in range(len(rows)) if i not in bad]
        images = [decode_pixels(rows[i]["image"], 3) for i in good]
        for place in bad_rows(rows)[:3]:
            items = [{"image": image, "index": place, "epoch": 0} for image in images]
            candidates = MultiViewCollator(RECIPE, seed=3)(items)["pixel_values"]
            nearest = (candidates - views[place]).flatten(1).abs().amax(1).min()
            assert nearest < 1e-6

    @pytest.mark.parametrize(
        "how",
        [{"num_workers": 2}, {"threads": 1}, {"threads": 3}, {"cache": True}],
        ids=["workers", "thread", "threads", "cache"],
    )
    def test_same_batches_whoever_makes_them(self, rows, tmp_path, how):
        how = dict(how)
        expected = batches(
            MultiViewDataset(rows, epoch=2), BadImages(tmp_path / "first.jsonl"), epoch_seed=1
        )
        plain, cache = MultiViewDataset(rows, epoch=2), None
        if how.pop("cache", False):
            cache = PixelCache.of(plain, 3, limit_bytes=10**9)
        dataset = MultiViewDataset(rows, epoch=2, cache=cache)
        bad = BadImages(tmp_path / "second.jsonl")
        found = batches(dataset, bad, epoch_seed=1, **how)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        first, second = (lines(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
        assert len(bad) == len(bad_rows(rows))
        by_index = {line["index"]: line for line in second}
        assert by_index == {line["index"]: line for line in first}
        assert len(second) >= len(first)

    def test_other_epochs_try_other_images(self, rows):
        place = bad_rows(rows)[0]
        drawn = set()
        for epoch in range(6):
            dataset = MultiViewDataset(rows, epoch=epoch)
            pixels, _ = dataset.pixels([place], 3, bad_images=BadImages(), epoch=epoch)
            again, _ = dataset.pixels([place], 3, bad_images=BadImages(), epoch=epoch)
            (image,), (same,) = pixels.tensors(), again.tensors()
            assert torch.equal(image, same)
            drawn.add(image.numpy().tobytes())
        assert len(drawn) >= 3

    def test_without_a_list_the_error_names_index_and_path(self, rows):
        dataset = MultiViewDataset(rows, epoch=0)
        collator = MultiViewCollator(RECIPE, seed=3)
        for place in bad_rows(rows):
            with pytest.raises(BadImage, match=f"^image {place} ") as caught:
                collator(dataset.__getitems__([place]))
            assert rows[place]["image"]["path"] in str(caught.value)
            assert "Remove or repair it" in str(caught.value)

    @pytest.mark.parametrize("name", ["float.tif", "int32.tif"])
    def test_pixel_formats_always_stop(self, tmp_path, name):
        folder = tmp_path / "images"
        write_images(folder, 10)
        write_bad(folder, [name])
        bad = BadImages(tmp_path / "bad.jsonl")
        with pytest.raises(PixelFormatError, match=rf"image 0 .*bad_{name}.*(?i:scale)"):
            batches(MultiViewDataset(load_images(str(folder)), epoch=0), bad)
        assert len(bad) == 0

    def test_limits_of_the_collator(self, tmp_path):
        write_images(tmp_path / "images" / "small", 12, side=12)
        write_images(tmp_path / "images" / "large", 3, side=24)
        dataset = MultiViewDataset(load_images(str(tmp_path / "images")), epoch=0)
        for limits, count in (
            (ImageLimits(), 0),
            (ImageLimits(min_side=12), 0),
            (ImageLimits(max_pixels=24 * 28), 0),
            (ImageLimits(max_pixels=24 * 28 - 1), 3),
            (ImageLimits(max_bytes=1000), 3),
        ):
            bad = BadImages()
            collator = MultiViewCollator(RECIPE, bad_images=bad, limits=limits)
            list(DataLoader(dataset, 15, collate_fn=collator))
            assert len(bad) == count

    def test_a_stream(self, corpus_folder, tmp_path, rows):
        stream = load_images(str(corpus_folder), streaming=True)
        bad = BadImages(tmp_path / "bad.jsonl")
        collator = MultiViewCollator(RECIPE, seed=3, bad_images=bad)
        # Each batch has to hold a good image to replace with.
        loader = iter(DataLoader(MultiViewIterableDataset(stream), 110, collate_fn=collator))
        for _ in range(2):
            assert torch.isfinite(next(loader)["pixel_values"]).all()
        paths = sorted(line["path"] for line in lines(tmp_path / "bad.jsonl"))
        assert paths == sorted(rows[i]["image"]["path"] for i in bad_rows(rows))


class TestTooMany:
    def test_more_than_allowed(self, tmp_path):
        write_images(tmp_path / "images", 40)
        write_bad(tmp_path / "images")
        rows = load_images(str(tmp_path / "images"))
        bad = BadImages(tmp_path / "bad.jsonl", most=9)
        with pytest.raises(TooManyBadImages, match=r"at most 9 .* got 10.*bad\.jsonl"):
            batches(MultiViewDataset(rows, epoch=0), bad)
        batches(MultiViewDataset(rows, epoch=0), BadImages(most=10))

    def test_none_is_good(self, tmp_path):
        (tmp_path / "images").mkdir()
        write_bad(tmp_path / "images")
        dataset = MultiViewDataset(load_images(str(tmp_path / "images")), epoch=0)
        with pytest.raises(TooManyBadImages, match="another image must take the place"):
            batches(dataset, BadImages())
        with pytest.raises(ValueError, match="an image that can be used; got none"):
            PixelCache.of(dataset, 3, limit_bytes=10**9)


@pytest.fixture
def source(tmp_path):
    """Forty good files and ten bad ones to learn from; twenty and two to evaluate on."""
    folder = tmp_path / "source"
    write_images(folder / "train", 40)
    write_bad(folder / "train")
    write_images(folder / "test", 20, seed=1)
    write_bad(folder / "test", TEN_KINDS[:2])
    return folder


class TestRuns:
    SMALL = ("--backbone", "test_resnet", "--num_views", "2", "--image_size", "32",
             "--projector_dim", "8")  # fmt: skip

    def pretrain(self, capsys, source, output, *more, steps=10):
        words = ["pretrain", "--dataset", str(source), *self.SMALL, "--max_steps", str(steps)]
        words += ["--per_device_train_batch_size", "10", "--logging_steps", "1"]
        words += ["--output_dir", str(output), *more]
        code = main(words)
        gc.collect()  # worker processes end with the error that refers to them
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_a_run_lists_them_and_ends_well(self, capsys, source, tmp_path):
        run = tmp_path / "run"
        code, _, error = self.pretrain(capsys, source, run)
        assert code == 0, error
        listed = lines(run / "bad_samples.jsonl")
        found = sorted(line["path"].rpartition("/bad_")[2] for line in listed)
        assert found == sorted(TEN_KINDS)
        assert all("/train/" in line["path"] and line["reason"] for line in listed)
        assert len({line["index"] for line in listed}) == 10
        (state,) = run.glob("checkpoint-10/trainer_state.json")
        history = json.loads(state.read_text())["log_history"]
        counts = [entry["bad_images"] for entry in history if "bad_images" in entry]
        assert counts[-1] == 10
        assert counts == sorted(counts)
        # A run's features are evaluated on what can be used.
        assert main(["evaluate", str(run), "--dataset", str(source)]) == 0

    def test_a_new_run_begins_a_new_list(self, capsys, source, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / "bad_samples.jsonl").write_text('{"index": 3, "path": "old", "reason": "old"}\n')
        words = ("--save_strategy", "no", "--resume_from_checkpoint", "false")
        assert self.pretrain(capsys, source, run, *words)[0] == 0
        assert {"old"}.isdisjoint(line["path"] for line in lines(run / "bad_samples.jsonl"))

    @pytest.mark.parametrize(
        "how",
        [
            ("--cache", "memory"),
            ("--dataloader_num_workers", "1"),
            ("--view_threads", "0"),
            ("--streaming",),
        ],
        ids=" ".join,
    )
    def test_however_images_are_read(self, capsys, source, tmp_path, how):
        words = ("--save_strategy", "no", *how)
        source = source / "train" if "--streaming" in how else source
        code, _, error = self.pretrain(capsys, source, tmp_path / "run", *words, steps=10)
        assert code == 0, error
        listed = lines(tmp_path / "run" / "bad_samples.jsonl")
        found = {line["path"].rpartition("/bad_")[2] for line in listed}
        assert found == set(TEN_KINDS)

    def test_splits_without_labels_are_streamed(self, source):
        rows = load_images(str(source), streaming=True)
        assert {"image"} <= set(next(iter(rows)))

    @pytest.mark.parametrize("how", [(), ("--dataloader_num_workers", "1")], ids=str)
    def test_on_bad_raise_names_the_file(self, capsys, source, tmp_path, how):
        words = ("--on_bad", "raise", "--save_strategy", "no", *how)
        code, _, error = self.pretrain(capsys, source, tmp_path / "run", *words)
        assert code == 2
        assert "image " in error
        assert "source/train/bad_" in error
        assert "Traceback" not in error

    @pytest.mark.parametrize("how", [(), ("--dataloader_num_workers", "1")], ids=str)
    def test_more_than_the_share_end_the_run(self, capsys, tmp_path, how):
        write_images(tmp_path / "many" / "train", 300)
        write_images(tmp_path / "many" / "test", 12, seed=1)
        for number in range(60):
            (tmp_path / "many" / "train" / f"bad_{number}.png").write_bytes(b"nothing")
        words = ("--per_device_train_batch_size", "60", "--save_strategy", "no", *how)
        code, _, error = self.pretrain(capsys, tmp_path / "many", tmp_path / "run", *words)
        assert code == 2
        assert "at most 50 images may be bad; got 51" in error
        assert "bad_samples.jsonl" in error
        assert "Traceback" not in error

    def test_a_pixel_format_ends_the_run(self, capsys, source, tmp_path):
        write_bad(source / "train", ["float.tif"])
        words = ("--save_strategy", "no")
        code, _, error = self.pretrain(capsys, source, tmp_path / "run", *words, steps=12)
        assert code == 2
        assert "bad_float.tif" in error
        assert "Scale the pixels" in error

    def test_on_bad_takes_two_words(self, capsys, source, tmp_path):
        code, _, error = self.pretrain(capsys, source, tmp_path / "run", "--on_bad", "ignore")
        assert code == 2
        assert "on_bad must be 'replace' or 'raise'; got 'ignore'" in error


def test_the_checks_can_fail(monkeypatch):
    """A decoder that takes every file, converts without care and fills the rest with grey."""

    def careless(value, num_channels, limits=None):
        image = Image.open(io.BytesIO(value))
        image.load()
        return np.array(image.convert("RGB"))

    monkeypatch.setattr(decode, "decode_pixels", careless)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    wrong = set()
    for entry in entries():
        if "bomb" in entry.name:
            continue
        try:
            pixels = decode.decode_pixels(entry.data, 3)
            assert not entry.error
            assert_as_expected(entry, pixels)
        except Exception:  # noqa: BLE001 (all kinds count)
            wrong.add(entry.name)
    for name in (
        "rgba.png",
        "grey_16_bit.png",
        "orientation_6.jpg",
        "palette_transparent.png",
        "float.tif",
        "int32.tif",
        "7_high.png",
        "above_the_byte_cap.png",
        "ppm.jpg",
    ):
        assert name in wrong
