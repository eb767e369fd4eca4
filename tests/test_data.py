"""Sources, decoding, and the sentences for wrong input."""

import io
import struct

import datasets
import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from ssl_views.data.decode import decode_image, decode_pixels, num_channels_of
from ssl_views.data.image_limits import BadImage, ImageLimits, PixelFormatError
from ssl_views.data.sources import load_images, load_train_and_test, public_name, take_fraction
from ssl_views.evaluation.labels import find_labels

ENCODED = {"bytes": Value("binary"), "path": Value("string")}
RGB = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def test_digits_are_the_real_scans():
    from sklearn.datasets import load_digits

    rows = load_images("digits")
    assert len(rows) == 1797
    assert rows["label"] == load_digits().target.tolist()
    scan = decode_image(rows[5]["image"], 1)[0].numpy()
    assert np.array_equal(scan, np.round(load_digits().images[5] * 255 / 16))


def test_image_folder(image_folder):
    rows = load_images(str(image_folder))
    assert len(rows) == 30
    assert rows.features["label"].names == ["cat", "dog"]
    assert decode_image(rows[0]["image"], 3).shape == (3, 20, 24)


def test_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        PILImage.fromarray(RGB).save(tmp_path / f"{i}.png")
    assert load_images(str(tmp_path)).column_names == ["image", "index"]


def test_parquet_file_folder_and_saved_dataset(tmp_path):
    features = Features(
        {"photo": Image(), "kind": ClassLabel(names=["a", "b"]), "name": Value("string")}
    )
    columns = {
        "photo": [{"bytes": encoded(PILImage.fromarray(RGB)), "path": None}] * 4,
        "kind": [0, 1, 0, 1],
        "name": list("wxyz"),
    }
    rows = Dataset.from_dict(columns, features=features)
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "saved_splits")
    for source in ("parquet", "parquet/train.parquet", "saved", "saved_splits"):
        loaded = load_images(str(tmp_path / source))
        assert loaded.column_names == ["image", "label", "index"], source
        assert loaded["label"] == [0, 1, 0, 1]
        assert np.array_equal(decode_image(loaded[3]["image"], 3).permute(1, 2, 0), RGB)
    assert len(load_images(str(tmp_path / "saved_splits"), split="test")) == 1
    assert load_images(str(tmp_path / "saved"), image_column="photo").column_names[0] == "image"


def test_integer_labels_are_labels(tmp_path):
    image = encoded(PILImage.fromarray(RGB))
    columns = {"image": [image] * 3, "label": [4, 0, 4], "other": ["a", "b", "c"]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "plain.parquet")
    rows = load_images(str(tmp_path / "plain.parquet"))
    assert rows.column_names == ["image", "label", "index"]
    assert rows["label"] == [4, 0, 4]
    assert decode_image(rows[0]["image"], 3).shape == (3, 20, 24)


def test_arrays_of_any_channel_count(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 10, 12, 5), dtype=np.uint8)
    features = Features({"image": Array3D((10, 12, 5), "uint8")})
    Dataset.from_dict({"image": list(pixels)}, features=features).save_to_disk(tmp_path / "bands")
    rows = load_images(str(tmp_path / "bands"))
    assert num_channels_of(rows[0]["image"]) == 5
    assert np.array_equal(decode_image(rows[2]["image"], 5), pixels[2].transpose(2, 0, 1))


def test_cifar10_parquet_folder(cifar10):
    train, test = load_train_and_test(cifar10)
    assert (len(train), len(test)) == (50000, 10000)
    assert decode_image(train[0]["image"], 3).shape == (3, 32, 32)


def test_held_out_images_are_stratified_and_always_the_same():
    train, test = load_train_and_test("digits")
    again = load_train_and_test("digits")
    assert train["label"] == again[0]["label"]
    assert test["label"] == again[1]["label"]
    assert len(train) + len(test) == 1797
    shares = np.bincount(test["label"]) / np.bincount(load_images("digits")["label"])
    assert shares == pytest.approx([0.2] * 10, abs=0.01)
    both = {row["bytes"] for row in train["image"]} & {row["bytes"] for row in test["image"]}
    assert not both


def test_fraction_is_seeded_and_stratified():
    rows = load_images("digits")
    half = take_fraction(rows, 0.5, seed=1)
    assert half["label"] == take_fraction(rows, 0.5, seed=1)["label"]
    assert half["label"] != take_fraction(rows, 0.5, seed=2)["label"]
    assert np.bincount(half["label"]) / np.bincount(rows["label"]) == pytest.approx(
        [0.5] * 10, abs=0.01
    )
    assert len(take_fraction(rows, 1.0)) == 1797
    assert [rows[i]["image"] for i in half["index"][:20]] == half["image"][:20]


def test_evaluating_on_the_training_split_gets_a_sentence():
    with pytest.raises(ValueError, match="test_split must differ from split; got 'train' for both"):
        load_train_and_test("digits", test_split="train")


def test_no_more_is_held_out_than_evaluation_needs(monkeypatch):
    monkeypatch.setattr("ssl_views.data.sources._HELD_OUT_MOST", 100)
    train, test = load_train_and_test("digits")
    assert (len(train), len(test)) == (1697, 100)


def test_small_classes_are_held_out_together(tmp_path):
    """Fifty classes of two images: a fifth of each is less than one, of all it is twenty."""
    image = encoded(PILImage.fromarray(RGB))
    Dataset.from_dict({"image": [image] * 100, "label": sorted([*range(50)] * 2)}).to_parquet(
        tmp_path / "a.parquet"
    )
    train, test = load_train_and_test(str(tmp_path / "a.parquet"))
    assert (len(train), len(test)) == (80, 20)
    assert max(np.bincount(test["label"])) == 1


def test_streaming_gives_the_same_rows(image_folder):
    rows = list(load_images(str(image_folder), streaming=True))
    stored = load_images(str(image_folder))
    assert [set(row) for row in rows] == [{"image"}] * len(stored)
    assert torch.equal(decode_image(rows[7]["image"], 3), decode_image(stored[7]["image"], 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "no/such/path/here"},
            "no file or folder 'no/such/path/here', and it is not a Hub id",
        ),
        ({"dataset": "no-such-dataset"}, "no file or folder 'no-such-dataset', and the Hub gave"),
        (
            {"dataset": "digits", "split": "trian"},
            r"no split 'trian'; it has \['train'\]. Did you mean 'train'",
        ),
        (
            {"dataset": "digits", "image_column": "imgae"},
            r"no column 'imgae'; it has image \(Image\), label",
        ),
        (
            {"dataset": "digits", "image_column": "label"},
            "column 'label' of digits does not hold images",
        ),
    ],
)
def test_wrong_sources_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(**arguments)


def test_sources_without_images_get_a_sentence(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for folder in ("notes", "empty"):
        with pytest.raises(ValueError, match=r"no image|holds no images"):
            load_images(str(tmp_path / folder))
    with pytest.raises(ValueError, match=r"a.txt is a file, but not parquet"):
        load_images(str(tmp_path / "notes" / "a.txt"))
    Dataset.from_dict({"a": [], "image": []}).save_to_disk(tmp_path / "no_rows")
    with pytest.raises(ValueError, match=r"no_rows (holds no rows|is empty)"):
        load_images(str(tmp_path / "no_rows"))
    Dataset.from_dict({"image": []}, features=Features({"image": Image()})).to_parquet(
        tmp_path / "empty.parquet"
    )
    with pytest.raises(
        ValueError, match=r"split 'train' of .*empty.parquet is empty|no images that can be read"
    ):
        load_images(str(tmp_path / "empty.parquet"))
    two = Features({"left": Image(), "right": Image()})
    row = {"bytes": encoded(PILImage.fromarray(RGB)), "path": None}
    Dataset.from_dict({"left": [row], "right": [row]}, features=two).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"image columns \['left', 'right'\].*Set --image_column"):
        load_images(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="has 1 images, too few to hold some out"):
        load_train_and_test(str(tmp_path / "two"), image_column="left")


@pytest.mark.parametrize("fraction", [0, 1.5, -1])
def test_wrong_fractions_get_a_sentence(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        take_fraction(load_images("digits"), fraction)


def test_a_fraction_that_leaves_nothing_gets_a_sentence():
    with pytest.raises(ValueError, match=r"fraction of 0.0001 of 1797 images leaves none"):
        take_fraction(load_images("digits"), 0.0001)


def test_modes_are_converted():
    rgb = PILImage.fromarray(RGB)
    assert torch.equal(
        decode_image(encoded(rgb), 3), torch.from_numpy(RGB.transpose(2, 0, 1).copy())
    )
    assert decode_image(encoded(rgb), 1).shape == (1, 20, 24)
    grey = rgb.convert("L")
    assert torch.equal(decode_image(encoded(grey), 3)[2], decode_image(encoded(grey), 1)[0])
    assert (
        decode_image(encoded(rgb.convert("P")), 3)
        .float()
        .sub(torch.from_numpy(RGB).permute(2, 0, 1))
        .abs()
        .mean()
        < 40
    )
    clear = PILImage.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert (decode_image(encoded(clear), 3) == 255).all()  # transparent is white
    deep = PILImage.fromarray(np.full((9, 9), 257 * 77, dtype=np.uint16))
    assert (decode_image(encoded(deep), 1) == 77).all()
    exif = PILImage.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode_image(encoded(rgb, exif=exif), 3).shape == (3, 24, 20)
    assert decode_image(rgb, 3).shape == (3, 20, 24)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "cannot be decoded: they are no JPEG, PNG, WEBP, BMP, GIF or TIFF"),
        (b"<html>", "cannot be decoded"),
        (encoded(PILImage.fromarray(RGB), "PPM"), "cannot be decoded: they are no JPEG"),
        (encoded(PILImage.fromarray(RGB))[:300], "cannot be decoded"),
        (None, "the row has no image"),
        ({"bytes": None, "path": None}, "the row has no image"),
        ({"bytes": None, "path": "/no/such/file.png"}, "must lie below.*--image_root"),
        (np.zeros(4, dtype=np.uint8), r"shape \(H, W\) or \(H, W, C\); got \(4,\)"),
        (np.zeros((0, 9, 3), dtype=np.uint8), "at least 8 pixels; got 0 x 9"),
        (np.zeros((9, 7, 3), dtype=np.uint8), "at least 8 pixels; got 9 x 7. --min_image_side"),
        (PILImage.new("L", (9, 7)), "at least 8 pixels; got 7 x 9. --min_image_side"),
        (encoded(PILImage.new("L", (2048, 1025))), "a byte for every 512 pixels; got 1025 x 2048"),
    ],
)
def test_unusable_images_get_a_sentence(value, message):
    with pytest.raises(BadImage, match=message) as caught:
        decode_image(value, 3)
    assert not isinstance(caught.value, PixelFormatError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((9, 9, 3), dtype=np.float32), "must be uint8; got float32. Scale"),
        (np.zeros((9, 9, 5), dtype=np.uint8), "has 5 channels; the model takes 3. Set num_channel"),
        (encoded(PILImage.new("F", (9, 9)), "TIFF"), "mode 'F'.*Scale the pixels to uint8"),
        (encoded(PILImage.new("I", (9, 9)), "TIFF"), "mode 'I'.*Scale the pixels to uint8"),
    ],
)
def test_pixels_for_which_the_user_decides_get_a_sentence(value, message):
    with pytest.raises(PixelFormatError, match=message):
        decode_image(value, 3)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_sizes_are_looked_at_before_decoding(format, monkeypatch):
    image = encoded(PILImage.fromarray(RGB), format)
    assert decode_pixels(image, 3, ImageLimits(max_pixels=480)).shape == (20, 24, 3)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(BadImage, match=r"at most 479 pixels; got 20 x 24\. --max_image_pixels"):
        decode_pixels(image, 3, ImageLimits(max_pixels=479))
    with pytest.raises(BadImage, match=r"at least 21 pixels; got 20 x 24\. --min_image_side"):
        decode_pixels(image, 3, ImageLimits(min_side=21))
    with pytest.raises(BadImage, match="at most 9 bytes; this one has more"):
        decode_pixels(image, 3, ImageLimits(max_bytes=9))


@pytest.mark.parametrize("name", ["min_side", "max_pixels", "max_bytes"])
def test_wrong_limits_get_a_sentence(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1; got 0\. The default is \d+"):
        ImageLimits(**{name: 0})


@pytest.mark.parametrize("error", [MemoryError, AssertionError, ZeroDivisionError, struct.error])
def test_whatever_pillow_raises_is_a_bad_image(error, monkeypatch):
    def fail(*_):
        raise error

    image = encoded(PILImage.fromarray(RGB))
    for name in ("PIL.ImageFile.ImageFile.load", "PIL.Image.Image.convert"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(BadImage, match=f"cannot be decoded: {error.__name__}"):
                decode_pixels(image, 3)


def test_deep_grey_of_every_kind_is_divided_by_257(monkeypatch):
    deep = np.arange(0, 2**16, 257 // 4, dtype=np.uint16)[:1024].reshape(32, 32)
    expected = np.round(deep / 257).astype(np.uint8)[:, :, None]
    png = encoded(PILImage.fromarray(deep))
    big_endian = PILImage.frombytes("I;16B", (32, 32), deep.astype(">u2").tobytes())
    for image in (png, encoded(PILImage.fromarray(deep), "TIFF"), encoded(big_endian, "TIFF")):
        assert np.array_equal(decode_pixels(image, 1), expected)
        assert num_channels_of(image) == 1
        assert np.array_equal(decode_pixels(image, 3), np.repeat(expected, 3, axis=2))
    from PIL import PngImagePlugin

    older = {**PngImagePlugin._MODES, (16, 0): ("I", "I;16B")}  # before Pillow 11
    monkeypatch.setattr(PngImagePlugin, "_MODES", older)
    assert PILImage.open(io.BytesIO(png)).mode == "I"
    assert np.array_equal(decode_pixels(png, 1), expected)
    assert num_channels_of(png) == 1


def test_colour_spaces_become_rgb():
    lab = np.full((9, 9, 3), (136, 80, 67), dtype=np.uint8)  # red
    tiff = encoded(PILImage.frombytes("LAB", (9, 9), lab.tobytes()), "TIFF")
    assert np.abs(decode_pixels(tiff, 3).astype(int) - (255, 0, 0)).max() < 16
    ycbcr = PILImage.new("RGB", (9, 9), (200, 30, 60)).convert("YCbCr")
    assert np.abs(decode_pixels(encoded(ycbcr, "TIFF"), 3).astype(int) - (200, 30, 60)).max() < 3
    cmyk = PILImage.new("CMYK", (9, 9), (0, 255, 255, 0))
    assert (decode_pixels(encoded(cmyk, "TIFF"), 3) == (255, 0, 0)).all()


def test_an_animation_gives_its_first_frame():
    frames = [PILImage.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        image = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (decode_pixels(image, 3) == (255, 0, 0)).all(), format


def test_null_labels_are_missing(tmp_path):
    image = encoded(PILImage.fromarray(RGB))
    columns = {"image": [image] * 10, "label": [None, *range(9)]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    train, test = load_train_and_test(str(tmp_path / "a.parquet"))
    assert len(train) + len(test) == 10
    assert find_labels(train, test).missing.endswith("have no label")


def test_hub_ids_are_read_from_the_hub(monkeypatch):
    seen = []

    def load_dataset(source, streaming=False, **options):
        seen.append((source, streaming, options))
        return {"train": Dataset.from_dict({"image": [b"x"]})}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_images("someone/some-images")) == 1
    assert seen == [("someone/some-images", False, {})]


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (Value("string"), "a.png", "column 'image' of .* does not hold images.*Set --image_column"),
        (Value("float32"), 1.0, "does not hold images; the columns are image \\(Value\\)"),
        (datasets.List(Value("int64")), [1, 2], "does not hold images"),
        (datasets.List(datasets.List(Value("string"))), [["a"]], "does not hold images"),
        (datasets.Array4D((1, 1, 1, 1), "uint8"), [[[[1]]]], "does not hold images"),
        (Value("null"), None, "does not hold images"),
        (Image(), None, "must hold images; all 3 rows of split 'train' are null. The columns are"),
        (ENCODED, {"bytes": None, "path": None}, "all 3 rows of split 'train' are null"),
        (Value("binary"), None, "all 3 rows of split 'train' are null"),
    ],
)
def test_columns_without_images_get_a_sentence(tmp_path, feature, value, message):
    features = Features({"image": feature})
    Dataset.from_dict({"image": [value] * 3}, features=features).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "data"))


def test_lists_of_numbers_and_columns_with_some_images_are_taken(tmp_path):
    grey = RGB[:, :, 0]
    Dataset.from_dict({"image": [grey.tolist()] * 2}).save_to_disk(tmp_path / "lists")
    assert num_channels_of(load_images(str(tmp_path / "lists"))[0]["image"]) == 1
    some = [{"bytes": encoded(PILImage.fromarray(RGB)), "path": None}, None]
    Dataset.from_dict({"image": some}, features=Features({"image": Image()})).save_to_disk(
        tmp_path / "some"
    )
    assert load_images(str(tmp_path / "some"))[1]["image"] is None


def test_only_names_that_others_know_are_public(image_folder, tmp_path, monkeypatch):
    assert public_name("digits") == "digits of scikit-learn"
    assert public_name("uoft-cs/cifar10") == "uoft-cs/cifar10"
    assert public_name(str(image_folder)) is None
    assert public_name("no/such/folder") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "images").mkdir(parents=True)
    assert public_name("my/images") is None  # a folder that looks like an id


def test_an_empty_split_gets_a_sentence(tmp_path):
    row = {"bytes": encoded(PILImage.fromarray(RGB)), "path": None}
    rows = Dataset.from_dict({"image": [row]}, features=Features({"image": Image()}))
    DatasetDict(train=rows, test=rows.select([])).save_to_disk(tmp_path / "data")
    with pytest.raises(
        ValueError,
        match=r"split 'test' of .*data is empty|data holds no rows, or one of its splits",
    ):
        load_images(str(tmp_path / "data"), split="test")
