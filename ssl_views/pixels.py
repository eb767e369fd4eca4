"""Decoded images of a batch, wherever they lie in memory."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PixelBatch:
    """B decoded images of uint8 pixels, (H, W, C) in memory row by row; sizes may differ.

    Attributes:
        address: (B,) int64, of the first pixel of every image.
        heights: (B,) int64.
        widths: (B,) int64.
        num_channels: C.
        owner: what keeps the memory alive.
    """

    address: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    num_channels: int
    owner: Any

    def __post_init__(self) -> None:
        arrays = (self.address, self.heights, self.widths)
        if any(a.dtype != np.int64 or a.shape != (len(self.address),) for a in arrays):
            raise ValueError(
                "address, heights and widths must be int64 of one length; got "
                f"{[(str(a.dtype), a.shape) for a in arrays]}. Use PixelBatch.of."
            )

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> "PixelBatch":
        """Take B uint8 tensors (C, H, W) on the CPU; those with channels last are not copied."""
        check_images(images)
        owner, rows = [], []
        for i, image in enumerate(images):
            if image.device.type != "cpu":
                raise ValueError(
                    f"the images must be on the CPU; got {image.device} at place {i}. Render views "
                    "on a device with engine='torch'."
                )
            pixels = image.permute(1, 2, 0).contiguous()
            owner.append(pixels)
            rows.append((pixels.data_ptr(), *pixels.shape[:2]))
        address, heights, widths = np.array(rows, dtype=np.int64).T
        return cls(address, heights, widths, images[0].shape[0], owner)

    @classmethod
    def of_arrays(cls, images: "Sequence[NDArray[np.uint8]]") -> "PixelBatch":
        """Take B contiguous arrays (H, W, C) of one number of channels, without copies."""
        address = np.array([image.__array_interface__["data"][0] for image in images])
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        return cls(address, sizes[:, 0], sizes[:, 1], images[0].shape[2], images)

    def __len__(self) -> int:
        """Return B."""
        return len(self.address)

    def tensors(self) -> list[Tensor]:
        """Return the images as tensors (C, H, W) that share the memory."""
        images = []
        for address, height, width in zip(self.address, self.heights, self.widths, strict=True):
            count = int(height) * int(width) * self.num_channels
            memory = (ctypes.c_uint8 * count).from_address(int(address))
            setattr(memory, "owner", self.owner)  # noqa: B010 (arrays of ctypes take attributes)
            flat = torch.frombuffer(memory, dtype=torch.uint8)
            images.append(flat.view(int(height), int(width), -1).permute(2, 0, 1))
        return images


def check_images(images: Sequence[Tensor]) -> None:
    """Refuse what is not uint8 images (C, H, W) of one number of channels."""
    if len(images) == 0:
        raise ValueError("there must be at least one image; got none. Leave out empty batches.")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.dtype != torch.uint8 or 0 in image.shape:
            raise ValueError(
                "an image must be uint8 of shape (C, H, W), at least one pixel; got "
                f"{image.dtype} {tuple(image.shape)} at place {i}. Convert it first."
            )
        if image.shape[0] != images[0].shape[0] or image.device != images[0].device:
            raise ValueError(
                "all images of a batch must have the same number of channels, on one device; got "
                f"{images[0].shape[0]} on {images[0].device} and {image.shape[0]} on "
                f"{image.device} at place {i}. Convert them first."
            )
