"""Views against torchvision's float functional, per operation and as a whole chain."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy.stats import kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter, RandomResizedCrop

from ssl_views import ViewRecipe
from ssl_views.native import why_missing
from ssl_views.torch_engine import render_torch
from ssl_views.view_records import Rendering, clean_records


def random_images(count, height, width, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return list(
        torch.randint(0, 256, (count, channels, height, width), generator=g, dtype=torch.uint8)
    )


def with_torchvision(image, records, at, recipe):
    """Render one view by torchvision's own functions."""
    x = image.float() / 255
    top, left, height, width = map(int, records.box[at])
    size = [recipe.image_size] * 2
    mode = InterpolationMode(recipe.interpolation)
    x = tv.resized_crop(x, top, left, height, width, size, mode, antialias=True)
    if recipe.interpolation == "bicubic":
        x = x.clamp(0, 1)
    if records.flip[at]:
        x = tv.horizontal_flip(x)
    adjust = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for operation in records.order[at]:
        if operation >= 0:
            x = adjust[operation](x, float(records.factor[at][operation]))
    if records.grayscale[at]:
        x = tv.rgb_to_grayscale(x, 3)
    if records.blur_sigma[at] > 0:
        x = tv.gaussian_blur(
            x, [recipe.groups[0].kernel_size] * 2, [float(records.blur_sigma[at])] * 2
        )
    if records.solarize[at]:
        x = tv.solarize(x, 0.5)
    return tv.normalize(x, list(recipe.mean), list(recipe.std))


CHAINS = {
    "crop": {},
    "flip": {"flip_prob": 1.0},
    "brightness": {"jitter_prob": 1.0, "brightness": 0.8},
    "contrast": {"jitter_prob": 1.0, "contrast": 0.8},
    "saturation": {"jitter_prob": 1.0, "saturation": 0.8},
    "hue": {"jitter_prob": 1.0, "hue": 0.5},
    "grayscale": {"grayscale_prob": 1.0},
    "blur": {"blur_prob": 1.0, "blur_kernel_size": 9},
    "solarize": {"solarize_prob": 1.0},
}
SOURCES = [(32, 32), (57, 91), (200, 150), (5, 7), (1, 1)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_every_operation_equals_torchvision(chain, interpolation):
    recipe = ViewRecipe(
        image_size=24, num_views=3, interpolation=interpolation, **{"flip_prob": 0.0, **chain}
    )
    for height, width in SOURCES:
        images = random_images(4, height, width)
        views = recipe.views(images, range(4), epoch=1)
        records = recipe.draw(range(4), [height] * 4, [width] * 4, epoch=1)
        for at in np.ndindex(4, 3):
            expected = with_torchvision(images[at[0]], records, at, recipe)
            torch.testing.assert_close(
                views[at], expected, atol=4e-5, rtol=0
            )  # std .25: 1e-5 of a pixel


@pytest.mark.parametrize("name", ["cifar", "stl", "imagenet"])
def test_a_whole_recipe_equals_torchvision(name):
    recipe = ViewRecipe.named(name, num_views=8, blur_prob=0.5, image_size=40)
    images = random_images(12, 64, 48)
    views = recipe.views(images, range(12), epoch=2, seed=9)
    records = recipe.draw(range(12), [64] * 12, [48] * 12, epoch=2, seed=9)
    for at in np.ndindex(12, 8):
        expected = with_torchvision(images[at[0]], records, at, recipe)
        torch.testing.assert_close(views[at], expected, atol=4e-5, rtol=0)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_mixed_sizes_in_a_batch_equal_each_alone(engine):
    # The native engine to the bit; torch to 1e-5 of a pixel, for it pads the others (std is .22).
    atol = 0 if engine == "auto" and why_missing() is None else 4e-5
    recipe = ViewRecipe.named("imagenet", image_size=16, num_views=2)
    images = [random_images(1, h, w, seed=h)[0] for h, w in ((20, 30), (9, 9), (20, 30), (41, 8))]
    together = recipe.views(images, [3, 1, 8, 5], epoch=0, engine=engine)
    for i, index in enumerate((3, 1, 8, 5)):
        alone = recipe.views([images[i]], [index], epoch=0, engine=engine)[0]
        torch.testing.assert_close(together[i], alone, atol=atol, rtol=0)


def test_a_large_batch_is_rendered_in_chunks_alike():
    recipe = ViewRecipe.named("imagenet", num_views=2, image_size=96)
    images = random_images(20, 30, 30)
    records = recipe.draw(range(20), [30] * 20, [30] * 20, epoch=0)
    views = render_torch(images, records, Rendering(96))
    torch.testing.assert_close(
        views[17:],
        render_torch(images[17:], records.images([17, 18, 19]), Rendering(96)),
        atol=1e-6,
        rtol=0,
    )


def test_a_clean_view_of_a_fitting_square_is_the_image():
    recipe = ViewRecipe.named("cifar")
    images = random_images(3, 32, 32)
    clean = recipe.clean_view(images, normalize=False)
    torch.testing.assert_close(clean, torch.stack(images) / 255, atol=1e-7, rtol=0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    torch.testing.assert_close(recipe.clean_view(images), (clean - mean) / std)


def test_a_clean_view_is_the_centre_of_a_wide_image():
    image = random_images(1, 10, 30)[0]
    records = clean_records(np.array([10]), np.array([30]))
    torch.testing.assert_close(
        render_torch([image], records, Rendering(10))[0, 0], image[:, :, 10:20] / 255
    )


def test_other_channel_counts_leave_out_what_needs_rgb():
    for channels in (1, 5):
        recipe = ViewRecipe.named("imagenet", image_size=8, num_channels=channels)
        views = recipe.views(random_images(6, 12, 12, channels), range(6), epoch=0)
        assert views.shape == (6, 4, channels, 8, 8)
        assert torch.isfinite(views).all()
        order = recipe.draw(range(6), [12] * 6, [12] * 6, epoch=0).order
        assert set(np.unique(order)) <= {-1, 0, 1}


def test_grey_contrast_equals_torchvision():
    recipe = ViewRecipe(image_size=16, num_channels=1, jitter_prob=1, brightness=0.4, contrast=0.4)
    images = random_images(4, 16, 16, 1)
    views = recipe.views(images, range(4), epoch=0)
    records = recipe.draw(range(4), [16] * 4, [16] * 4, epoch=0)
    for at in np.ndindex(4, 4):
        expected = with_torchvision(images[at[0]], records, at, recipe)
        torch.testing.assert_close(views[at], expected, atol=4e-5, rtol=0)


def test_drawn_numbers_have_torchvisions_distributions():
    count, height, width = 20000, 60, 90
    recipe = ViewRecipe.named("imagenet", num_views=2, blur_prob=0.5, saturation=0.3)
    records = recipe.draw(range(count), [height] * count, [width] * count, epoch=0)
    torch.manual_seed(0)
    crop = RandomResizedCrop(8, scale=recipe.crop_scale, ratio=recipe.crop_ratio)
    blank = torch.zeros(3, height, width)
    theirs = [crop.make_params([blank]) for _ in range(5000)]
    for column, name in enumerate(("top", "left", "height", "width")):
        ours = records.box[..., column].ravel()
        assert kstest(ours, [p[name] for p in theirs]).pvalue > 0.001, name
    jitter = ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    low_high = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    for operation, (low, high) in enumerate(low_high):
        factor = records.factor[..., operation].ravel()
        assert kstest(factor, "uniform", (low, high - low)).pvalue > 0.001
    jittered = records.order[..., 0] >= 0
    for drawn, prob in (
        (records.flip, 0.5),
        (jittered, 0.8),
        (records.grayscale, 0.2),
        (records.solarize, 0.2),
        (records.blur_sigma > 0, 0.5),
    ):
        assert drawn.mean() == pytest.approx(prob, abs=0.01)
    first = np.bincount(records.order[jittered][:, 0]) / jittered.sum()
    assert first == pytest.approx([0.25] * 4, abs=0.01)
    sigma = records.blur_sigma[records.blur_sigma > 0]
    assert kstest(sigma, "uniform", (0.1, 1.9)).pvalue > 0.001


def test_a_crop_that_never_fits_is_the_largest_centred_one():
    recipe = ViewRecipe(image_size=8, crop_scale=(1.0, 1.0))
    wide, tall = recipe.draw([0, 1], [10, 100], [100, 10], epoch=0).box[:, 0].tolist()
    assert wide == [0, 43, 10, 13]
    assert tall == [43, 0, 13, 10]


def test_boxes_stay_inside_images_of_any_size():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, (2, 3000))
    box = ViewRecipe.named("cifar").draw(range(3000), heights, widths, epoch=0).box
    assert (box[..., :2] >= 0).all()
    assert (box[..., 2:] >= 1).all()
    assert (box[..., 0] + box[..., 2] <= heights[:, None]).all()
    assert (box[..., 1] + box[..., 3] <= widths[:, None]).all()


def test_the_papers_recipes():
    cifar, stl, imagenet = (ViewRecipe.named(name) for name in ("cifar", "stl", "imagenet"))
    assert [r.image_size for r in (cifar, stl, imagenet)] == [32, 64, 224]
    assert [r.crop_scale for r in (cifar, stl, imagenet)] == [(0.08, 1), (0.2, 1), (0.08, 1)]
    assert [r.grayscale_prob for r in (cifar, stl, imagenet)] == [0.2, 0.1, 0.2]
    assert [r.hue for r in (cifar, stl, imagenet)] == [0, 0, 0.1]
    assert [r.solarize_prob for r in (cifar, stl, imagenet)] == [0, 0, 0.2]
    for recipe in (cifar, stl, imagenet):
        assert (recipe.jitter_prob, recipe.brightness, recipe.blur_prob, recipe.flip_prob) == (
            0.8,
            0.4,
            0,
            0.5,
        )
    assert cifar.mean == pytest.approx([v / 255 for v in (125.307, 122.961, 113.8575)], abs=1e-5)
    assert ViewRecipe.named("cifar", crop_scale=[0.3, 0.9]).crop_scale == (0.3, 0.9)


GOOD = ViewRecipe.named("cifar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_views": 1}, "num_views must be at least 2; got 1"),
        ({"image_size": 0}, "image_size and num_channels must be at least 1; got 0"),
        ({"flip_prob": 1.5}, r"flip_prob must be in \[0, 1\]; got 1.5"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale must be two numbers, 0 < smallest <= largest"),
        ({"crop_scale": (0.5, 2)}, "crop_scale must be at most 1"),
        ({"hue": 0.7}, r"hue in \[0, 0.5\]"),
        ({"interpolation": "nearest"}, "'bilinear' or 'bicubic'; got 'nearest'"),
        ({"mean": (0.1, 0.2)}, r"one value per channel \(3\); got 2"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"num_channels": 1, "mean": (0.5,), "std": (0.5,)}, "need 3 channels; got 1"),
        ({"blur_prob": 0.5, "blur_kernel_size": 4}, "must be odd"),
        ({"blur_prob": 0.5, "blur_kernel_size": 65}, "below 2 . image_size = 64; got 65"),
    ],
)
def test_wrong_recipes_get_a_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change)


def test_unknown_recipe_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"got 'cifr'.*Did you mean 'cifar'"):
        ViewRecipe.named("cifr")
    with pytest.raises(ValueError, match=r"no number 'crop_scal'.*Did you mean 'crop_scale'"):
        ViewRecipe.named("cifar", crop_scal=1)
