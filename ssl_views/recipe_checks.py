"""What the numbers of a recipe must be."""

from dataclasses import fields
from typing import TYPE_CHECKING

from ssl_views.naming import did_you_mean

if TYPE_CHECKING:
    from ssl_views.views import ViewRecipe

SHARED = ("num_views", "num_channels", "image_size", "interpolation", "mean", "std", "per_view")


def check_recipe(recipe: "ViewRecipe") -> None:
    """Refuse a recipe that draws or renders nothing sensible.

    Raises:
        ValueError: with what must hold, what came, and what to do.
    """
    if recipe.num_views < 2:
        raise ValueError(
            f"num_views must be at least 2; got {recipe.num_views}. The losses compare views of "
            "an image."
        )
    if recipe.image_size < 1 or recipe.num_channels < 1:
        raise ValueError(
            f"image_size and num_channels must be at least 1; got {recipe.image_size} and "
            f"{recipe.num_channels}. Set them to those of your images."
        )
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name.endswith("_prob") and not 0 <= value <= 1:
            raise ValueError(
                f"{field.name} must be in [0, 1]; got {value}. Probabilities are fractions."
            )
    for name in ("crop_scale", "crop_ratio", "blur_sigma"):
        value = getattr(recipe, name)
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            raise ValueError(
                f"{name} must be two numbers, 0 < smallest <= largest; got {value}. Swap or "
                "raise them."
            )
    if recipe.crop_scale[1] > 1:
        raise ValueError(
            f"crop_scale must be at most 1, the whole image; got {recipe.crop_scale}. Lower the "
            "second."
        )
    if (
        min(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue) < 0
        or recipe.hue > 0.5
    ):
        raise ValueError(
            "brightness, contrast and saturation must be >= 0 and hue in [0, 0.5]; got "
            f"{(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)}. 0 switches an "
            "operation off."
        )
    if recipe.interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f"interpolation must be 'bilinear' or 'bicubic'; got {recipe.interpolation!r}. "
            "Choose one."
        )
    for name in ("mean", "std"):
        value = getattr(recipe, name)
        if len(value) != recipe.num_channels:
            raise ValueError(
                f"{name} must have one value per channel ({recipe.num_channels}); got "
                f"{len(value)}. Give that many, or one for all."
            )
    if min(recipe.std) <= 0:
        raise ValueError(
            f"std must be positive; got {recipe.std}. Use the standard deviation of your pixels."
        )
    if recipe.num_channels != 3 and (recipe.saturation or recipe.hue or recipe.grayscale_prob):
        raise ValueError(
            f"saturation, hue and grayscale_prob need 3 channels; got {recipe.num_channels}. "
            "Set them to 0, or use ViewRecipe.named, which leaves them out."
        )
    if not 0 < recipe.relative_size <= 1:
        raise ValueError(
            f"relative_size must be in (0, 1]; got {recipe.relative_size}. 1 is image_size."
        )
    for numbers in recipe.per_view:
        for name in numbers:
            own = [field.name for field in fields(recipe) if field.name not in SHARED]
            if name not in own:
                raise ValueError(
                    f"per_view may hold {own}; got {name!r}.{did_you_mean(name, own)} All "
                    "views share the others."
                )
    for _, size, kernel in recipe.groups:
        if kernel % 2 == 0 or not 1 <= kernel <= 2 * size - 1:
            raise ValueError(
                f"blur_kernel_size must be odd and below 2 * image_size = {2 * size}; got "
                f"{kernel}. A tenth of image_size is usual."
            )
    if len(recipe.groups) > 2:
        raise ValueError(
            "views may have two sizes, of global and local crops; got "
            f"{[tuple(group[1:]) for group in recipe.groups]} (side, blur kernel). Give views of a "
            "relative_size the same blur_kernel_size."
        )
