"""What the engines refuse, saved records, and that the native engine was built."""

import logging
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from view_cases import assert_within, images_of, make_records, native, random_images

from ssl_views import ViewRecipe, view_engines
from ssl_views import native as native_module
from ssl_views.native import instruction_sets, render_native, why_missing
from ssl_views.pixels import PixelBatch
from ssl_views.view_engines import engine_name, render
from ssl_views.view_records import Rendering, ViewRecords, check_records

NAN, INF = float("nan"), float("inf")
built = pytest.mark.skipif(why_missing() is not None, reason="the native engine was not built")


@pytest.mark.skipif(
    "SSL_VIEWS_REQUIRE_NATIVE" not in os.environ, reason="SSL_VIEWS_REQUIRE_NATIVE is not set"
)
def test_the_native_engine_was_built():
    assert why_missing() is None
    assert instruction_sets()
    assert engine_name() == f"native ({instruction_sets()[-1]})"


@built
def test_every_instruction_set_of_the_processor_is_usable():
    cpuinfo = Path("/proc/cpuinfo")
    flags = set()
    if cpuinfo.is_file():
        flags = {word for line in cpuinfo.read_text().splitlines() for word in line.split()}
    if "sse2" not in flags:
        pytest.skip("needs /proc/cpuinfo of an x86 processor")
    expected = ["sse2"]
    if {"avx2", "fma"} <= flags:
        expected.append("avx2")
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            expected.append("avx512")
    assert instruction_sets() == expected


def box_of(*box):
    return np.array([[box]], dtype=np.int32)


def good(num_views=1):
    return make_records(np.repeat(box_of(2, 3, 4, 5), num_views, axis=1))


def changed(**changes):
    return make_records(box_of(2, 3, 4, 5), **changes)


def factors(operation, value):
    factor = np.array([1, 1, 1, 0], dtype=np.float32)
    factor[operation] = value
    return changed(factor=factor)


BAD_RECORDS = {
    "no views": (good(0), "at least one view; got none"),
    "too few rows": (good().images([]), "at least one view; got none"),
    "too many rows": (good().images([0, 0]), "one row of records per image; got 2 rows and 1"),
    **{
        f"box {box}": (make_records(box_of(*box)), "crop must lie inside its image; got .*10 x 12")
        for box in (
            *((-1, 0, 4, 4), (0, -1, 4, 4), (7, 0, 4, 4), (0, 9, 4, 4), (0, 0, 11, 1)),
            *((0, 0, 1, 13), (0, 0, 0, 4), (0, 0, 4, 0), (0, 0, -4, 4), (4, 4, 4, -4)),
            *((10, 0, 1, 1), (0, 12, 1, 1), (2**31 - 1, 0, 2**31 - 1, 1), (0, 0, 1, 2**31 - 1)),
            *((0, 2**31 - 1, 1, 2**31 - 1), (-(2**31), 0, 1, 1), (0, 0, -(2**31), 1)),
        )
    },
    **{
        f"factor {operation} {value}": (factors(operation, value), "factors must be finite")
        for operation, value in (
            *((operation, value) for operation in range(4) for value in (NAN, INF, -INF)),
            *((0, -0.1), (1, -1e-30), (2, -5), (3, 0.51), (3, -0.51), (3, 1e30)),
        )
    },
    "contrast twice": (changed(order=np.int8([1, 0, 1, -1])), "every operation at most once"),
    **{
        f"sigma {value}": (changed(blur_sigma=np.float32(value)), "blur_sigma must be finite")
        for value in (NAN, INF, -INF, -0.1, -1e-30)
    },
    **{
        f"order {value}": (
            changed(order=np.int8([0, value, -1, -1])),
            f"order .* -1 to 3; got {got}",
        )
        for value, got in ((4, "-1 to 4"), (127, "-1 to 127"), (-2, "-2 to 0"), (-128, "-128 to 0"))
    },
}


@built
@pytest.mark.parametrize(("records", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_records_are_refused_by_both_engines(records, message):
    images = random_images(1, 10, 12)
    with pytest.raises(ValueError, match=message):
        check_records(records, np.array([10]), np.array([12]), 3, Rendering(8))
    for engine in ("native", "torch"):
        with pytest.raises(ValueError, match=message):
            render(images, records, Rendering(8), engine=engine)


def test_the_message_names_the_bad_box():
    records = make_records(np.int32([[(0, 0, 5, 5), (0, 0, 5, 5)], [(0, 0, 5, 5), (1, 2, 3, 9)]]))
    with pytest.raises(
        ValueError, match=r"got .* = \[1, 2, 3, 9\] of image 1, which has 7 x 8 pix"
    ):
        check_records(records, np.array([9, 7]), np.array([9, 8]), 3, Rendering(8))


@pytest.mark.parametrize(
    "change", [{"order": np.int8([0, 2, -1, -1])}, {"grayscale": True}, {"order": np.int8(3)}]
)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_color_needs_three_channels(change, channels):
    records = changed(**change)
    with pytest.raises(ValueError, match=f"need 3 channels; got {channels}"):
        render(random_images(1, 10, 12, channels), records, Rendering(8))
    assert render(random_images(1, 10, 12, 3), changed(grayscale=True), Rendering(8)).shape[2] == 3


@pytest.mark.parametrize(("name", "mean", "std"), [("mean", 2, 3), ("std", 3, 1), ("mean", 4, 4)])
def test_normalization_needs_a_number_per_channel(name, mean, std):
    rendering = Rendering(8, mean=(0.5,) * mean, std=(0.2,) * std)
    message = (
        rf"{name} must have one value per channel \(3\); got {mean if name == 'mean' else std}"
    )
    with pytest.raises(ValueError, match=message):
        render(random_images(1, 10, 12), good(), rendering)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be a whole number, 1 to 8192; got 0"),
        ({"size": -3}, "size must be a whole number, 1 to 8192; got -3"),
        ({"size": 8193}, "size must be a whole number, 1 to 8192; got 8193"),
        ({"size": 8.5}, "size must be a whole number, 1 to 8192; got 8.5"),
        ({"interpolation": "nearest"}, "'bilinear' or 'bicubic'; got 'nearest'"),
        ({"mean": (0.5,)}, r"mean and std must be given together, .* got \(0.5,\) and None"),
        ({"std": (0.5,)}, "given together, std positive; got None and"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std positive; got \(0.5,\) and \(0.0,\)"),
        ({"dtype": torch.float16}, "dtype must be float32, bfloat16 or uint8; got torch.float16"),
        ({"dtype": torch.float64}, "got torch.float64"),
        ({"dtype": torch.uint8, "mean": (0.5,) * 3, "std": (0.5,) * 3}, "cannot be normalized"),
        ({"blur_kernel_size": 0}, "must be odd and below 2 . size = 16; got 0"),
        ({"blur_kernel_size": 4}, "must be odd .*; got 4"),
        ({"blur_kernel_size": -1}, "must be odd .*; got -1"),
        ({"blur_kernel_size": 17}, "below 2 . size = 16; got 17"),
        ({"size": 1, "blur_kernel_size": 3}, "below 2 . size = 2; got 3"),
    ],
)
def test_bad_renderings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rendering(**{"size": 8, **arguments})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(3, 4, 4),
            r"must be uint8 of shape \(C, H, W\).*got torch.float32 \(3, 4, 4\)",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.int8), "got torch.int8"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"got torch.uint8 \(4, 4\) at place 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"\(1, 3, 4, 4\) at place 1"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"at least one pixel; got .*\(3, 0, 4\)"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), r"at least one pixel; got .*\(3, 4, 0\)"),
        (torch.zeros(0, 4, 4, dtype=torch.uint8), r"at least one pixel; got .*\(0, 4, 4\)"),
        (
            torch.zeros(1, 4, 4, dtype=torch.uint8),
            "same number of channels, on one device; got 3 on cpu and 1 on cpu",
        ),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
            "got 3 on cpu and 3 on meta at place 1",
        ),
    ],
)
def test_bad_images_are_refused(image, message):
    first = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        PixelBatch.of([first, image])
    records = make_records(np.tile(box_of(0, 0, 4, 4), (2, 1, 1)))
    if why_missing() is None:
        with pytest.raises(ValueError, match=message):
            render([first, image], records, Rendering(8), engine="native")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image; got none"):
        PixelBatch.of([])


def test_images_of_a_device_are_refused_by_the_native_engine():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="must be on the CPU; got meta at place 0"):
        PixelBatch.of([image])


@pytest.mark.parametrize(("name", "dtype"), [("address", np.int32), ("heights", np.float64)])
def test_wrong_addresses_are_refused(name, dtype):
    good_batch = PixelBatch.of(random_images(2, 4, 4))
    for array in (getattr(good_batch, name).astype(dtype), getattr(good_batch, name)[:1]):
        with pytest.raises(ValueError, match="must be int64 of one length; got"):
            replace(good_batch, **{name: array})


def test_a_library_that_cannot_be_loaded_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "_views.so").write_bytes(b"no library")
    monkeypatch.setattr(native_module, "LIBRARY", tmp_path / "_views.so")
    native_module._load.cache_clear()
    try:
        assert "it cannot be loaded (" in why_missing()
    finally:
        native_module._load.cache_clear()


def test_a_batch_of_pixels_shares_its_memory():
    images = images_of([(4, 5), (1, 1), (300, 2)])
    batch = PixelBatch.of([i.permute(1, 2, 0).contiguous().permute(2, 0, 1) for i in images])
    again = PixelBatch.of(batch.tensors())
    assert len(batch) == 3
    assert np.array_equal(batch.address, again.address)
    assert (batch.heights.tolist(), batch.widths.tolist()) == ([4, 1, 300], [5, 1, 2])
    tensors = batch.tensors()
    del batch, again
    assert all(torch.equal(a, b) for a, b in zip(tensors, images, strict=True))


FIELDS = [field.name for field in fields(ViewRecords)]


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_arrays_of_records_are_refused(name):
    array = getattr(good(2), name)
    wrong = {
        "dtype": array.astype(np.float64),
        "views": array[:, :1],
        "images": np.repeat(array, 2, axis=0),
        "dimensions": array[0],
        "tail": array[..., :2] if array.ndim == 3 else array[..., None],
    }
    # The shape of flip is that of the others: where it is wrong, another is named.
    named = name if name != "flip" else "(box|flip)"
    for changed_array in wrong.values():
        with pytest.raises(ValueError, match=rf"{named} must have shape \(B, V.*got \("):
            replace(good(2), **{name: changed_array})


def test_arrays_of_records_need_not_be_contiguous():
    box = np.zeros((3, 2, 8), dtype=np.int32)[..., ::2]
    box[..., 2:] = 3
    records = make_records(box)
    assert records.box.flags.c_contiguous
    images = images_of([(3, 3), (4, 4), (5, 5)])
    swapped = np.asfortranarray(records.factor)
    views = render(images, replace(records, factor=swapped), Rendering(4))
    assert torch.equal(views, render(images, records, Rendering(4)))


@pytest.mark.parametrize("engine", ["", "cuda", "Native", None])
def test_unknown_engines_get_a_sentence(engine):
    with pytest.raises(ValueError, match=r"engine must be one of .*'auto', 'native', 'torch'"):
        render(random_images(1, 10, 12), good(), Rendering(8), engine=engine)


def test_wrong_calls_get_a_sentence():
    images = random_images(1, 10, 12)
    with pytest.raises(ValueError, match="num_threads must be at least 1; got 0"):
        render(images, good(), Rendering(8), num_threads=0)
    for engine in ("auto", "torch"):
        with pytest.raises(ValueError, match="at least one image; got none"):
            render([], good(0), Rendering(8), engine=engine)
    with pytest.raises(ValueError, match=r"out must be torch.float32 \(1, 1, 3, 8, 8\); got"):
        render(images, good(), Rendering(8), engine="torch", out=torch.empty(4, 1, 3, 8, 8))


@built
def test_unknown_instruction_sets_get_a_sentence():
    pixels = PixelBatch.of(random_images(1, 10, 12))
    with pytest.raises(ValueError, match=r"instruction_set must be one of \[.*; got 'mmx'"):
        render_native(pixels, good(), Rendering(8), instruction_set="mmx")


@built
@pytest.mark.parametrize(
    "out",
    [
        torch.empty(1, 1, 3, 8, 9),
        torch.empty(1, 3, 8, 8),
        torch.empty(1, 2, 3, 8, 8)[:, ::2][:, :, :2],
        torch.empty(1, 1, 3, 8, 8, dtype=torch.float64),
        torch.empty(1, 1, 3, 8, 8, dtype=torch.uint8),
        torch.empty(1, 1, 3, 8, 8, device="meta"),
        torch.empty(1, 1, 3, 8, 16)[..., ::2],
        torch.empty(1, 1, 8, 8, 3).permute(0, 1, 4, 2, 3),
        torch.empty(1, 1, 1, 8, 8).expand(1, 1, 3, 8, 8),
    ],
)
def test_memory_that_does_not_fit_is_refused(out):
    pixels = PixelBatch.of(random_images(1, 10, 12))
    with pytest.raises(
        ValueError, match=r"out must be torch.float32 \(1, 1, 3, 8, 8\), contiguous"
    ):
        render_native(pixels, good(), Rendering(8), out=out)


@built
def test_planar_memory_is_refused_for_channels_last():
    pixels = PixelBatch.of(random_images(1, 10, 12))
    for out in (torch.empty(1, 1, 3, 8, 8), torch.empty(3, 8, 8)):
        with pytest.raises(ValueError, match=r"channels last, on the CPU; got .* strides"):
            render_native(pixels, good(), Rendering(8, channels_last=True), out=out)


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(native_module, "LIBRARY", tmp_path / "_views.so")
    native_module._load.cache_clear()
    view_engines._say_once.cache_clear()
    yield
    native_module._load.cache_clear()
    view_engines._say_once.cache_clear()


@pytest.mark.usefixtures("without_library")
def test_a_missing_library_is_said_and_replaced_by_torch(caplog):
    assert "was not built, which takes a C" in why_missing()
    assert instruction_sets() == []
    assert engine_name() == engine_name("native") == "torch"
    images = random_images(1, 10, 12)
    with pytest.raises(ValueError, match=r"native engine must be there.*was not built"):
        render(images, good(), Rendering(8), engine="native")
    with caplog.at_level(logging.WARNING):
        views = [render(images, good(), Rendering(8)) for _ in range(3)]
        views.append(render(PixelBatch.of(images), good(), Rendering(8)))
    assert [r.getMessage() for r in caplog.records if "torch engine" in r.getMessage()] == [
        f"Views are rendered by the torch engine, many times slower than the native one: "
        f"{why_missing()}."
    ]
    for view in views:
        assert torch.equal(view, render(images, good(), Rendering(8), engine="torch"))


@built
def test_a_library_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(native_module, "_INTERFACE", -1)
    native_module._load.cache_clear()
    try:
        assert "other sources; install the package again" in why_missing()
        assert instruction_sets() == []
    finally:
        native_module._load.cache_clear()


@built
def test_the_engines_agree():
    recipe = ViewRecipe.named("imagenet", image_size=20, num_views=4, blur_prob=0.5)
    images = images_of([(33, 20), (20, 33), (1, 1)])
    views = recipe.views(images, range(3), epoch=0, engine="torch", normalize=False)
    for given in (images, PixelBatch.of(images)):
        records = recipe.draw(range(3), [33, 20, 1], [20, 33, 1], epoch=0)
        for engine in ("native", "auto", "torch"):
            again = recipe.render(given, records, engine=engine, normalize=False)
            assert_within(again, views, 2e-5)


@built
def test_too_little_memory_is_an_error(monkeypatch):
    library = native_module._load()
    pixels = PixelBatch.of(random_images(1, 10, 12))
    assert native([*random_images(1, 10, 12)], good(), Rendering(8)).shape == (1, 1, 3, 8, 8)

    class Full:
        def __getattr__(self, name):
            return getattr(library, name)

        def ssl_views_render(self, *_):
            return 1

    monkeypatch.setattr(native_module, "_load", lambda: Full())
    with pytest.raises(MemoryError, match="not enough memory to render views"):
        render_native(pixels, good(), Rendering(8))


def test_records_are_described():
    records = changed(
        flip=True,
        order=np.int8([3, -1, 1, 0]),
        factor=np.float32([1.25, 0.5, 1.0, -0.1]),
        grayscale=True,
        blur_sigma=np.float32(1.234),
        solarize=True,
    )
    assert records.describe(0, 0) == (
        "crop 4 x 5 at (2, 3); flip; hue by -0.10, contrast x 0.50, brightness x 1.25; "
        "grayscale; blur 1.23 px; solarize"
    )
    assert good(3).describe(0, 2) == "crop 4 x 5 at (2, 3)"


def test_saved_records_come_back(tmp_path):
    recipe = ViewRecipe.named("global_local")
    records = recipe.draw(range(5), [40] * 5, [50] * 5, epoch=2, seed=1)
    for path in (tmp_path / "records.npz", str(tmp_path / "without_ending")):
        records.save(path)
        again = ViewRecords.load(path)
        for name in FIELDS:
            assert getattr(again, name).dtype == getattr(records, name).dtype
            assert np.array_equal(getattr(again, name), getattr(records, name))
        assert [again.describe(1, v) for v in range(8)] == [
            records.describe(1, v) for v in range(8)
        ]


def test_damaged_files_are_refused(tmp_path):
    records = good()
    missing = {name: getattr(records, name) for name in FIELDS if name != "flip"}
    np.savez(tmp_path / "missing.npz", **missing)
    with pytest.raises(KeyError, match="flip"):
        ViewRecords.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "wrong.npz", **missing, flip=np.zeros((1, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="flip must have shape"):
        ViewRecords.load(tmp_path / "wrong.npz")
    objects = missing | {"flip": np.array([[None]], dtype=object)}
    np.savez(tmp_path / "objects.npz", **objects)
    with pytest.raises(ValueError, match="allow_pickle"):
        ViewRecords.load(tmp_path / "objects.npz")
