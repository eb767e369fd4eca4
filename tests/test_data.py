"""Sources, decoding, and the sentences for wrong input."""

import io

import datasets
import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from ssl_views.data.decode import ImageError, decode_image, num_channels_of
from ssl_views.data.sources import load_images, load_train_and_test, take_fraction

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
    assert [row["label"] for row in rows] == stored["label"]
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
        (b"", "cannot be decoded"),
        (b"<html>", "cannot be decoded"),
        (encoded(PILImage.fromarray(RGB))[:300], "cannot be decoded"),
        (None, "the row has no image"),
        ({"bytes": None, "path": None}, "the row has no image"),
        ({"bytes": None, "path": "/no/such/file.png"}, "cannot be read.*No such file"),
        (np.zeros((4, 4, 3), dtype=np.float32), "must be uint8; got float32. Scale"),
        (np.zeros((4, 4, 5), dtype=np.uint8), "has 5 channels; the model takes 3"),
        (np.zeros(4, dtype=np.uint8), r"shape \(H, W\) or \(H, W, C\); got \(4,\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "the image is empty"),
        (
            encoded(PILImage.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"),
            "mode 'F'.*Scale",
        ),
    ],
)
def test_unusable_images_get_a_sentence(value, message):
    with pytest.raises(ImageError, match=message):
        decode_image(value, 3)


def test_null_labels_are_no_labels(tmp_path):
    from ssl_views.evaluation.features import labels_of

    image = encoded(PILImage.fromarray(RGB))
    columns = {"image": [image] * 10, "label": [None, *range(9)]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    train, test = load_train_and_test(str(tmp_path / "a.parquet"))
    assert len(train) + len(test) == 10
    assert labels_of(load_images(str(tmp_path / "a.parquet"))) is None


def test_hub_ids_are_read_from_the_hub(monkeypatch):
    seen = []

    def load_dataset(source, streaming=False, **options):
        seen.append((source, streaming, options))
        return {"train": Dataset.from_dict({"image": [b"x"]})}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_images("someone/some-images")) == 1
    assert seen == [("someone/some-images", False, {})]
