"""The fast way to decode JPEG gives what Pillow gives, or leaves the file to Pillow."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from ssl_views.data import decode
from ssl_views.data.decode import decode_image, decode_pixels
from ssl_views.data.image_limits import BadImage, ImageLimits, PixelFormatError
from ssl_views.data.image_roots import allow_images_below

SIZES = [(1, 1), (1, 2), (2, 1), (7, 9), (8, 8), (9, 16), (16, 15), (17, 33)]
ANY_SIZE = ImageLimits(min_side=1)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def smooth(height, width, seed=0):
    """A picture with edges and ramps, so that chroma and rounding matter."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (max(2, height // 5), max(2, width // 5), 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def answer(encoded, num_channels):
    """The pixels, or the class of an expected error; any other error fails the test."""
    try:
        return decode_pixels(encoded, num_channels, ANY_SIZE)
    except BadImage:
        return BadImage


def pillow(encoded, num_channels):
    """What Pillow alone gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_decode_jpeg", lambda *_: None)
        return answer(encoded, num_channels)


def is_same(a, b):
    if a is BadImage or b is BadImage:
        return a is b
    return a.dtype == b.dtype == np.uint8 and np.array_equal(a, b)


def is_fast(encoded, num_channels):
    return decode._decode_jpeg(encoded, num_channels, ANY_SIZE) is not None


def exif_block(*entries):
    """An EXIF segment of entries (tag, type, count, four bytes)."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


@pytest.mark.parametrize("quality", [5, 50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_colour_is_that_of_pillow(progressive, subsampling, quality):
    for seed, size in enumerate(SIZES):
        image = smooth(*size, seed)
        encoded = jpeg(image, quality=quality, subsampling=subsampling, progressive=progressive)
        assert is_fast(encoded, 3)
        assert is_same(answer(encoded, 3), pillow(encoded, 3)), size
        # Grey of a colour image is made by Pillow from RGB; the file holds another one.
        assert not is_fast(encoded, 1)
        assert np.array_equal(
            decode_pixels(encoded, 1, ANY_SIZE)[:, :, 0],
            Image.open(io.BytesIO(encoded)).convert("L"),
        )


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsampling_is_that_of_pillow(subsampling):
    for seed, size in enumerate(SIZES):
        pixels = np.ascontiguousarray(smooth(*size, seed))
        encoded = simplejpeg.encode_jpeg(pixels, 80, "RGB", subsampling)
        assert is_same(answer(encoded, 3), pillow(encoded, 3)), size


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [5, 75, 95])
def test_grey_is_that_of_pillow(progressive, quality):
    for seed, size in enumerate(SIZES):
        encoded = jpeg(smooth(*size, seed).convert("L"), quality=quality, progressive=progressive)
        for num_channels in (1, 3):
            assert is_fast(encoded, num_channels)
            assert is_same(answer(encoded, num_channels), pillow(encoded, num_channels)), size


@pytest.mark.parametrize("quality", [5, 75, 95])
def test_rgb_that_was_never_ycbcr_is_that_of_pillow(quality):
    for seed, size in enumerate(SIZES):
        encoded = jpeg(smooth(*size, seed), quality=quality, keep_rgb=True)
        assert b"Adobe" in encoded
        assert is_fast(encoded, 3)
        for num_channels in (1, 3):
            assert is_same(answer(encoded, num_channels), pillow(encoded, num_channels)), size


def test_restart_markers_comments_profiles_and_tables_change_nothing():
    image = smooth(40, 50)
    for options in (
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1, "progressive": True},
        {"comment": b"a comment"},
        {"icc_profile": b"not a real profile" * 10},
        {"dpi": (72, 300)},
        {"optimize": True},
        {"qtables": [[16] * 64, [99] * 64]},
    ):
        encoded = jpeg(image, **options)
        assert is_fast(encoded, 3), options
        assert is_same(answer(encoded, 3), pillow(encoded, 3)), options


def test_a_file_of_several_pictures_gives_the_first():
    buffer = io.BytesIO()
    first, second = smooth(20, 30), smooth(20, 30, seed=1)
    first.save(buffer, format="MPO", save_all=True, append_images=[second])
    encoded = buffer.getvalue()
    assert Image.open(io.BytesIO(encoded)).format == "MPO"
    assert is_same(answer(encoded, 3), pillow(encoded, 3))
    assert is_same(answer(encoded, 3), answer(jpeg(first), 3))


def test_cmyk_is_left_to_pillow():
    encoded = jpeg(smooth(17, 33).convert("CMYK"))
    for num_channels in (1, 3):
        assert not is_fast(encoded, num_channels)
        assert is_same(answer(encoded, num_channels), pillow(encoded, num_channels))
    assert decode_pixels(encoded, 3).shape == (17, 33, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image in (smooth(9, 17), smooth(9, 17).convert("L")):
        plain, turned = jpeg(image), jpeg(image, exif=exif)
        upright = Image.open(io.BytesIO(plain))
        upright.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(upright).convert("RGB"))
        assert np.array_equal(decode_pixels(turned, 3), expected)
        assert is_same(answer(turned, 3), pillow(turned, 3))


def test_xmp_turns_the_image():
    encoded = jpeg(smooth(9, 17), xmp=XMP)
    assert pillow(encoded, 3).shape == (17, 9, 3)
    assert is_same(answer(encoded, 3), pillow(encoded, 3))


def test_broken_exif_does_not_hide_the_image():
    orientation = (0x0112, 3, 1, struct.pack("<I", 6))
    for entries in (
        [orientation, (0x011A, 2, 2, b"a\0\0\0")],  # a resolution that is text
        [(0x0100, 2, 2, b"a\0\0\0"), orientation],  # a width that is text
    ):
        encoded = jpeg(smooth(9, 17), exif=exif_block(*entries))
        found = answer(encoded, 3)
        assert found is BadImage or found.shape == (17, 9, 3)


def test_subsampling_that_simplejpeg_has_no_name_for():
    """Chroma at a quarter of the height: 4:1:1 of a picture that was turned without decoding."""
    pixels = np.ascontiguousarray(smooth(8, 32))
    encoded = bytearray(simplejpeg.encode_jpeg(pixels, 90, "RGB", "411"))
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = struct.pack(">HH", 32, 8)  # one block row: order stays
    encoded[frame + 11] = 0x14
    expected = pillow(bytes(encoded), 3)
    assert expected.shape == (32, 8, 3)
    assert is_same(answer(bytes(encoded), 3), expected)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"keep_rgb": True}]
)
def test_truncated_files_are_judged_by_pillow(options):
    for image in (smooth(17, 23), smooth(17, 23).convert("L")):
        if image.mode == "L" and "keep_rgb" in options:
            continue
        whole = jpeg(image, **options)
        for length in range(3, len(whole)):
            encoded = whole[:length]
            assert is_same(answer(encoded, 3), pillow(encoded, 3)), length
        assert answer(whole[: len(whole) // 2], 3) is BadImage


def test_damaged_files_are_judged_by_pillow():
    rng = np.random.default_rng(0)
    usable = 0
    for seed in range(60):
        size = rng.integers(1, 40, 2)
        options = {"progressive": bool(seed % 2), "subsampling": seed % 3}
        if seed % 5 == 0:
            options = {"keep_rgb": True}
        whole = jpeg(smooth(*size, seed), quality=int(rng.integers(5, 96)), **options)
        for _ in range(40):
            encoded = bytearray(whole)
            for place in rng.integers(3, len(encoded), rng.integers(1, 4)):
                encoded[place] = rng.integers(0, 256)
            found, expected = answer(bytes(encoded), 3), pillow(bytes(encoded), 3)
            assert is_same(found, expected), bytes(encoded).hex()
            usable += found is not BadImage
    assert usable > 500


def test_what_follows_the_image_is_ignored():
    encoded = jpeg(smooth(17, 23))
    for tail in (b"\0", b"\xff", b"trailing words" * 100, encoded):
        assert is_same(answer(encoded + tail, 3), pillow(encoded + tail, 3))
        assert is_same(answer(encoded + tail, 3), answer(encoded, 3))


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    encoded = jpeg(smooth(40, 50))
    assert decode_pixels(encoded, 3, ImageLimits(max_pixels=2000)).shape == (40, 50, 3)
    for name in ("decode_jpeg", "decode_jpeg_header"):  # by simplejpeg, and by Pillow
        with monkeypatch.context() as patch:
            patch.setattr(simplejpeg, name, None)
            with pytest.raises(
                BadImage, match=r"at most 1,999 pixels; got 40 x 50\. --max_image_pi"
            ):
                decode_pixels(encoded, 3, ImageLimits(max_pixels=1999))
            with pytest.raises(
                BadImage, match=r"at least 41 pixels; got 40 x 50\. --min_image_sid"
            ):
                decode_pixels(encoded, 3, ImageLimits(min_side=41))
    size = len(encoded)
    assert decode_pixels(encoded, 3, ImageLimits(max_bytes=size)).shape == (40, 50, 3)
    with pytest.raises(BadImage, match=f"a file must have at most {size - 1:,} bytes"):
        decode_pixels(encoded, 3, ImageLimits(max_bytes=size - 1))


def test_other_numbers_of_channels_get_a_sentence():
    with pytest.raises(PixelFormatError, match="the image has 3 channels; the model takes 5"):
        decode_pixels(jpeg(smooth(8, 8)), 5)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_are_writable_with_channels_side_by_side(num_channels):
    picture = smooth(9, 17)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    fixed = np.array(picture)
    fixed.flags.writeable = False
    for value in (
        jpeg(picture),
        jpeg(picture.convert("L")),
        {"bytes": jpeg(picture), "path": None},
        png.getvalue(),
        picture,
        np.array(picture.convert("L")),
        *([fixed] if num_channels == 3 else []),
    ):
        image = decode_image(value, num_channels)
        assert image.shape == (num_channels, 9, 17)
        assert image.dtype == torch.uint8
        assert image.permute(1, 2, 0).is_contiguous()
        assert image.numpy().flags.writeable
        image.zero_()
    assert fixed.any()


def test_a_jpeg_of_a_path_is_that_of_its_bytes(tmp_path):
    encoded = jpeg(smooth(9, 17))
    (tmp_path / "a.jpg").write_bytes(encoded)
    allow_images_below(tmp_path)
    by_path = decode_pixels({"bytes": None, "path": str(tmp_path / "a.jpg")}, 3)
    assert np.array_equal(by_path, decode_pixels(encoded, 3))


def test_real_photos_are_those_of_pillow(photos):
    (file,) = Path(photos).glob("*.parquet")
    rows = next(parquet.ParquetFile(file).iter_batches(64)).to_pylist()
    column = next(name for name, value in rows[0].items() if isinstance(value, dict))
    encoded = [row[column]["bytes"] for row in rows]
    jpegs = [value for value in encoded if value.startswith(b"\xff\xd8\xff")]
    if not jpegs:
        pytest.skip("the photos are no JPEG files")
    assert any(is_fast(value, 3) for value in jpegs)
    for value in jpegs:
        assert is_same(answer(value, 3), pillow(value, 3))
