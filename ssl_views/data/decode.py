"""From whatever a row holds to uint8 pixels."""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from ssl_views.data.image_limits import (
    LIMITS,
    BadImage,
    ImageLimits,
    PixelFormatError,
    naming_image,
)
from ssl_views.data.image_roots import read_image_file

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
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# What Pillow and simplejpeg raise on damaged files. Warnings are errors where the user says so.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    BufferError,
    EOFError,
    ImportError,
    MemoryError,
    SystemError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImageCms.PyCMSError,
)
_NEEDS_SCALING = (
    "Scale the pixels to uint8 yourself: the range of float and int32 images is not defined."
)


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn what decoders raise into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        known = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        raise BadImage(f"the bytes cannot be decoded: they are no {known}") from error
    except _DECODER_ERRORS as error:
        why = str(error) or type(error).__name__
        raise BadImage(f"the bytes cannot be decoded: {why}") from error


def _read(value: Any, limits: ImageLimits) -> Any:
    """Return the bytes of a row's image where it is encoded, else what the row holds."""
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path is not None:
            value = read_image_file(path, limits)
    if isinstance(value, bytes):
        limits.check_bytes(len(value))
    return value


def open_image(
    value: Any, limits: ImageLimits = LIMITS, *, load: bool = True
) -> "Image.Image | NDArray[Any]":
    """Open what a row's image column holds, without converting it.

    Args:
        value: encoded bytes, {"bytes": ..., "path": ...} as `datasets.Image(decode=False)` gives, a
            PIL image, or an array (H, W) or (H, W, C). Of a path without bytes see `image_roots`.
        limits: which images are opened.
        load: decode it; without, only its header is read.

    Raises:
        BadImage: if nothing can be opened.
    """
    value = _read(value, limits)
    if value is None:
        raise BadImage("the row has no image")
    if isinstance(value, bytes):
        with _decoding():
            image = Image.open(io.BytesIO(value), formats=_FORMATS)
            limits.check_size(image.height, image.width, len(value))
            if load:
                image.load()
            return image
    if isinstance(value, Image.Image):
        limits.check_size(value.height, value.width)
        return value
    array = np.asarray(value)
    if array.ndim not in (2, 3):
        raise BadImage(f"an array must have shape (H, W) or (H, W, C); got {array.shape}")
    limits.check_size(*array.shape[:2])
    return array


def num_channels_of(value: Any, limits: ImageLimits = LIMITS) -> int:
    """Return the natural number of channels: 1 for grey, C for an array, 3 for other modes."""
    image = open_image(value, limits)
    if isinstance(image, np.ndarray):
        return 1 if image.ndim == 2 else int(image.shape[2])
    return 1 if image.mode in ("1", "L") or _is_deep(image) else 3


def image_size(value: Any, limits: ImageLimits = LIMITS) -> tuple[int, int]:
    """Return height and width from the header; EXIF may swap them when the image is decoded."""
    image = open_image(value, limits, load=False)
    return image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]


def decode_pixels(
    value: Any, num_channels: int, limits: ImageLimits = LIMITS
) -> "NDArray[np.uint8]":
    """Return the pixels of an image.

    EXIF rotation is applied, alpha is laid over white, 16-bit grey is divided by 257, palettes,
    CMYK, YCbCr and LAB become RGB, of an animation the first frame is used. JPEG is decoded by
    libjpeg-turbo with the settings of Pillow, which gives the same pixels. Sizes are looked at
    before anything is decoded.

    Args:
        value: see `open_image`.
        num_channels: C. 1 and 3 are converted into each other; any other number must be that of the
            image.
        limits: which images are decoded.

    Returns:
        (H, W, C) uint8, contiguous.

    Raises:
        BadImage: if it cannot be decoded.
        PixelFormatError: if its pixels are not of 8 or 16 bits, or of another number of channels.
    """
    value = _read(value, limits)
    if isinstance(value, bytes) and value.startswith(_JPEG):
        pixels = _decode_jpeg(value, num_channels, limits)
        if pixels is not None:
            return pixels
    image = open_image(value, limits)
    if isinstance(image, np.ndarray):
        array = image
    else:
        with _decoding():
            array = _pixels(image, num_channels)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8:
        raise PixelFormatError(f"pixels must be uint8; got {array.dtype}. {_NEEDS_SCALING}")
    if array.shape[2] == 1 and num_channels == 3:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] != num_channels:
        raise PixelFormatError(
            f"the image has {array.shape[2]} channels; the model takes {num_channels}. Set "
            "num_channels."
        )
    return np.ascontiguousarray(array)


def decode_image(value: Any, num_channels: int, limits: ImageLimits = LIMITS) -> Tensor:
    """Return the pixels of an image as a uint8 tensor (C, H, W), see `decode_pixels`.

    The channels of a pixel lie side by side in memory.
    """
    pixels = decode_pixels(value, num_channels, limits)
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)


def try_to_decode(
    value: Any, index: int, num_channels: int, limits: ImageLimits = LIMITS
) -> "NDArray[np.uint8] | BadImage":
    """Return the pixels of an image, or the error that names it and says why there are none.

    Raises:
        PixelFormatError: for this the user has to decide.
    """
    try:
        with naming_image(value, index):
            return decode_pixels(value, num_channels, limits)
    except PixelFormatError:
        raise
    except BadImage as error:
        return error


def _decode_jpeg(
    encoded: bytes, num_channels: int, limits: ImageLimits
) -> "NDArray[np.uint8] | None":
    """Decode a plain JPEG; None for one that Pillow has to look at, a broken one among them."""
    if num_channels not in (1, 3):
        return None
    if b"Exif\0\0" in encoded or b"tiff:Orientation" in encoded:  # may have to be rotated
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        limits.check_size(height, width, len(encoded))
        # Pillow's grey of a colour image is not the one that is stored in it.
        if colorspace == "Gray" or (colorspace in ("YCbCr", "RGB") and num_channels == 3):
            return simplejpeg.decode_jpeg(encoded, "Gray" if num_channels == 1 else "RGB")
    except _DECODER_ERRORS as error:
        if isinstance(error, BadImage):
            raise
    return None


def _is_deep(image: Image.Image) -> bool:
    """Return whether it is 16-bit grey; of PNG, older versions of Pillow make mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _rotated(image: Image.Image) -> Image.Image:
    """Apply the orientation of EXIF or XMP; a broken one changes nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:
        return image
    return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def _pixels(image: Image.Image, num_channels: int) -> "NDArray[Any]":
    is_deep = _is_deep(image)
    image = _rotated(image)
    if is_deep:
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded
    if image.mode in ("I", "F"):
        raise PixelFormatError(
            f"pixels must be 8 or 16 bits; got PIL mode {image.mode!r}. {_NEEDS_SCALING}"
        )
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("L" if num_channels == 1 else "RGB"))
