"""The torch engine against torchvision: as the CPU runs it, as an accelerator does, compiled."""

import logging

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
    random_boxes,
    random_images,
    records_of,
)

from ssl_views import ViewRecipe, torch_engine
from ssl_views.torch_engine import render_torch
from ssl_views.view_records import Rendering

PIXEL = 1e-5


@pytest.fixture(params=["cpu", "accelerator"])
def way(request, monkeypatch):
    """Both ways of choosing what to compute; the accelerator's without compiling."""
    if request.param == "accelerator":
        monkeypatch.setattr(torch_engine, "_render_on_cpu", torch_engine._render_on_accelerator)
        monkeypatch.setattr(torch_engine, "_compiled", lambda: torch_engine.render_views)


def case_of(operation, sizes, size, *, channels=3, interpolation="bilinear", seed=0):
    rng = np.random.default_rng(seed)
    records = records_of(operation, random_boxes(rng, sizes, 6), rng, channels)
    kernel_size = min(size // 10 * 2 + 1, 2 * size - 1)
    rendering = Rendering(size, interpolation, kernel_size)
    return Case.of(images_of(sizes, channels, seed), records, rendering)


def check(case):
    views = render_torch(case.images, case.records, case.rendering)
    assert_within(views, case.expected, PIXEL * gain(case.records))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_equals_torchvision(operation, interpolation):
    for size, source in ((37, (32, 32)), (24, (57, 91)), (8, (1, 1)), (1, (5, 7)), (96, (40, 30))):
        check(case_of(operation, [source] * 3, size, interpolation=interpolation))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("operation", FEW_CHANNELS)
def test_other_channel_counts_equal_torchvision(operation, channels):
    check(case_of(operation, [(20, 30)] * 4, 16, channels=channels))


@pytest.mark.usefixtures("way")
def test_mixed_sizes_equal_torchvision():
    check(case_of("all", [(20, 30), (9, 9), (1, 1), (20, 30), (300, 400), (41, 8)], 16))


@pytest.mark.usefixtures("way")
def test_extreme_crops_equal_torchvision():
    box = np.stack([extreme_boxes(33, 47)] * 2)
    rendering = Rendering(20, "bicubic")
    check(Case.of(images_of([(33, 47)] * 2), make_records(box), rendering))


@pytest.mark.parametrize("turn", [-0.5, -1 / 3, -1 / 6, -0.1, 0, 0.05, 1 / 6, 0.25, 1 / 3, 0.5])
def test_a_hue_of_every_kind_of_pixel_equals_torchvision(turn):
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    pixels = torch.cartesian_prod(levels, levels, levels)[:196].T.reshape(3, 14, 14)
    box = np.int32([[[0, 0, 14, 14]]])
    records = make_records(box, order=np.int8([3, -1, -1, -1]), factor=np.float32([1, 1, 1, turn]))
    check(Case.of([pixels.contiguous()], records, Rendering(14)))


def test_a_large_view_is_rendered_view_by_view_alike():
    check(case_of("all", [(256, 300)] * 2, 224))


def test_a_large_image_equals_torchvision():
    image = random_images(1, 3000, 4000)[0]
    records = make_records(np.int32([[[10, 20, 2900, 3000], [2000, 3000, 800, 900]]]))
    check(Case.of([image], records, Rendering(224)))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_dtypes_and_layouts_hold_the_same_views(dtype, channels_last):
    case = case_of("all", [(40, 30)] * 5, 16)
    views = render_torch(
        case.images,
        case.records,
        Rendering(16, blur_kernel_size=3, dtype=dtype, channels_last=channels_last),
    )
    plain = render_torch(case.images, case.records, case.rendering)
    assert views.dtype == dtype
    memory = views.permute(0, 1, 3, 4, 2) if channels_last else views
    assert memory.is_contiguous()
    expected = (plain * 255 + 0.5).floor() if dtype == torch.uint8 else plain
    assert torch.equal(views, expected.to(dtype))


def test_autocast_does_not_reach_the_engine():
    case = case_of("all", [(40, 30)] * 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(case)


@pytest.mark.slow
def test_the_accelerators_function_compiles_as_one_graph(monkeypatch):
    compiled = torch.compile(torch_engine.render_views, fullgraph=True)
    monkeypatch.setattr(torch_engine, "_render_on_cpu", torch_engine._render_on_accelerator)
    monkeypatch.setattr(torch_engine, "_compiled", lambda: compiled)
    monkeypatch.setattr(torch_engine, "_failures", [])
    recipe = ViewRecipe.named("cifar", hue=0.1, blur_prob=0.5, solarize_prob=0.3)
    images = random_images(8, 32, 32)
    records = recipe.draw(range(8), [32] * 8, [32] * 8, epoch=0)
    check(Case.of(images, records, Rendering(32, blur_kernel_size=3)))
    assert not torch_engine._failures


def test_what_cannot_be_compiled_is_said_and_rendered(monkeypatch, caplog):
    def fails(*args):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here")

    monkeypatch.setattr(torch_engine, "_render_on_cpu", torch_engine._render_on_accelerator)
    monkeypatch.setattr(torch_engine, "_compiled", lambda: fails)
    monkeypatch.setattr(torch_engine, "_failures", [])
    with caplog.at_level(logging.WARNING):
        check(case_of("all", [(20, 30)] * 2, 16))
        check(case_of("all", [(20, 30)] * 2, 16))
    assert [r.getMessage() for r in caplog.records] == [
        "Views are rendered without torch.compile, several times slower: no compiler here"
    ]
