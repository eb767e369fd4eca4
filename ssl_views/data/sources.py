"""Where images come from: Hub, folders, parquet, datasets on disk, or the embedded digits."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from PIL import Image

from ssl_views.naming import did_you_mean

DIGITS = "digits"
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_EVALUATION_SPLITS = ("test", "validation", "valid", "val")
_HELD_OUT_FRACTION = 0.2
_HELD_OUT_MOST = 5000
_HELD_OUT_SEED = 0  # fixed, so that pretrain and evaluate hold out the same images


def load_images(
    dataset: str, *, split: str = "train", image_column: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load images, and labels where there are any.

    Args:
        dataset: "digits"; a folder of images (class folders become labels); a parquet file or a
            folder of them; a folder that `datasets` saved; or a Hub id.
        split: which split.
        image_column: column that holds the images; found by its type where None.
        streaming: read while training; the data set needs no disk and has no length.

    Returns:
        Rows {"image": encoded, "label": int, "index": int}: the label only where a column holds
        classes; the index is the row's number in the split, and missing in a stream.

    Raises:
        ValueError: if the source, the split or the column does not exist, or there are no rows.
    """
    return _select(_open(dataset, streaming), dataset, split, image_column)


def load_train_and_test(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    test_split: str | None = None,
) -> "tuple[Dataset, Dataset]":
    """Load images to learn from, and images to evaluate on that are never learned from.

    The second are `test_split`, else the data set's own test or validation split, else a fifth of
    `split`, at most 5,000 images, drawn per class with a fixed seed.

    Returns:
        (train, test), rows as from `load_images`.
    """
    if test_split == split:
        raise ValueError(
            f"test_split must differ from split; got {split!r} for both. Images learned from say "
            "nothing about others."
        )
    splits = _open(dataset, streaming=False)
    train = _select(splits, dataset, split, image_column)
    if test_split is None:
        test_split = next(
            (name for name in _EVALUATION_SPLITS if name in splits and name != split), None
        )
    if test_split is not None:
        return train, _select(splits, dataset, test_split, image_column)
    fraction = min(_HELD_OUT_FRACTION, _HELD_OUT_MOST / len(train))
    held_out = _stratified(train, fraction, _HELD_OUT_SEED)
    if len(held_out) in (0, len(train)):
        raise ValueError(
            f"split {split!r} of {dataset} has {len(train)} images, too few to hold some out. Add "
            "images."
        )
    return train.select(np.setdiff1d(np.arange(len(train)), held_out)), train.select(held_out)


def take_fraction(rows: "Dataset", fraction: float, seed: int = 0) -> "Dataset":
    """Keep a random share of the rows, the same share of every class where there are labels.

    Args:
        rows: as from `load_images`.
        fraction: in (0, 1].
        seed: of the draw.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1]; got {fraction}. 1 keeps every image.")
    kept = _stratified(rows, fraction, seed)
    if len(kept) == 0:
        raise ValueError(f"a fraction of {fraction} of {len(rows)} images leaves none. Raise it.")
    return rows.select(kept)


def _open(dataset: str, streaming: bool) -> "Mapping[str, Any]":
    """Return the splits of a source."""
    if dataset == DIGITS:
        rows = _digits()
        return {"train": rows.to_iterable_dataset() if streaming else rows}
    path = Path(dataset)
    if path.exists():
        source, options = _local(path)
    elif _HUB_ID.fullmatch(dataset):
        source, options = dataset, {}
    else:
        raise ValueError(f"no file or folder {dataset!r}, and it is not a Hub id. Check the path.")
    if source is None:
        try:
            saved = datasets.load_from_disk(str(path))
        except IndexError as error:  # what datasets raises when there are no rows
            raise ValueError(f"{dataset} holds no rows. Check the path.") from error
        splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        return {k: v.to_iterable_dataset() if streaming else v for k, v in splits.items()}
    try:
        return datasets.load_dataset(source, streaming=streaming, **options)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"no file or folder {dataset!r}, and the Hub gave no data set of that name: {error} "
            "Check the path or the id; a private data set needs `hf auth login`."
        ) from error
    except (
        FileNotFoundError,
        ValueError,
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        raise ValueError(
            f"{dataset!r} holds no images that can be read: {error} Point to a folder of images "
            "or parquet files."
        ) from error


def _local(path: Path) -> "tuple[str | None, dict[str, Any]]":
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(
                f"{path} is a file, but not parquet. Point to a folder of images, or a .parquet "
                "file."
            )
        return "parquet", {"data_files": {"train": str(path)}}
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return None, {}
    return str(path), {}


def _select(splits: Mapping[str, Any], dataset: str, split: str, image_column: str | None) -> Any:
    """Keep the image column of a split, encoded, as "image", and a class label as "label"."""
    if split not in splits:
        raise ValueError(
            f"{dataset} has no split {split!r}; it has "
            f"{sorted(splits)}.{did_you_mean(split, splits)} Set --split."
        )
    rows = splits[split]
    stored = isinstance(rows, Dataset)
    if stored and len(rows) == 0:
        raise ValueError(f"split {split!r} of {dataset} is empty. Check the path and the split.")
    features = rows.features
    if features is None:
        raise ValueError(
            f"{dataset} does not say which columns it has, so it cannot be streamed. Turn "
            "streaming off."
        )
    column = image_column or _find_image_column(features, dataset)
    if column not in features:
        raise ValueError(
            f"{dataset} has no column {column!r}; it has "
            f"{_describe(features)}.{did_you_mean(column, features)} Set --image_column."
        )
    if isinstance(features[column], (Value, ClassLabel, dict)) and not _is_encoded(
        features[column]
    ):
        raise ValueError(
            f"column {column!r} of {dataset} does not hold images; the columns are "
            f"{_describe(features)}. Set --image_column."
        )
    label = _find_label_column(features)
    rows = rows.select_columns([column] if label is None else [column, label])
    if column != "image":
        rows = rows.rename_column(column, "image")
    if label not in (None, "label"):
        rows = rows.rename_column(label, "label")
    if isinstance(features[column], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    if stored:
        rows = rows.add_column("index", np.arange(len(rows)))
    if not _is_encoded(features[column]) and stored:
        dtype = getattr(features[column], "dtype", None)
        options = {"dtype": np.uint8} if dtype == "uint8" else {}  # otherwise numpy gives int64
        rows = rows.with_format("numpy", columns=["image"], output_all_columns=True, **options)
    return rows


def _find_label_column(features: "Features") -> str | None:
    """Return "label" if it holds classes or integers, else the first column of classes."""
    label = features.get("label")
    if isinstance(label, Value) and label.dtype.lstrip("u").startswith("int"):
        return "label"
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return "label" if "label" in labels else next(iter(labels), None)


def _is_encoded(feature: Any) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _find_image_column(features: "Features", dataset: str) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        images = [name for name in ("image", "img", "pixels") if name in features]
    if len(images) != 1:
        found = "no image column" if not images else f"image columns {images}"
        raise ValueError(
            f"{dataset} has {found}; the columns are {_describe(features)}. Set --image_column."
        )
    return images[0]


def _describe(features: "Features") -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())


def _stratified(rows: "Dataset", fraction: float, seed: int) -> "np.ndarray[Any, Any]":
    """Return sorted positions of a random share of the rows, the same share of every class."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(len(rows))
    if "label" in rows.column_names:
        labels = np.array([-1 if label is None else label for label in rows["label"][:]])
    order = generator.permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, random within
    # Walking over the classes, take a row whenever the share is due: every class gets its share
    # rounded up or down, and small classes together get theirs.
    due = np.floor((np.arange(1, len(rows) + 1)) * fraction + 0.5)
    return np.sort(order[np.diff(due, prepend=0) > 0])


def _digits() -> "Dataset":
    """Return scikit-learn's 1,797 scans of handwritten digits, 8 x 8 pixels of 17 greys, as PNG."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    encoded = []
    for scan in bunch.images:
        buffer = io.BytesIO()
        Image.fromarray(np.round(scan * 255 / 16).astype(np.uint8)).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = Features(
        {"image": datasets.Image(), "label": ClassLabel(names=[str(d) for d in range(10)])}
    )
    return Dataset.from_dict({"image": encoded, "label": bunch.target.tolist()}, features=features)
