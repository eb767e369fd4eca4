"""View recipes: what is random about a view, and how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.named_recipes import RECIPES
from ssl_views.naming import did_you_mean
from ssl_views.pixels import PixelBatch
from ssl_views.recipe_checks import SHARED, check_recipe
from ssl_views.view_drawing import draw_records
from ssl_views.view_engines import Engine, render
from ssl_views.view_records import COLOR_OPERATIONS, Rendering, ViewRecords, clean_records

if TYPE_CHECKING:
    from ssl_views.configuration_ssl_views import SSLViewsConfig


class ViewGroup(NamedTuple):
    """Views of one size: their numbers, their side in pixels, and that of their blur kernel."""

    views: tuple[int, ...]
    size: int
    kernel_size: int


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """How views are made; all V views of an image are drawn independently from it.

    Attributes:
        image_size: side S of a view, pixels.
        num_views: V.
        num_channels: C; saturation, hue and grayscale need C = 3.
        crop_scale: smallest and largest area of the crop, fraction of the image.
        crop_ratio: smallest and largest width / height of the crop.
        interpolation: of the crop-resize, antialiased.
        flip_prob: probability of a horizontal flip.
        jitter_prob: probability of the four colour operations, applied in a random order.
        brightness: factor drawn from [max(0, 1 - x), 1 + x].
        contrast: likewise.
        saturation: likewise.
        hue: turns drawn from [-x, x], x <= 0.5.
        grayscale_prob: probability of grey.
        blur_prob: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation, output pixels.
        blur_kernel_size: odd, below 2 * image_size; None is about a tenth of image_size.
        solarize_prob: probability of inverting pixels of at least 0.5.
        mean: per channel, of pixels in [0, 1], for normalize_channels.
        std: per channel.
        relative_size: side of the view as a fraction of image_size, for small local crops.
        per_view: numbers that differ between views; view v takes entry v modulo their count.

    Example:
        >>> recipe = ViewRecipe.named("cifar", num_views=2, crop_scale=(0.25, 1.0))
        >>> images = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        >>> recipe.views(images, indices=[0], epoch=0, seed=0).shape
        torch.Size([1, 2, 3, 32, 32])
    """

    image_size: int
    num_views: int = 4
    num_channels: int = 3
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip_prob: float = 0.5
    jitter_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel_size: int | None = None
    solarize_prob: float = 0.0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    relative_size: float = 1.0
    per_view: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "mean", "std", "per_view"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("mean", "std"):
            if len(getattr(self, name)) == 1:
                object.__setattr__(self, name, getattr(self, name) * self.num_channels)
        check_recipe(self)

    @cached_property
    def of_views(self) -> tuple["ViewRecipe", ...]:
        """The recipe of each of the V views, without `per_view`."""
        if not self.per_view:
            return (self,) * self.num_views
        own = [replace(self, per_view=(), **numbers) for numbers in self.per_view]
        return tuple(own[v % len(own)] for v in range(self.num_views))

    @cached_property
    def numbers(self) -> dict[str, NDArray[np.float64]]:
        """What `draw` needs, by name: arrays (V, ...), and (V, 4) colour strengths."""
        names = [each.name for each in fields(self) if each.name not in SHARED]
        drawn = [name for name in names if name not in ("blur_kernel_size", "relative_size")]
        arrays = {name: np.array([getattr(v, name) for v in self.of_views]) for name in drawn}
        arrays["strength"] = np.stack([arrays[name] for name in COLOR_OPERATIONS], axis=-1)
        return arrays

    @cached_property
    def groups(self) -> tuple[ViewGroup, ...]:
        """The views by size, largest first."""
        groups: dict[tuple[int, int], list[int]] = {}
        for view, own in enumerate(self.of_views):
            size = max(1, round(own.image_size * own.relative_size))
            kernel = own.blur_kernel_size or min(size // 20 * 2 + 1, 2 * size - 1)
            groups.setdefault((size, kernel), []).append(view)
        return tuple(
            ViewGroup(tuple(views), *sizes) for sizes, views in sorted(groups.items(), reverse=True)
        )

    @classmethod
    def named(cls, name: str, **overrides: Any) -> "ViewRecipe":
        """Return a named recipe, some of its numbers replaced.

        For a number of channels other than the recipe's own, its mean and std become 0.5 and 0.25,
        and for one other than 3 the operations that need RGB are left out.

        Raises:
            ValueError: on an unknown recipe or number; the nearest names are proposed.
        """
        if name not in RECIPES:
            raise ValueError(
                f"recipe must be one of {sorted(RECIPES)}; got "
                f"{name!r}.{did_you_mean(name, RECIPES)}"
            )
        known = [each.name for each in fields(cls)]
        for key in overrides:
            if key not in known:
                raise ValueError(
                    f"a recipe has no number {key!r}.{did_you_mean(key, known)} It has {known}."
                )
        values = dict(RECIPES[name])
        channels = overrides.get("num_channels", values.get("num_channels", 3))
        if channels != values.get("num_channels", 3):
            drop = {"mean", "std"} | (
                set() if channels == 3 else {"saturation", "hue", "grayscale_prob"}
            )
            values = {key: value for key, value in values.items() if key not in drop}
        return cls(**{**values, **overrides})

    @classmethod
    def for_config(cls, config: "SSLViewsConfig") -> "ViewRecipe":
        """Return the recipe that a model configuration names."""
        return cls.named(
            config.recipe,
            **{
                **config.recipe_args,
                "image_size": config.image_size,
                "num_views": config.num_views,
                "num_channels": config.num_channels,
            },
        )

    def draw(
        self,
        indices: Sequence[int],
        heights: Sequence[int] | NDArray[np.int64],
        widths: Sequence[int] | NDArray[np.int64],
        *,
        epoch: int,
        seed: int = 0,
    ) -> ViewRecords:
        """Draw the records of B images, see `view_drawing.draw_records`."""
        return draw_records(self, indices, heights, widths, epoch=epoch, seed=seed)

    def views(
        self,
        images: Sequence[Tensor],
        indices: Sequence[int],
        *,
        epoch: int,
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """Draw and render all views of B images.

        Args:
            images: B uint8 tensors (C, H, W).
            indices: B image indices.
            epoch: pass over the data.
            seed: of the run.
            options: of `render`.

        Returns:
            (B, V, C, S, S).
        """
        heights, widths = [i.shape[1] for i in images], [i.shape[2] for i in images]
        records = self.draw(indices, heights, widths, epoch=epoch, seed=seed)
        return self.render(images, records, **options)

    def render(
        self, images: Sequence[Tensor] | PixelBatch, records: ViewRecords, **options: Any
    ) -> Tensor:
        """Render records of B images, drawn by this recipe, loaded, or written by hand.

        Args:
            images: B uint8 tensors (C, H, W), or a PixelBatch.
            records: of B images and V views.
            options: of `render_groups`.

        Returns:
            (B, V, C, S, S).
        """
        if len(self.groups) > 1:
            raise ValueError(
                "views of one tensor must have one size; this recipe's have "
                f"{[group.size for group in self.groups]} pixels. Use render_groups."
            )
        return self.render_groups(images, records, **options)[0]

    def render_groups(
        self,
        images: Sequence[Tensor] | PixelBatch,
        records: ViewRecords,
        *,
        normalize: bool = True,
        engine: Engine = "auto",
        num_threads: int = 1,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Render the views of every size.

        Args:
            images: B uint8 tensors (C, H, W), or a PixelBatch.
            records: of B images and V views.
            normalize: normalize_channels with the recipe's mean and std; off for looking at views.
            engine: "native" on the CPU, "torch" on the images' device, or "auto".
            num_threads: of the native engine.
            dtype: float32, bfloat16 or, without normalize, uint8.
            channels_last: write the channels of a pixel side by side in memory.
            out: memory to write to, one tensor per group.

        Returns:
            One tensor (B, V_g, C, S_g, S_g) per entry of `groups`.
        """
        results = []
        for number, group in enumerate(self.groups):
            rendering = Rendering(
                group.size,
                self.interpolation,
                group.kernel_size,
                self.mean if normalize else None,
                self.std if normalize else None,
                dtype,
                channels_last,
            )
            part = records if len(self.groups) == 1 else records.views(group.views)
            memory = None if out is None else out[number]
            results.append(
                render(images, part, rendering, engine=engine, num_threads=num_threads, out=memory)
            )
        return results

    def clean_view(
        self, images: Sequence[Tensor] | PixelBatch, normalize: bool = True, num_threads: int = 1
    ) -> Tensor:
        """Return one view per image without augmentation: (B, C, S, S) float32."""
        pixels = images if isinstance(images, PixelBatch) else PixelBatch.of(images)
        rendering = Rendering(
            self.image_size,
            self.interpolation,
            mean=self.mean if normalize else None,
            std=self.std if normalize else None,
        )
        records = clean_records(pixels.heights, pixels.widths)
        return render(pixels, records, rendering, num_threads=num_threads)[:, 0]
