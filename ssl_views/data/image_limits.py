"""What an image must be, and the errors for one that is not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

_PLAUSIBLE_PIXELS = 2**21


class BadImage(ValueError):
    """An image that cannot be used; the message says why, and names it.

    Attributes:
        index: of the image, where it is known.
        path: of the image, where it has one.
        reason: the message without the name.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.index = -1
        self.path: str | None = None
        self.reason = message


class PixelFormatError(BadImage):
    """Pixels that the model cannot take as they are: the user decides, so it always stops."""


@dataclass(frozen=True)
class ImageLimits:
    """Which images are used; others are bad images, and are not decoded.

    Attributes:
        min_side: least height and width, in pixels.
        max_pixels: most pixels. (Above Pillow's own limit, raise `PIL.Image.MAX_IMAGE_PIXELS` too.)
        max_bytes: most bytes of a file.
        max_pixels_per_byte: of a file, if it has more than 2^21 pixels: one that is nearly empty
            costs much memory for its size.
    """

    min_side: int = 8
    max_pixels: int = 2**26
    max_bytes: int = 2**26
    max_pixels_per_byte: int = 512

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise ValueError(
                    f"{limit.name} must be at least 1; got {value}. The default is {limit.default}."
                )

    def check_bytes(self, num_bytes: int) -> None:
        """Refuse a file of too many bytes."""
        if num_bytes > self.max_bytes:
            raise BadImage(
                f"a file must have at most {self.max_bytes:,} bytes; this one has more. "
                "--max_image_bytes, ImageLimits(max_bytes=...) sets the limit"
            )

    def check_size(self, height: int, width: int, num_bytes: int | None = None) -> None:
        """Refuse an image of too few or too many pixels, also for the bytes that encode it."""
        if min(height, width) < self.min_side:
            raise BadImage(
                f"both sides must be at least {self.min_side} pixels; got {height} x {width}. "
                "--min_image_side, ImageLimits(min_side=...) sets the limit"
            )
        if height * width > self.max_pixels:
            raise BadImage(
                f"an image must have at most {self.max_pixels:,} pixels; got {height} x {width}. "
                "--max_image_pixels, ImageLimits(max_pixels=...) sets the limit"
            )
        if num_bytes is not None and height * width > max(
            _PLAUSIBLE_PIXELS, self.max_pixels_per_byte * num_bytes
        ):
            raise BadImage(
                f"a large image must have a byte for every {self.max_pixels_per_byte} pixels; got "
                f"{height} x {width} in {num_bytes:,} bytes, which is nearly empty, or an attack. "
                "ImageLimits(max_pixels_per_byte=...) sets the limit"
            )


LIMITS = ImageLimits()


@contextmanager
def naming_image(value: Any, index: int) -> Iterator[None]:
    """Name the image, its index and path, in a BadImage raised inside."""
    try:
        yield
    except BadImage as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        place = f" ({path})" if path else ""
        remedy = "" if isinstance(error, PixelFormatError) else ". Remove or repair it."
        named = type(error)(f"image {index}{place}: {error}{remedy}")
        named.index, named.path, named.reason = int(index), path, error.reason
        raise named from error
