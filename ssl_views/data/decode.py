"""From whatever a row holds to uint8 pixels."""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_ORIENTATION = 0x0112  # tag of EXIF
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG = b"\xff\xd8\xff"
_NEEDS_SCALING = (
    "Scale the pixels to uint8 yourself: the range of float and int32 images is not defined."
)


class ImageError(ValueError):
    """An image that cannot be used; the message names it."""


@contextmanager
def naming_image(value: Any, index: int) -> Iterator[None]:
    """Name the image, its index and path, in an ImageError raised inside."""
    try:
        yield
    except ImageError as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        place = f" ({path})" if path else ""
        raise ImageError(f"image {index}{place}: {error}. Remove or repair it.") from error


def _read(value: Any) -> Any:
    """Return the bytes of a row's image where it is encoded, else what the row holds."""
    if not isinstance(value, Mapping):
        return value
    path, encoded = value.get("path"), value.get("bytes")
    if encoded is not None or path is None:
        return encoded
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error}") from error


def open_image(value: Any, load: bool = True) -> "Image.Image | np.ndarray[Any, Any]":
    """Open what a row's image column holds, without converting it.

    Args:
        value: encoded bytes, {"bytes": ..., "path": ...} as `datasets.Image(decode=False)` gives, a
            PIL image, or an array (H, W) or (H, W, C).
        load: decode it; without, only its header is read.

    Raises:
        ImageError: if nothing can be opened.
    """
    value = _read(value)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        try:
            image = Image.open(io.BytesIO(value))
            if load:
                image.load()
        except UnidentifiedImageError as error:
            raise ImageError("the bytes cannot be decoded: no known image format") from error
        except (
            OSError,
            ValueError,
            SyntaxError,
            RuntimeError,
            TypeError,
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


def image_size(value: Any) -> tuple[int, int]:
    """Return height and width from the header; EXIF may swap them when the image is decoded."""
    image = open_image(value, load=False)
    return image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]


def decode_pixels(value: Any, num_channels: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the pixels of an image.

    EXIF rotation is applied, alpha is laid over white, 16-bit grey is divided by 257, palettes and
    CMYK become RGB, of an animation the first frame is used. JPEG is decoded by libjpeg-turbo with
    the settings of Pillow, which gives the same pixels.

    Args:
        value: see `open_image`.
        num_channels: C. 1 and 3 are converted into each other; any other number must be that of the
            image.

    Returns:
        (H, W, C) uint8, contiguous.

    Raises:
        ImageError: if it cannot be decoded or has another number of channels.
    """
    value = _read(value)
    if isinstance(value, bytes) and value.startswith(_JPEG):
        pixels = _decode_jpeg(value, num_channels)
        if pixels is not None:
            return pixels
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
    return np.ascontiguousarray(array)


def decode_image(value: Any, num_channels: int) -> Tensor:
    """Return the pixels of an image as a uint8 tensor (C, H, W), see `decode_pixels`.

    The channels of a pixel lie side by side in memory.
    """
    pixels = decode_pixels(value, num_channels)
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def _decode_jpeg(encoded: bytes, num_channels: int) -> "np.ndarray[Any, np.dtype[np.uint8]] | None":
    """Decode a plain JPEG; None for one that Pillow has to look at, a broken one among them."""
    if num_channels not in (1, 3):
        return None
    if b"Exif\0\0" in encoded or b"tiff:Orientation" in encoded:  # may have to be rotated
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        # Pillow's grey of a colour image is not the one that is stored in it.
        if height * width > (Image.MAX_IMAGE_PIXELS or math.inf) or not (
            colorspace == "Gray" or (colorspace in ("YCbCr", "RGB") and num_channels == 3)
        ):
            return None
        return simplejpeg.decode_jpeg(encoded, "Gray" if num_channels == 1 else "RGB")
    except (ValueError, KeyError):  # the second for a sampling that simplejpeg does not know
        return None


def _rotated(image: Image.Image) -> Image.Image:
    """Apply the orientation of EXIF or XMP; a broken one changes nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (OSError, ValueError, TypeError, SyntaxError, AttributeError, struct.error):
        return image
    return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def _pixels(image: Image.Image, num_channels: int) -> "np.ndarray[Any, Any]":
    image = _rotated(image)
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
