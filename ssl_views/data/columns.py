"""Which columns of a data set hold images and labels."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, Value

from ssl_views.naming import did_you_mean

_NO_PIXELS = ("string", "large_string", "null")


def select_images(
    splits: Mapping[str, Any], dataset: str, split: str, image_column: str | None
) -> Any:
    """Keep the image column of a split, encoded, as "image", and a class label as "label".

    Args:
        splits: of a source.
        dataset: its name, for errors.
        split: which one.
        image_column: column that holds the images; found by its type where None.

    Raises:
        ValueError: if the split or the column does not exist, or holds no images.
    """
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
    if not _may_hold_images(features[column]):
        raise ValueError(
            f"column {column!r} of {dataset} does not hold images; the columns are "
            f"{_describe(features)}. Set --image_column."
        )
    if stored and all(map(_is_null, rows.data.column(column).chunks)):
        raise ValueError(
            f"column {column!r} of {dataset} must hold images; all {len(rows):,} rows of split "
            f"{split!r} are null. The columns are {_describe(features)}: set --image_column."
        )
    # Streamed rows may lack the labels that their features list.
    label = _find_label_column(features) if stored else None
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


def _may_hold_images(feature: Any) -> bool:
    """Return whether it is a type of encoded images, or of arrays (H, W) or (H, W, C)."""
    if _is_encoded(feature) or isinstance(feature, (Array2D, Array3D)):
        return True
    depth = 0
    while hasattr(feature, "feature"):  # a list
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and isinstance(feature, Value) and feature.dtype not in _NO_PIXELS


def _is_null(chunk: Any) -> bool:
    """Return whether a part of a column holds neither bytes nor paths."""
    if chunk.null_count == len(chunk):
        return True
    fields = [chunk.type.field(i).name for i in range(chunk.type.num_fields)]
    if not pa.types.is_struct(chunk.type) or not {"bytes", "path"} <= set(fields):
        return False
    return all(chunk.field(name).null_count == len(chunk) for name in ("bytes", "path"))


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
