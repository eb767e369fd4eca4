"""The recipes that have a name."""

from typing import Any

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CIFAR_MEAN = tuple(round(v / 255, 6) for v in (125.307, 122.961, 113.8575))
_CIFAR_STD = tuple(round(v / 255, 6) for v in (51.5865, 50.847, 51.255))
_COLOR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "jitter_prob": 0.8}
_PUBLISHED_PAIR = {
    "image_size": 224,
    "interpolation": "bicubic",
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "jitter_prob": 0.8,
    "grayscale_prob": 0.2,
    **_IMAGENET,
}
_BLUR_ASYMMETRY = ({"blur_prob": 1.0}, {"blur_prob": 0.1, "solarize_prob": 0.2})

RECIPES: dict[str, dict[str, Any]] = {
    # The next three: arXiv 2312.10725 and kumarkrishna/fastssl@96dfa37. Differs from source: the
    # authors' STL-10 and ImageNet training views are normalized with std := mean; here mean and std
    # are the data's.
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
    # The pair of facebookresearch/barlowtwins@8e8d284 and facebookresearch/vicreg@4e12602, which
    # are the same. Differs from source: float pixels, antialiased resizing of them, and a blur
    # kernel of 23 pixels where PIL approximates the Gaussian by box blurs.
    "barlow_twins": {
        **_PUBLISHED_PAIR,
        "num_views": 2,
        "per_view": _BLUR_ASYMMETRY,
    },
    # Two global crops and six small local ones, as facebookresearch/dino@7c446df. Differs from
    # source as the pair above does; the kernel of the local blur has 9 pixels.
    "global_local": {
        **_PUBLISHED_PAIR,
        "num_views": 8,
        "per_view": (
            {"crop_scale": (0.4, 1.0), "blur_prob": 1.0},
            {"crop_scale": (0.4, 1.0), "blur_prob": 0.1, "solarize_prob": 0.2},
            *[{"crop_scale": (0.05, 0.4), "blur_prob": 0.5, "relative_size": 96 / 224}] * 6,
        ),
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
RECIPES["vicreg"] = RECIPES["barlow_twins"]
