"""View recipes: what is random about a view, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from ssl_views.naming import did_you_mean
from ssl_views.view_drawing import draw_records
from ssl_views.view_engine import ViewRecords, clean_records, render

if TYPE_CHECKING:
    from ssl_views.configuration_ssl_views import SSLViewsConfig

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CIFAR_MEAN = tuple(round(v / 255, 6) for v in (125.307, 122.961, 113.8575))
_CIFAR_STD = tuple(round(v / 255, 6) for v in (51.5865, 50.847, 51.255))
_COLOR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "jitter_prob": 0.8}

# The first three: arXiv 2312.10725 and kumarkrishna/fastssl@96dfa37. Differs from source: the
# authors' STL-10 and ImageNet training views are normalized with std := mean; here mean and std are
# the data's.
RECIPES: dict[str, dict[str, Any]] = {
    "cifar": {
        "image_size": 32,
        "grayscale_prob": 0.2,
        "mean": _CIFAR_MEAN,
        "std": _CIFAR_STD,
        **_COLOR,
    },
    "stl": {
        "image_size": 64,
        "crop_scale": (0.2, 1.0),
        "grayscale_prob": 0.1,
        **_COLOR,
        **_IMAGENET,
    },
    "imagenet": {
        "image_size": 224,
        "hue": 0.1,
        "grayscale_prob": 0.2,
        "solarize_prob": 0.2,
        **_COLOR,
        **_IMAGENET,
    },
    "digits": {
        "image_size": 32,
        "num_channels": 1,
        "crop_scale": (0.4, 1.0),
        "flip_prob": 0.0,
        "brightness": 0.4,
        "contrast": 0.4,
        "jitter_prob": 0.8,
        "mean": (0.3,),
        "std": (0.3,),
    },
}


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

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.num_views < 2:
            raise ValueError(
                f"num_views must be at least 2; got {self.num_views}. The losses compare views of "
                "an image."
            )
        if self.image_size < 1 or self.num_channels < 1:
            raise ValueError(
                f"image_size and num_channels must be at least 1; got {self.image_size} and "
                f"{self.num_channels}. Set them to those of your images."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_prob") and not 0 <= value <= 1:
                raise ValueError(
                    f"{field.name} must be in [0, 1]; got {value}. Probabilities are fractions."
                )
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise ValueError(
                    f"{name} must be two numbers, 0 < smallest <= largest; got {value}. Swap or "
                    "raise them."
                )
        if self.crop_scale[1] > 1:
            raise ValueError(
                f"crop_scale must be at most 1, the whole image; got {self.crop_scale}. Lower the "
                "second."
            )
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(
                "brightness, contrast and saturation must be >= 0 and hue in [0, 0.5]; got "
                f"{(self.brightness, self.contrast, self.saturation, self.hue)}. 0 switches an "
                "operation off."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic'; got {self.interpolation!r}. "
                "Choose one."
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) == 1:
                object.__setattr__(self, name, value * self.num_channels)
            elif len(value) != self.num_channels:
                raise ValueError(
                    f"{name} must have one value per channel ({self.num_channels}); got "
                    f"{len(value)}. Give that many, or one for all."
                )
        if min(self.std) <= 0:
            raise ValueError(
                f"std must be positive; got {self.std}. Use the standard deviation of your pixels."
            )
        if self.num_channels != 3 and (self.saturation or self.hue or self.grayscale_prob):
            raise ValueError(
                f"saturation, hue and grayscale_prob need 3 channels; got {self.num_channels}. "
                "Set them to 0, or use ViewRecipe.named, which leaves them out."
            )
        kernel = self.kernel_size
        if self.blur_prob and (kernel % 2 == 0 or not 1 <= kernel <= 2 * self.image_size - 1):
            raise ValueError(
                f"blur_kernel_size must be odd and below 2 * image_size = {2 * self.image_size}; "
                f"got {kernel}. A tenth of image_size is usual."
            )

    @property
    def kernel_size(self) -> int:
        """The blur kernel's side in pixels."""
        return self.blur_kernel_size or self.image_size // 20 * 2 + 1

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
        known = [field.name for field in fields(cls)]
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
        heights: Sequence[int],
        widths: Sequence[int],
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
        normalize: bool = True,
    ) -> Tensor:
        """Draw and render all views of B images.

        Args:
            images: B uint8 tensors (C, H, W).
            indices: B image indices.
            epoch: pass over the data.
            seed: of the run.
            normalize: normalize_channels with the recipe's mean and std; off for looking at views.

        Returns:
            (B, V, C, S, S) float32.
        """
        heights, widths = [i.shape[1] for i in images], [i.shape[2] for i in images]
        records = self.draw(indices, heights, widths, epoch=epoch, seed=seed)
        return self._render(images, records, normalize)

    def clean_view(self, images: Sequence[Tensor], normalize: bool = True) -> Tensor:
        """Return one view per image without augmentation: (B, C, S, S) float32."""
        sizes = np.array([image.shape[1:] for image in images])
        return self._render(images, clean_records(sizes[:, 0], sizes[:, 1]), normalize)[:, 0]

    def _render(self, images: Sequence[Tensor], records: ViewRecords, normalize: bool) -> Tensor:
        return render(
            images,
            records,
            self.image_size,
            interpolation=self.interpolation,
            blur_kernel_size=self.kernel_size,
            mean=self.mean if normalize else None,
            std=self.std if normalize else None,
        )
