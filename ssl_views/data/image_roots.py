"""Which files images are read from: rows of a data set may name any file or address.

A file is read below the folders of the data sets that were loaded, and below those that the user
allowed. Nothing is fetched from a network unless the user allowed that too.
"""

import asyncio
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zipfile import BadZipFile

import fsspec

from ssl_views.data.image_limits import BadImage, ImageLimits

_ARCHIVES = {"zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4"}
_NETWORKS = ("http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
# Beginnings of paths and addresses: real folders with a separator at the end, "https://", ...
_allowed: set[str] = set()


class AllowedPlaces:
    """What may be read: takes it along to the processes that it is pickled to."""

    def __reduce__(self) -> "tuple[Callable[..., AllowedPlaces], tuple[Any, ...]]":
        return _received, (tuple(_allowed),)


def _received(places: tuple[str, ...]) -> AllowedPlaces:
    _allowed.update(places)
    return AllowedPlaces()


def allow_images_below(folder: str | Path) -> None:
    """Let rows name image files below a folder, in this process and its workers.

    Args:
        folder: what is below it may be read; links that lead out of it may not.

    Raises:
        ValueError: if it is no folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"images can be allowed below an existing folder only; got {str(folder)!r}. Check the "
            "path."
        )
    _allowed.add(os.path.join(os.path.realpath(folder), ""))  # noqa: PTH118 (keeps a separator)


def allow_hub_images(dataset_id: str) -> None:
    """Let rows name images of a data set on the Hub, for streaming."""
    _allowed.update(f"hf://datasets/{dataset_id}{end}" for end in "/@")


def allow_remote_images() -> None:
    """Let rows name addresses, which are fetched from the network."""
    _allowed.update(f"{protocol}://" for protocol in _NETWORKS)


def readable_path(path: str | Path) -> Path:
    """Return the real path of a file that may be read.

    Raises:
        BadImage: if it lies elsewhere, or is no regular file.
    """
    try:
        real = os.path.realpath(path)
        if not real.startswith(tuple(_allowed)):
            raise BadImage(
                f"a file must lie below the folder of the data set or one that was allowed; got "
                f"{real!r}. If it may be read, pass --image_root, or call "
                "allow_images_below(folder)"
            )
        if not Path(real).is_file():
            raise BadImage(
                "the file cannot be read: "
                + ("it is no regular file" if Path(real).exists() else f"No such file: {real!r}")
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"the file cannot be read: {error}") from error
    return Path(real)


def read_image_file(path: str, limits: ImageLimits) -> bytes:
    """Read an image file, from this machine or, where that was allowed, from a network.

    Raises:
        BadImage: if it cannot or may not be read.
    """
    try:
        if "://" in str(path):
            _check_address(path)
            with fsspec.open(path, "rb") as file:
                encoded = file.read(limits.max_bytes + 1)
        else:
            real = readable_path(path)
            limits.check_bytes(real.stat().st_size)
            with real.open("rb") as file:
                encoded = file.read(limits.max_bytes + 1)
    except BadImage:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        LookupError,
        ImportError,
        EOFError,
        asyncio.TimeoutError,
        BadZipFile,
        tarfile.TarError,
        zlib.error,
    ) as error:
        raise BadImage(f"the file cannot be read: {error or type(error).__name__}") from error
    limits.check_bytes(len(encoded))
    return bytes(encoded)


def _check_address(path: str) -> None:
    """Refuse an address that was not allowed; it may lie in archives: "zip://a.png::address"."""
    *archives, last = path.split("::")
    if "://" not in last:
        readable_path(last)
    allowed = "://" not in last or last.startswith(tuple(_allowed))
    inside = all(archive.split("://")[0] in _ARCHIVES for archive in archives)
    if not (allowed and inside) or ".." in re.split(r"[/\\:]", unquote(path)):
        raise BadImage(
            f"an image must be in the data set, or below an address that was allowed; got {path!r}."
            f" To fetch images ({', '.join(_NETWORKS[:4])}, ...), pass --allow_remote_images, or "
            "load_images(..., allow_remote_images=True)"
        )
