"""The native engine against torchvision's float functional, and what its bits may depend on."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from view_cases import (
    FEW_CHANNELS,
    OPERATIONS,
    Case,
    assert_within,
    extreme_boxes,
    gain,
    images_of,
    make_records,
    native,
    random_boxes,
    random_images,
    records_of,
)

from ssl_views import ViewRecipe
from ssl_views.native import instruction_sets
from ssl_views.view_records import Rendering, ViewRecords

EXACT = 1e-5  # of a pixel in [0, 1]
SMALL_SOURCES = [(1, 1), (5, 7), (37, 37), (32, 32), (96, 96), (1, 300), (300, 1)]
SIZES = [1, 2, 3, 5, 15, 16, 17, 32, 37, 96, 224]
DTYPES = [torch.float32, torch.bfloat16, torch.uint8]

isas = pytest.mark.parametrize("isa", instruction_sets())
interpolations = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the native engine was not built")


# What torchvision gives is kept, for the instruction sets to share.
@cache
def case_of_operation(operation, interpolation, channels=3):
    rng = np.random.default_rng(OPERATIONS.index(operation))
    images = images_of(SMALL_SOURCES, channels)
    boxes = random_boxes(rng, SMALL_SOURCES, 4)
    boxes[:, 0] = [(0, 0, *size) for size in SMALL_SOURCES]
    records = records_of(operation, boxes, rng, channels)
    return Case.of(images, records, Rendering(24, interpolation, 9))


@cache
def case_of_size(size, interpolation):
    rng = np.random.default_rng(size)
    sources = [*SMALL_SOURCES, (224, 224)] if size < 224 else [(5, 7), (96, 96), (224, 224)]
    boxes = np.stack([extreme_boxes(*source) for source in sources])
    records = records_of("all", boxes, rng)
    rendering = Rendering(size, interpolation, min(9, 2 * size - 1))
    return Case.of(images_of(sources, seed=size), records, rendering)


@cache
def case_of_large_image(size, interpolation):
    rng = np.random.default_rng(size)
    boxes = np.concatenate([extreme_boxes(4000, 3000), random_boxes(rng, [(4000, 3000)], 2)[0]])
    records = records_of("all", boxes[None], rng)
    rendering = Rendering(size, interpolation, min(9, 2 * size - 1))
    return Case.of(random_images(1, 4000, 3000), records, rendering)


@cache
def case_of_blur(size, kernel_size):
    sigmas = np.array([[0.05, 0.1, 0.3, 0.7, 1.0, 2.0, 3.5, 10.0]], dtype=np.float32)
    boxes = random_boxes(np.random.default_rng(size), [(40, 30)], sigmas.size)
    records = make_records(boxes, blur_sigma=sigmas)
    return Case.of(random_images(1, 40, 30), records, Rendering(size, "bilinear", kernel_size))


@isas
@interpolations
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_equals_torchvision(isa, interpolation, operation):
    case = case_of_operation(operation, interpolation)
    assert_within(case.native(instruction_set=isa), case.expected, EXACT)


@isas
@interpolations
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_extreme_crop_equals_torchvision(isa, interpolation, size):
    case = case_of_size(size, interpolation)
    atol = EXACT * gain(case.records)  # both round the place of a pixel to float32
    assert_within(case.native(instruction_set=isa), case.expected, atol)


@isas
@interpolations
@pytest.mark.parametrize("size", [1, 37, 224])
def test_crops_of_a_large_image_equal_torchvision(isa, interpolation, size):
    case = case_of_large_image(size, interpolation)
    atol = EXACT * gain(case.records)
    assert_within(case.native(instruction_set=isa), case.expected, atol)


@isas
@pytest.mark.parametrize(
    ("size", "kernel_size"),
    [
        *((1, 1), (2, 1), (2, 3), (3, 5), (5, 3), (5, 9), (15, 29), (16, 31), (17, 33), (17, 5)),
        *((37, 35), (37, 73), (96, 9), (224, 23)),
    ],
)
def test_every_blur_equals_torchvision(isa, size, kernel_size):
    case = case_of_blur(size, kernel_size)
    assert_within(case.native(instruction_set=isa), case.expected, EXACT)


@isas
@interpolations
@pytest.mark.parametrize("operation", FEW_CHANNELS)
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_other_channel_counts_equal_the_reference(isa, interpolation, channels, operation):
    case = case_of_operation(operation, interpolation, channels)
    assert_within(case.native(instruction_set=isa), case.expected, EXACT)


@isas
@interpolations
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_uint8_views_are_the_rounded_pixels(isa, interpolation, channels):
    case = case_of_operation("all", interpolation, channels)
    rendering = replace(case.rendering, dtype=torch.uint8)
    views = native(case.images, case.records, rendering, instruction_set=isa)
    assert views.dtype == torch.uint8
    assert_within(views, case.expected * 255, 0.5 + 255 * EXACT)


@isas
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_bfloat16_views_are_the_rounded_float32_views(isa, channels):
    mean, std = (0.5, 0.4, 0.3, 0.2, 0.1)[:channels], (0.2, 0.25, 0.3, 0.4, 0.5)[:channels]
    case = case_of_operation("all", "bicubic", channels)
    rendering = replace(case.rendering, mean=mean, std=std)
    views = native(case.images, case.records, rendering, instruction_set=isa)
    shape = (-1, 1, 1)
    normalized = (case.expected - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert_within(views, normalized, EXACT / min(std) + 1e-6)
    rounded = native(
        case.images, case.records, replace(rendering, dtype=torch.bfloat16), instruction_set=isa
    )
    assert torch.equal(rounded, views.bfloat16())


@isas
@pytest.mark.parametrize("name", ["cifar", "stl", "imagenet", "barlow_twins", "digits"])
def test_drawn_recipes_equal_torchvision(isa, name):
    case, std = case_of_recipe(name)
    views = case.native(instruction_set=isa)
    assert_within(views, case.expected, EXACT / std + 1e-6)


@cache
def case_of_recipe(name):
    recipe = ViewRecipe.named(name, num_views=4, image_size=64)
    sources = [(48, 64), (64, 48), (200, 150), (33, 90)] * 2
    records = recipe.draw(range(8), *zip(*sources, strict=True), epoch=3, seed=1)
    (_, size, kernel_size) = recipe.groups[0]
    rendering = Rendering(size, recipe.interpolation, kernel_size, recipe.mean, recipe.std)
    images = images_of(sources, recipe.num_channels)
    return Case.of(images, records, rendering), min(recipe.std)


def test_the_reference_can_fail():
    case = case_of_operation("all", "bilinear")
    assert_within(case.native(), case.expected, EXACT)
    for change in ({"interpolation": "bicubic"}, {"blur_kernel_size": 7}):
        views = native(case.images, case.records, replace(case.rendering, **change))
        with pytest.raises(AssertionError, match="is off by"):
            assert_within(views, case.expected, EXACT)


def some_case(channels=3, seed=0, count=6, num_views=5):
    """Images of several sizes, whose records do everything."""
    rng = np.random.default_rng(seed)
    sizes = [(32, 32), (5, 7), (61, 40), (32, 32), (1, 1), (90, 200)][:count]
    records = records_of("all", random_boxes(rng, sizes, num_views), rng, channels)
    return images_of(sizes, channels, seed), records


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_both_layouts_hold_the_same_bits(isa, dtype, channels):
    images, records = some_case(channels)
    for size in (1, 2, 5, 15, 16, 17, 33):
        rendering = Rendering(size, "bicubic", min(5, 2 * size - 1), dtype=dtype)
        if dtype != torch.uint8:
            rendering = replace(rendering, mean=(0.4,) * channels, std=(0.3,) * channels)
        planar = native(images, records, rendering, instruction_set=isa)
        last = replace(rendering, channels_last=True)
        interleaved = native(images, records, last, instruction_set=isa)
        assert planar.is_contiguous()
        assert interleaved.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(planar, interleaved)


@isas
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_number_of_threads_changes_no_bit(isa, channels_last):
    images, records = some_case()
    rendering = Rendering(24, "bicubic", 5, channels_last=channels_last)
    alone = native(images, records, rendering, instruction_set=isa)
    for num_threads in (2, 3, 8, 100):
        for _ in range(5):
            views = native(images, records, rendering, num_threads=num_threads, instruction_set=isa)
            assert torch.equal(views, alone)


@isas
def test_a_mixed_batch_holds_the_bits_of_each_image_and_view_alone(isa):
    images, records = some_case()
    rendering = Rendering(20, "bicubic", 7, (0.5,) * 3, (0.25,) * 3)
    together = native(images, records, rendering, instruction_set=isa)
    for i, image in enumerate(images):
        one = records.images([i])
        alone = native([image], one, rendering, instruction_set=isa)
        assert torch.equal(together[i], alone[0])
        for v in range(one.flip.shape[1]):
            view = native([image], one.views([v]), rendering, instruction_set=isa)
            assert torch.equal(together[i, v], view[0, 0])


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_are_written_to_given_memory(isa, dtype, channels_last):
    images, records = some_case(num_views=3)
    rendering = Rendering(9, dtype=dtype, channels_last=channels_last)
    expected = native(images, records, rendering, instruction_set=isa)
    out = torch.empty_like(expected).fill_(99)
    assert out.stride() == expected.stride()
    views = native(images, records, rendering, out=out, instruction_set=isa)
    assert views.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_memory_may_begin_anywhere_and_nothing_around_it_is_written(
    isa, dtype, channels_last, channels
):
    images, records = some_case(channels, num_views=3)
    for size in (1, 3, 16, 17, 32):
        rendering = Rendering(size, dtype=dtype, channels_last=channels_last)
        expected = native(images, records, rendering, instruction_set=isa)
        for start in (64, 65, 67, 76):  # pixels
            memory = torch.full((start + expected.numel() + 64,), 77, dtype=dtype)
            out = memory.as_strided(expected.shape, expected.stride(), start)
            native(images, records, rendering, out=out, instruction_set=isa)
            assert torch.equal(out, expected)
            assert (memory[:start] == 77).all()
            assert (memory[-64:] == 77).all()


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_batches_hold_the_bits_of_small_ones(isa, dtype, channels_last):
    """Views that do not fit into the caches may be written past them."""
    images, records = some_case(num_views=14)
    rendering = Rendering(224, dtype=dtype, channels_last=channels_last)  # 50 MB of float32
    views = native(images, records, rendering, num_threads=2, instruction_set=isa)
    memory = torch.full((views.numel() + 3 + 64,), 77, dtype=dtype)
    out = memory.as_strided(views.shape, views.stride(), 3)
    native(images, records, rendering, out=out, instruction_set=isa)
    assert torch.equal(out, views)
    assert (memory[:3] == 77).all()
    assert (memory[-64:] == 77).all()
    for i, v in ((0, 0), (2, 7), (5, 13)):
        one = records.images([i]).views([v])
        alone = native([images[i]], one, rendering, instruction_set=isa)
        assert torch.equal(alone[0, 0], views[i, v])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_the_memory_of_the_images_changes_no_bit(channels):
    images, records = some_case(channels)
    rendering = Rendering(16, "bicubic", 5)
    expected = native(images, records, rendering)
    last = [i.permute(1, 2, 0).contiguous().permute(2, 0, 1) for i in images]
    part = [torch.nn.functional.pad(i, (3, 2, 1, 4))[:, 1:-4, 3:-2] for i in images]
    step = [i.repeat_interleave(2, dim=-1)[..., ::2] for i in images]
    turned = [i.transpose(1, 2).contiguous().transpose(1, 2) for i in images]
    for others in (last, part, step, turned):
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
        assert torch.equal(native(others, records, rendering), expected)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_autocast_changes_no_bit(engine):
    recipe = ViewRecipe.named("imagenet", image_size=32, num_views=3, blur_prob=0.5)
    images = images_of([(40, 50), (32, 32), (64, 20)])
    views = recipe.views(images, range(3), epoch=0, engine=engine)
    clean = recipe.clean_view(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recipe.views(images, range(3), epoch=0, engine=engine), views)
        assert torch.equal(recipe.clean_view(images), clean)
    assert views.dtype == clean.dtype == torch.float32


def test_clean_views_are_the_largest_centred_square():
    recipe = ViewRecipe.named("cifar", image_size=10)
    wide, tall = images_of([(10, 31), (24, 10)])
    clean = recipe.clean_view([wide, tall], normalize=False)
    assert_within(
        clean[:, None], torch.stack([wide[:, :, 10:20], tall[:, 7:17]])[:, None] / 255, 1e-7
    )
    (mean, std) = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    assert_within(recipe.clean_view([wide, tall])[:, None], ((clean - mean) / std)[:, None], 2e-6)


@isas
@interpolations
def test_constant_images_stay_constant(isa, interpolation):
    rng = np.random.default_rng(0)
    for value in (0, 1, 128, 255):
        images = [torch.full((3, 50, 41), value, dtype=torch.uint8)]
        records = make_records(
            random_boxes(rng, [(50, 41)], 40), blur_sigma=np.float32(1.5), flip=True
        )
        rendering = Rendering(19, interpolation, 9, dtype=torch.uint8)
        assert (native(images, records, rendering, instruction_set=isa) == value).all()


@isas
def test_extreme_numbers_stay_finite_and_in_range(isa):
    biggest = np.finfo(np.float32).max
    factor = np.array([[biggest] * 3 + [0.5], [0, 0, 0, -0.5], [1e-45] * 4], dtype=np.float32)
    sigma = np.array([biggest, 1e-45, 1e-20], dtype=np.float32)
    boxes = np.repeat(extreme_boxes(20, 30)[None], 3, axis=0).transpose(1, 0, 2)
    images = random_images(len(boxes), 20, 30)
    for first in range(4):
        order = np.roll(np.arange(4, dtype=np.int8), first)
        records = make_records(boxes.copy(), order=order, factor=factor, blur_sigma=sigma)
        views = native(images, records, Rendering(11, "bicubic", 21), instruction_set=isa)
        assert torch.isfinite(views).all()
        assert views.min() >= 0
        assert views.max() <= 1 + 1e-6


def test_records_are_replayed_bit_for_bit(tmp_path):
    recipe = ViewRecipe.named("imagenet", image_size=24, num_views=3, blur_prob=0.5)
    images = images_of([(40, 50), (32, 32), (64, 20)])
    views = recipe.views(images, [5, 3, 8], epoch=2, seed=1)
    records = recipe.draw([5, 3, 8], [40, 32, 64], [50, 32, 20], epoch=2, seed=1)
    records.save(tmp_path / "records.npz")
    again = ViewRecords.load(tmp_path / "records.npz")
    for name, array in vars(records).items():
        assert getattr(again, name).dtype == array.dtype
        assert np.array_equal(getattr(again, name), array)
    assert torch.equal(recipe.render(images, again), views)
    assert torch.equal(recipe.render(images[1:2], again.images([1])), views[1:2])
    assert torch.equal(recipe.render(images, again.views([2, 0])), views[:, [2, 0]])
