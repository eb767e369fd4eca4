"""From whatever a row holds to uint8 pixels."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_NEEDS_SCALING = (
    "Scale the pixels to uint8 yourself: the range of float and int32 images is not defined."
)


class ImageError(ValueError):
    """An image that cannot be used; the message names it."""


def open_image(value: Any) -> "Image.Image | np.ndarray[Any, Any]":
    """Open what a row's image column holds, without converting it.

    Args:
        value: encoded bytes, {"bytes": ..., "path": ...} as `datasets.Image(decode=False)` gives, a
            PIL image, or an array (H, W) or (H, W, C).

    Raises:
        ImageError: if nothing can be opened.
    """
    if isinstance(value, Mapping):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path is not None:
            try:
                value = Path(path).read_bytes()
            except OSError as error:
                raise ImageError(f"the file cannot be read: {error}") from error
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        try:
            image = Image.open(io.BytesIO(value))
            image.load()
        except UnidentifiedImageError as error:
            raise ImageError("the bytes cannot be decoded: no known image format") from error
        except (
            OSError,
            ValueError,
            SyntaxError,
            RuntimeError,
            Image.DecompressionBombError,
        ) as error:
            raise ImageError(f"the bytes cannot be decoded: {error}") from error
        return image
    if value is None:
        raise ImageError("the row has no image")
    array = np.asarray(value)
    if array.ndim not in (2, 3):
        raise ImageError(f"an array must have shape (H, W) or (H, W, C); got {array.shape}")
    return array


def num_channels_of(value: Any) -> int:
    """Return the natural number of channels: 1 for grey, C for an array, 3 for other modes."""
    image = open_image(value)
    if isinstance(image, np.ndarray):
        return 1 if image.ndim == 2 else int(image.shape[2])
    return 1 if image.mode in ("1", "L") or image.mode.startswith("I;16") else 3


def decode_image(value: Any, num_channels: int) -> Tensor:
    """Return the pixels of an image.

    EXIF rotation is applied, alpha is laid over white, 16-bit grey is divided by 257, palettes and
    CMYK become RGB, of an animation the first frame is used.

    Args:
        value: see `open_image`.
        num_channels: C. 1 and 3 are converted into each other; any other number must be that of the
            image.

    Returns:
        (C, H, W) uint8.

    Raises:
        ImageError: if it cannot be decoded or has another number of channels.
    """
    image = open_image(value)
    array = image if isinstance(image, np.ndarray) else _pixels(image, num_channels)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8:
        raise ImageError(f"pixels must be uint8; got {array.dtype}. {_NEEDS_SCALING}")
    if array.shape[2] == 1 and num_channels == 3:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] != num_channels:
        raise ImageError(
            f"the image has {array.shape[2]} channels; the model takes {num_channels}. Set "
            "num_channels."
        )
    if 0 in array.shape:
        raise ImageError(f"the image is empty: {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _pixels(image: Image.Image, num_channels: int) -> "np.ndarray[Any, Any]":
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.round(np.asarray(image) / 257).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"pixels must be 8 or 16 bits; got PIL mode {image.mode!r}. {_NEEDS_SCALING}"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("L" if num_channels == 1 else "RGB"))
