"""Records: everything that was drawn about views, and how pixels are to be written.

A record and the pixels of the image determine a view completely, for every engine. The meaning of
each operation is that of `torchvision.transforms.v2.functional` on float tensors in [0, 1], with
antialias, in this order: crop-resize, flip, colour operations, grayscale, blur, solarize,
normalize.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
COLOR_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
LUMA = (0.2989, 0.587, 0.114)
LARGEST_SIZE = 8192


@dataclass(frozen=True)
class Rendering:
    """What all views of a call share.

    Attributes:
        size: side S of a view, pixels.
        interpolation: of the crop-resize, antialiased; bicubic results are clamped to [0, 1].
        blur_kernel_size: odd number of pixels, below 2 * size.
        mean: per channel, of pixels in [0, 1]; with `std`, normalize_channels at the end.
        std: per channel.
        dtype: float32, bfloat16, or uint8 (0 to 255, rounded; not normalized).
        channels_last: write the channels of a pixel side by side in memory.
    """

    size: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    blur_kernel_size: int = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= LARGEST_SIZE:
            raise ValueError(
                f"size must be a whole number, 1 to {LARGEST_SIZE}; got {self.size}. Change "
                "image_size."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic'; got {self.interpolation!r}. "
                "Choose one."
            )
        if (self.mean is None) != (self.std is None) or (
            self.std is not None and min(self.std) <= 0
        ):
            raise ValueError(
                f"mean and std must be given together, std positive; got {self.mean} and "
                f"{self.std}. Leave both out for pixels in [0, 1]."
            )
        if self.dtype not in (torch.float32, torch.bfloat16, torch.uint8):
            raise ValueError(
                f"dtype must be float32, bfloat16 or uint8; got {self.dtype}. Convert afterwards."
            )
        if self.dtype == torch.uint8 and self.mean is not None:
            raise ValueError(
                "uint8 views cannot be normalized; got a mean. Set normalize=False, or use float32."
            )
        if self.blur_kernel_size % 2 == 0 or not 1 <= self.blur_kernel_size <= 2 * self.size - 1:
            raise ValueError(
                f"blur_kernel_size must be odd and below 2 * size = {2 * self.size}; got "
                f"{self.blur_kernel_size}. A tenth of the size is usual."
            )


@dataclass(frozen=True)
class ViewRecords:
    """What was drawn for B images of V views each, as arrays with leading shape (B, V).

    Attributes:
        box: (B, V, 4) int32, crop in source pixels: top, left, height, width.
        flip: bool, horizontal flip after the crop.
        order: (B, V, 4) int8, the colour operations in the order applied (0 brightness, 1 contrast,
            2 saturation, 3 hue; -1 none).
        factor: (B, V, 4) float32, factor of brightness, contrast, saturation (1 changes nothing)
            and hue (turns of the colour circle, 0 changes nothing).
        grayscale: bool, grey in every channel.
        blur_sigma: float32, standard deviation of the blur in output pixels; 0 for none.
        solarize: bool, invert pixels of at least 0.5.

    Example:
        >>> recipe = ViewRecipe.named("cifar", jitter_prob=0)
        >>> records = recipe.draw([7], [32], [32], epoch=0)
        >>> print(records.describe(0, 1))
        crop 19 x 21 at (1, 5); flip; grayscale
    """

    box: NDArray[np.int32]
    flip: NDArray[np.bool_]
    order: NDArray[np.int8]
    factor: NDArray[np.float32]
    grayscale: NDArray[np.bool_]
    blur_sigma: NDArray[np.float32]
    solarize: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = self.flip.shape
        for field in fields(self):
            name, array = field.name, getattr(self, field.name)
            dtype, tail = _LAYOUT[name]
            if array.dtype != dtype or array.shape != (*shape, *tail) or len(shape) != 2:
                raise ValueError(
                    f"{name} must have shape (B, V{', 4' if tail else ''}) and dtype "
                    f"{np.dtype(dtype)}; got "
                    f"{array.shape} and {array.dtype}. ViewRecipe.draw makes such arrays."
                )
            object.__setattr__(self, name, np.ascontiguousarray(array))

    def images(self, chosen: Sequence[int] | slice) -> "ViewRecords":
        """Return the records of some of the images."""
        return self._map(lambda array: array[chosen])

    def views(self, chosen: Sequence[int] | slice) -> "ViewRecords":
        """Return the records of some of the views of every image."""
        return self._map(lambda array: array[:, chosen])

    def _map(self, pick: Callable[[NDArray[Any]], NDArray[Any]]) -> "ViewRecords":
        return ViewRecords(*(pick(getattr(self, field.name)) for field in fields(self)))

    def save(self, path: str | Path) -> None:
        """Write the records to an .npz file, to replay them with `ViewRecipe.render`."""
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "ViewRecords":
        """Read records that `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def describe(self, image: int, view: int) -> str:
        """Return one line that says what happens to a view."""
        at = (image, view)
        top, left, height, width = self.box[at]
        steps = [f"crop {height} x {width} at ({top}, {left})"]
        if self.flip[at]:
            steps.append("flip")
        colors = []
        for operation in self.order[at]:
            if operation >= 0:
                sign = "by" if operation == HUE else "x"
                amount = self.factor[at][operation]
                colors.append(f"{COLOR_OPERATIONS[operation]} {sign} {amount:.2f}")
        if colors:
            steps.append(", ".join(colors))
        if self.grayscale[at]:
            steps.append("grayscale")
        if self.blur_sigma[at] > 0:
            steps.append(f"blur {self.blur_sigma[at]:.2f} px")
        if self.solarize[at]:
            steps.append("solarize")
        return "; ".join(steps)


_LAYOUT: dict[str, tuple[type, tuple[int, ...]]] = {
    "box": (np.int32, (4,)),
    "flip": (np.bool_, ()),
    "order": (np.int8, (4,)),
    "factor": (np.float32, (4,)),
    "grayscale": (np.bool_, ()),
    "blur_sigma": (np.float32, ()),
    "solarize": (np.bool_, ()),
}


def clean_records(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> ViewRecords:
    """Return one unchanged view per image: the largest centred square (V = 1)."""
    count, side = len(heights), np.minimum(heights, widths)
    box = np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=-1)
    no, four = np.zeros((count, 1), dtype=np.bool_), (count, 1, 4)
    return ViewRecords(
        box[:, None].astype(np.int32),
        no,
        np.full(four, -1, dtype=np.int8),
        np.zeros(four, dtype=np.float32),
        no,
        np.zeros((count, 1), dtype=np.float32),
        no,
    )


def check_records(
    records: ViewRecords,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    num_channels: int,
    rendering: Rendering,
) -> None:
    """Refuse records that no engine may be given.

    Raises:
        ValueError: if a box leaves its image, a number is not finite or has no meaning, or a colour
            operation needs three channels that are not there.
    """
    box, order, sigma = records.box, records.order, records.blur_sigma
    if records.flip.size == 0:
        raise ValueError("there must be at least one view; got none. Leave out empty batches.")
    if len(box) != len(heights):
        raise ValueError(
            f"there must be one row of records per image; got {len(box)} rows and {len(heights)} "
            "images. Draw them for these images."
        )
    bottom = box[..., 0].astype(np.int64) + box[..., 2]
    right = box[..., 1].astype(np.int64) + box[..., 3]
    inside = (bottom <= heights[:, None]) & (right <= widths[:, None])
    inside &= (box[..., :2] >= 0).all(axis=-1) & (box[..., 2:] >= 1).all(axis=-1)
    if not inside.all():
        i, v = np.argwhere(~inside)[0]
        raise ValueError(
            f"a crop must lie inside its image; got (top, left, height, width) = "
            f"{box[i, v].tolist()} of image {i}, which has {heights[i]} x {widths[i]} pixels. Draw "
            "the records with these sizes."
        )
    factor = records.factor
    if not (
        np.isfinite(factor).all()
        and (factor[..., :HUE] >= 0).all()
        and (np.abs(factor[..., HUE]) <= 0.5).all()
    ):
        raise ValueError(
            "factors must be finite, at least 0, and that of hue in [-0.5, 0.5]; got "
            f"{factor.min()} to {factor.max()}. Look for NaN in the records."
        )
    if not (np.isfinite(sigma).all() and (sigma >= 0).all()):
        raise ValueError(
            f"blur_sigma must be finite and at least 0; got {sigma.min()} to {sigma.max()}. Look "
            "for NaN in the records."
        )
    if not (-1 <= order.min() and order.max() < len(COLOR_OPERATIONS)):
        raise ValueError(
            f"order must hold -1 to 3; got {order.min()} to {order.max()}. See ViewRecords."
        )
    if num_channels != 3 and ((order >= SATURATION).any() or records.grayscale.any()):
        raise ValueError(
            f"saturation, hue and grayscale need 3 channels; got {num_channels}. Leave them out "
            "of the recipe."
        )
    drawn = np.sort(order, axis=-1)
    if ((drawn[..., 1:] == drawn[..., :-1]) & (drawn[..., 1:] >= 0)).any():
        raise ValueError(
            "order must hold every operation at most once; got one twice. See ViewRecords."
        )
    for name in ("mean", "std"):
        values = getattr(rendering, name)
        if values is not None and len(values) != num_channels:
            raise ValueError(
                f"{name} must have one value per channel ({num_channels}); got {len(values)}. Give "
                "that many."
            )
