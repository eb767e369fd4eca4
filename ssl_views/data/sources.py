"""Where images come from: Hub, folders, parquet, datasets on disk, or the embedded digits."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from ssl_views.data import image_roots
from ssl_views.data.columns import select_images

DIGITS = "digits"
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_EVALUATION_SPLITS = ("test", "validation", "valid", "val")
_HELD_OUT_FRACTION = 0.2
_HELD_OUT_MOST = 5000
_HELD_OUT_SEED = 0  # fixed, so that pretrain and evaluate hold out the same images


def load_images(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    streaming: bool = False,
    allow_remote_images: bool = False,
) -> "Dataset | IterableDataset":
    """Load images, and labels where there are any.

    Rows that name image files are read below the folder of the data set and those that
    `allow_images_below` was told.

    Args:
        dataset: "digits"; a folder of images (class folders become labels); a parquet file or a
            folder of them; a folder that `datasets` saved; or a Hub id.
        split: which split.
        image_column: column that holds the images; found by its type where None.
        streaming: read while training; the data set needs no disk and has no length.
        allow_remote_images: let this process and its workers fetch images that are addresses.

    Returns:
        Rows {"image": encoded, "label": int, "index": int}: the label only where a column holds
        classes; the index is the row's number in the split. A stream has neither.

    Raises:
        ValueError: if the source, the split or the column does not exist, or there are no rows.
    """
    if allow_remote_images:
        image_roots.allow_remote_images()
    return select_images(_open(dataset, streaming), dataset, split, image_column)


def load_train_and_test(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    test_split: str | None = None,
    allow_remote_images: bool = False,
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
    if allow_remote_images:
        image_roots.allow_remote_images()
    splits = _open(dataset, streaming=False)
    train = select_images(splits, dataset, split, image_column)
    if test_split is None:
        test_split = next(
            (name for name in _EVALUATION_SPLITS if name in splits and name != split), None
        )
    if test_split is not None:
        return train, select_images(splits, dataset, test_split, image_column)
    kept, held_out = hold_out(train)
    if 0 in (len(kept), len(held_out)):
        raise ValueError(
            f"split {split!r} of {dataset} has {len(train)} images, too few to hold some out. Add "
            "images."
        )
    return kept, held_out


def hold_out(rows: "Dataset") -> "tuple[Dataset, Dataset]":
    """Return the rows less a fifth of them, and that fifth, at most 5,000, drawn per class."""
    fraction = min(_HELD_OUT_FRACTION, _HELD_OUT_MOST / len(rows))
    held_out = _stratified(rows, fraction, _HELD_OUT_SEED)
    return rows.select(np.setdiff1d(np.arange(len(rows)), held_out)), rows.select(held_out)


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


def public_name(dataset: str) -> str | None:
    """Return what a publication may call a source: its Hub id; None for files and folders."""
    if dataset == DIGITS:
        return "digits of scikit-learn"
    return dataset if not Path(dataset).exists() and _HUB_ID.fullmatch(dataset) else None


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
            raise ValueError(
                f"{dataset} holds no rows, or one of its splits has none. Check the path, and "
                "remove that split."
            ) from error
        splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        splits = {k: v.to_iterable_dataset() if streaming else v for k, v in splits.items()}
    else:
        splits = _load(dataset, source, streaming, options)
    _allow_images_of(dataset, streaming)
    return splits


def _load(dataset: str, source: str, streaming: bool, options: dict[str, Any]) -> Any:
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
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f"{dataset!r} holds no images that can be read: {cause} Point to a folder of images "
            "or parquet files."
        ) from error


def _allow_images_of(dataset: str, streaming: bool) -> None:
    """Allow the files of a source: its folder, and where `datasets` keeps what it unpacks."""
    path = Path(dataset)
    if path.exists():
        folders = [path if path.is_dir() else path.parent]
    else:
        folders = [Path(HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}"]
        if streaming:
            image_roots.allow_hub_images(dataset)
    for folder in (*folders, Path(datasets.config.DOWNLOADED_DATASETS_PATH)):
        if folder.is_dir():
            image_roots.allow_images_below(folder)


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
