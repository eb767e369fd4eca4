"""Files good and bad, made in code, each with the pixels or the error that it must give.

The expected pixels come from numpy, never from the decoder under test or from Pillow.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
JPEG_ERROR = 8  # quality 95 without subsampling, on a smooth image


@dataclass(frozen=True)
class Entry:
    """A file and what must come of it.

    Attributes:
        name: of the file; its ending is what the file claims to be.
        data: what it holds.
        pixels: expected (H, W, 3); None where an error is.
        tolerance: largest difference of a pixel.
        shape: expected where the pixels are not known.
        error: "BadImage" or "PixelFormatError"; empty where pixels are expected.
        reason: what the error must say, a regular expression.
        limits: arguments of ImageLimits; empty for the defaults.
    """

    name: str
    data: bytes
    pixels: "np.ndarray | None" = field(default=None, repr=False, compare=False)
    tolerance: int = 0
    shape: tuple | None = None
    error: str = ""
    reason: str = ""
    limits: dict = field(default_factory=dict, compare=False)


# ---------------------------------------------------------------------------------- building blocks


def smooth(height=HEIGHT, width=WIDTH):
    """Return a gradient without symmetry, (H, W, 3); compression changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    red = 20 + 200 * x / width
    green = 30 + 180 * y / height
    blue = 220 - 90 * x / width - 90 * y / height
    return np.stack([red, green, blue], axis=2).round().astype(np.uint8)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image, format, **options):
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(image, **options):
    return saved(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def as_rgb(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def over_white(color, alpha):
    """Return color (H, W, 3) with alpha (H, W) in 0..255 over white."""
    part = alpha[:, :, None].astype(np.float64) / 255
    return np.round(color * part + 255 * (1 - part)).astype(np.uint8)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height, width, bits, color, raw, *extra):
    """Return a PNG of uncompressed rows without filter byte; color is PNG's color type."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    row = len(raw) // height
    lines = b"".join(b"\0" + raw[i * row : (i + 1) * row] for i in range(height))
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(lines, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def png_bomb(side):
    """Return a PNG of one bit per pixel, all black: 100 megapixels take 12 kB."""
    lines = (b"\0" + bytes(-(-side // 8))) * side
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(lines, 9))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


def text_bomb_png(megabytes):
    """Return a small PNG whose compressed text grows by a thousand when it is read."""
    text = b"key\0\0" + zlib.compress(bytes(megabytes * 2**20), 9)
    return png(8, 8, 8, 2, smooth(8, 8).tobytes(), png_chunk(b"zTXt", text))


def tiff(samples, photometric, order="<", sample_format=1, size=None, extra=()):
    """Return an uncompressed TIFF of one strip; `size` is what the header lies about."""
    height, width = samples.shape[:2]
    count = 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits = samples.dtype.itemsize * 8
    height, width = size or (height, width)
    short, long = 3, 4
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [bits] * count),
        (259, short, [1]),
        (262, short, [photometric]),
        (273, long, [0]),
        (277, short, [count]),
        (278, long, [height]),
        (279, long, [len(data)]),
        (284, short, [1]),
        *([(339, short, [sample_format] * count)] if sample_format != 1 else []),
        *extra,
    ]
    tags.sort()
    directory_at, codes = 8, {short: "H", long: "I"}
    outside_at = directory_at + 2 + 12 * len(tags) + 4
    outside = b"".join(
        struct.pack(f"{order}{len(v)}{codes[k]}", *v)
        for _, k, v in tags
        if len(v) * struct.calcsize(codes[k]) > 4
    )
    data_at = outside_at + len(outside)
    directory, place = struct.pack(order + "H", len(tags)), outside_at
    for tag, kind, values in tags:
        values = [data_at] if tag == 273 else values
        packed = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(packed) > 4:
            value, place = struct.pack(order + "I", place), place + len(packed)
        else:
            value = packed.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + directory + bytes(4) + outside + data


def gif_bomb(side):
    """Return a GIF whose screen is huge and whose only frame is 8 x 8 pixels."""
    small = saved(Image.fromarray(noise(8, 8)), "GIF")
    return small[:6] + struct.pack("<HH", side, side) + small[10:]


def bmp_bomb(side):
    """Return the header of a huge BMP, with no pixels behind it."""
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + info + bytes(64)


def exif(orientation):
    """Return an EXIF block that holds nothing but an orientation."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


# EXIF orientation -> what a viewer must do with the stored pixels.
SHOWN = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: lambda a: np.rot90(a, 1),
}


def ycc_to_rgb(ycc):
    """Convert full-range BT.601."""
    y, cb, cr = (ycc[:, :, i].astype(np.float64) for i in range(3))
    red = y + 1.402 * (cr - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    blue = y + 1.772 * (cb - 128)
    return np.clip(np.round(np.stack([red, green, blue], 2)), 0, 255).astype(np.uint8)


def rgb_to_ycc(rgb):
    red, green, blue = (rgb[:, :, i].astype(np.float64) for i in range(3))
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    ycc = np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], 2)
    return np.clip(np.round(ycc), 0, 255).astype(np.uint8)


def lab_to_rgb(lightness, a, b):
    """Convert CIE L*a*b* (D50, as in ICC and TIFF) to sRGB."""
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz = xyz * np.array([0.9642, 1.0, 0.8249])
    matrix = np.array(  # from XYZ of D50, Bradford
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = np.clip(xyz @ matrix.T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved).astype(np.uint8)


def without_segment(encoded, marker):
    """Remove a segment, e.g. 0xEE (Adobe), from the header of a JPEG."""
    kept, at = encoded[:2], 2
    while encoded[at + 1] != 0xDA:
        length = 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if encoded[at + 1] != marker:
            kept += encoded[at : at + length]
        at += length
    return kept + encoded[at:]


def with_segment(encoded, marker, data):
    """Insert a segment at the start of a JPEG."""
    head = struct.pack(">BBH", 0xFF, marker, len(data) + 2)
    return encoded[:2] + head + data + encoded[2:]


def jpeg_with_size(encoded, height, width):
    """Change the size that a JPEG states."""
    at = encoded.index(b"\xff\xc0")
    return encoded[: at + 5] + struct.pack(">HH", height, width) + encoded[at + 9 :]


def png_with_size(encoded, height, width):
    """Change the size that a PNG states; its checksum is right."""
    header = struct.pack(">II", width, height) + encoded[24:29]
    return encoded[:8] + png_chunk(b"IHDR", header) + encoded[33:]


def palette_image(colors, numbers):
    """Return a PIL image of a palette (N, 3) and its entries (H, W)."""
    image = Image.frombytes("P", numbers.shape[::-1], numbers.astype(np.uint8).tobytes())
    image.putpalette(colors.astype(np.uint8).flatten().tolist())
    return image


# --------------------------------------------------------------------------------------- the corpus


def _good():
    rgb = smooth()
    grey = rgb[:, :, 0].copy()
    yield Entry("plain.png", saved(rgb, "PNG"), rgb)
    yield Entry("plain.bmp", saved(rgb, "BMP"), rgb)
    yield Entry("plain.tif", saved(rgb, "TIFF"), rgb)
    yield Entry("lossless.webp", saved(rgb, "WEBP", lossless=True), rgb)
    yield Entry("lossy.webp", saved(rgb, "WEBP", quality=95), rgb, 24)
    yield Entry("png_named.jpg", saved(rgb, "PNG"), rgb)  # the content counts, not the name

    # JPEG
    yield Entry("baseline.jpg", jpeg(rgb), rgb, JPEG_ERROR)
    yield Entry("subsampled.jpg", jpeg(rgb, subsampling=2), rgb, 16)
    yield Entry("progressive.jpg", jpeg(rgb, progressive=True), rgb, JPEG_ERROR)
    yield Entry("grey.jpg", jpeg(grey), as_rgb(grey), JPEG_ERROR)
    yield Entry("rgb_stored.jpg", jpeg(rgb, keep_rgb=True), rgb, JPEG_ERROR)
    yield Entry("trailing_garbage.jpg", jpeg(rgb) + b"garbage \xff\xd8 \xff\xd9" * 50, rgb, 8)
    inks = np.dstack([255 - rgb, np.full_like(grey, 60)])
    on_paper = (rgb.astype(np.int64) * (255 - 60) + 127) // 255
    cmyk = jpeg(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()))
    yield Entry("cmyk_adobe_inverted.jpg", cmyk, on_paper, JPEG_ERROR)
    yield Entry("cmyk_without_marker.jpg", without_segment(cmyk, 0xEE), on_paper, JPEG_ERROR)
    # YCCK: Adobe's last byte tells that what is stored is Y, Cb, Cr of 255 - the ink, and K. Pillow
    # stores 255 - what it is given, and so is given 255 - Y, Cb, Cr.
    inverted = np.dstack([255 - rgb_to_ycc(255 - rgb), np.full_like(grey, 60)])
    ycck = jpeg(Image.frombytes("CMYK", (WIDTH, HEIGHT), inverted.tobytes()))
    at = ycck.index(b"Adobe") + 11
    ycck = ycck[:at] + b"\2" + ycck[at + 1 :]
    yield Entry("ycck_adobe.jpg", ycck, on_paper, 12)

    # EXIF
    for orientation, shown in SHOWN.items():
        data = jpeg(rgb, exif=exif(orientation))
        yield Entry(f"orientation_{orientation}.jpg", data, shown(rgb), JPEG_ERROR)
    yield Entry("orientation_6.png", saved(rgb, "PNG", exif=exif(6)), SHOWN[6](rgb))
    turned = saved(rgb, "WEBP", lossless=True, exif=exif(8))
    yield Entry("orientation_8.webp", turned, SHOWN[8](rgb))
    oriented = tiff(rgb, 2, extra=[(274, 3, [3])])
    yield Entry("orientation_3.tif", oriented, SHOWN[3](rgb))
    yield Entry("orientation_unknown.jpg", jpeg(rgb, exif=exif(99)), rgb, JPEG_ERROR)
    broken = with_segment(jpeg(rgb), 0xE1, b"Exif\0\0MM\0*\0\0\xff\xff" + bytes(range(60)))
    yield Entry("exif_broken.jpg", broken, rgb, JPEG_ERROR)
    yield Entry("exif_cut.jpg", with_segment(jpeg(rgb), 0xE1, exif(6)[:17]), rgb, JPEG_ERROR)

    # Modes
    alpha = np.round(255 * np.mgrid[0:HEIGHT, 0:WIDTH][1] / WIDTH).astype(np.uint8)
    yield Entry("grey.png", saved(grey, "PNG"), as_rgb(grey))
    data = png(HEIGHT, WIDTH, 8, 4, np.dstack([grey, alpha]).tobytes())
    yield Entry("grey_alpha.png", data, over_white(as_rgb(grey), alpha), 1)
    data = png(HEIGHT, WIDTH, 8, 6, np.dstack([rgb, alpha]).tobytes())
    yield Entry("rgba.png", data, over_white(rgb, alpha), 1)
    data = saved(Image.frombytes("RGBA", (WIDTH, HEIGHT), np.dstack([rgb, alpha]).tobytes()),
                 "WEBP", lossless=True, exact=True)  # fmt: skip
    yield Entry("rgba.webp", data, over_white(rgb, alpha), 1)
    one_color = png_chunk(b"tRNS", struct.pack(">3H", *rgb[3, 5]))
    data = png(HEIGHT, WIDTH, 8, 2, rgb.tobytes(), one_color)
    keyed = rgb.copy()
    keyed[(rgb == rgb[3, 5]).all(axis=2)] = 255
    yield Entry("rgb_one_color_transparent.png", data, keyed)
    colors, numbers = noise(16, 3, seed=1), noise(HEIGHT, WIDTH, seed=2) % 16
    plte = png_chunk(b"PLTE", colors.tobytes())
    data = png(HEIGHT, WIDTH, 8, 3, numbers.tobytes(), plte)
    yield Entry("palette.png", data, colors[numbers])
    opacity = noise(16, seed=3)
    data = png(HEIGHT, WIDTH, 8, 3, numbers.tobytes(), plte, png_chunk(b"tRNS", opacity.tobytes()))
    shown = over_white(colors[numbers], opacity[numbers])
    yield Entry("palette_transparent.png", data, shown, 1)
    yield Entry("palette.gif", saved(palette_image(colors, numbers), "GIF"), colors[numbers])
    yield Entry("palette.bmp", saved(palette_image(colors, numbers), "BMP"), colors[numbers])
    data = saved(palette_image(colors, numbers), "GIF", transparency=5)
    shown = colors[numbers]
    shown[numbers == 5] = 255
    yield Entry("palette_transparent.gif", data, shown)
    bits = noise(HEIGHT, WIDTH, seed=4) > 127
    packed = np.packbits(bits, axis=1).tobytes()
    black_white = as_rgb(np.where(bits, 255, 0))
    yield Entry("one_bit.png", png(HEIGHT, WIDTH, 1, 0, packed), black_white)
    one_bit = Image.frombytes("1", (WIDTH, HEIGHT), packed)
    yield Entry("one_bit.tif", saved(one_bit, "TIFF"), black_white)
    yield Entry("one_bit_fax.tif", saved(one_bit, "TIFF", compression="group4"), black_white)
    cmyk_tiff = saved(Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()), "TIFF")
    yield Entry("cmyk.tif", cmyk_tiff, on_paper, 1)
    ycc = rgb_to_ycc(rgb)
    data = tiff(ycc, 6, extra=[(530, 3, [1, 1])])
    yield Entry("ycbcr.tif", data, ycc_to_rgb(ycc), 2)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    lightness, a, b = 30 + 50 * y / HEIGHT, np.round(20 - 40 * x / WIDTH), np.round(30 * y / HEIGHT)
    stored = np.dstack([np.round(lightness * 2.55), a % 256, b % 256]).astype(np.uint8)
    expected = lab_to_rgb(stored[:, :, 0] / 2.55, a, b)
    yield Entry("lab.tif", tiff(stored, 8), expected, 5)

    # Animations: the first frame
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), v, np.uint8)) for v in (50, 200, 120)]
    first = np.full((HEIGHT, WIDTH, 3), 50)
    more = {"save_all": True, "append_images": frames[1:], "duration": 40}
    yield Entry("animated.gif", saved(frames[0], "GIF", **more), first)
    yield Entry("animated.webp", saved(frames[0], "WEBP", lossless=True, **more), first)
    yield Entry("animated.png", saved(frames[0], "PNG", **more), first)
    yield Entry("pages.tif", saved(frames[0], "TIFF", **more), first)

    # 16 bits
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH)
    deep = (deep * 65535 // deep.max()).astype(np.uint16)
    scaled = np.round(deep / 257).astype(np.uint8)
    data = png(HEIGHT, WIDTH, 16, 0, deep.astype(">u2").tobytes())
    yield Entry("grey_16_bit.png", data, as_rgb(scaled), 1)
    yield Entry("grey_16_bit_little_endian.tif", tiff(deep, 1), as_rgb(scaled), 1)
    yield Entry("grey_16_bit_big_endian.tif", tiff(deep, 1, order=">"), as_rgb(scaled), 1)
    three = np.dstack([deep, deep[::-1], deep[:, ::-1]])
    expected = np.round(three / 257).astype(np.uint8)
    data = png(HEIGHT, WIDTH, 16, 2, three.astype(">u2").tobytes())
    yield Entry("rgb_16_bit.png", data, expected, 1)
    yield Entry("rgb_16_bit.tif", tiff(three, 2), expected, 1)

    # Sizes that are just allowed
    yield Entry("8_by_8.png", saved(smooth(8, 8), "PNG"), smooth(8, 8))
    tiny = saved(smooth(7, 30), "PNG")
    yield Entry("7_high_allowed.png", tiny, smooth(7, 30), limits={"min_side": 7})
    least = saved(rgb, "PNG")
    exact = {"max_pixels": HEIGHT * WIDTH, "max_bytes": len(least)}
    yield Entry("at_the_limits.png", least, rgb, limits=exact)

    # Wrong bytes inside a JPEG decode silently: nothing in the file can tell.
    corrupted = bytearray(jpeg(noise(HEIGHT, WIDTH, 3)))
    middle = len(corrupted) * 3 // 4
    corrupted[middle] ^= 0x15
    yield Entry("corrupted_silently.jpg", bytes(corrupted), shape=(HEIGHT, WIDTH, 3))


def _bad():
    def bad(name, data, reason, **limits):
        return Entry(name, data, error="BadImage", reason=reason, limits=limits)

    rgb = smooth()
    rough = noise(HEIGHT, WIDTH, 3)
    whole_jpeg, whole_png = jpeg(rough), saved(rough, "PNG")
    broken = r"cannot be decoded: \w+"
    yield bad("truncated.jpg", whole_jpeg[: len(whole_jpeg) // 2], broken)
    yield bad("truncated_in_header.jpg", whole_jpeg[:100], broken)
    yield bad("truncated.png", whole_png[: len(whole_png) // 2], broken)
    yield bad("truncated.webp", saved(rough, "WEBP")[:200], broken)
    yield bad("truncated.gif", saved(rough, "GIF")[:1000], broken)
    yield bad("truncated.bmp", saved(rough, "BMP")[:1000], broken)
    yield bad("truncated.tif", saved(rough, "TIFF")[:1000], broken)
    yield bad("signature_only.png", whole_png[:8], broken)
    wrong_sum = bytearray(whole_png)
    wrong_sum[wrong_sum.index(b"IDAT") + 100] ^= 1
    yield bad("wrong_checksum.png", bytes(wrong_sum), broken)
    yield bad("empty.jpg", b"", broken)
    unknown = "they are no JPEG, PNG, WEBP, BMP, GIF or TIFF"
    html = b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n"
    yield bad("html.jpg", html, unknown)
    yield bad("text.jpg", b"oid sha256:0123456789abcdef\nsize 1234\n" * 3, unknown)
    yield bad("eps.jpg", EPS, unknown)
    yield bad("pdf.jpg", b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n", unknown)
    for format in ("PPM", "ICO", "TGA", "PCX", "JPEG2000", "AVIF", "SGI", "DDS", "ICNS", "MSP"):
        square = Image.fromarray(noise(32, 32, 3))
        data = saved(square.convert("1") if format == "MSP" else square, format)
        yield bad(f"{format.lower()}.jpg", data, unknown)
    yield bad("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", unknown)
    yield bad("random.png", noise(3000, seed=9).tobytes(), unknown)

    too_large = r"(?i)pixels"
    yield bad("bomb_100_megapixels.png", png_bomb(10_000), too_large)
    huge = png_with_size(saved(rgb, "PNG"), 50_000, 50_000)
    yield bad("bomb_25_gigapixels.png", huge, too_large)
    yield bad("bomb_screen.gif", gif_bomb(65_535), too_large)
    yield bad("bomb.tif", tiff(rgb, 2, size=(60_000, 60_000)), too_large)
    yield bad("bomb.bmp", bmp_bomb(60_000), too_large)
    yield bad("bomb_header.jpg", jpeg_with_size(jpeg(rgb), 65_000, 65_000), too_large)
    yield bad("bomb_just_above.png", whole_png, too_large, max_pixels=HEIGHT * WIDTH - 1)
    yield bad(
        "above_the_byte_cap.png", whole_png, r"at most [\d,]+ bytes", max_bytes=len(whole_png) - 1
    )
    yield bad("bomb_text.png", text_bomb_png(100), broken)

    tiny = "both sides must be at least 8 pixels"
    yield bad("7_high.png", saved(smooth(7, 30), "PNG"), tiny)
    yield bad("7_wide.jpg", jpeg(smooth(30, 7)), tiny)
    yield bad("1_by_1.gif", saved(smooth(1, 1), "GIF"), tiny)

    fractions = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    counts = np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    for name, data in (
        ("float.tif", tiff(fractions, 1, sample_format=3)),
        ("int32.tif", tiff(counts, 1, sample_format=2)),
    ):
        yield Entry(name, data, error="PixelFormatError", reason="Scale the pixels")


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(hacked) print
showpage
%%EOF
"""


@cache
def entries():
    """Return all files of the corpus."""
    return (*_good(), *_bad())


def entries_of(error):
    """Return the files with an error of this name; "" for those that must be decoded."""
    return [entry for entry in entries() if entry.error == error]


def assert_as_expected(entry, pixels):
    """Check decoded pixels, (H, W, 3) uint8."""
    assert pixels.dtype == np.uint8
    if entry.pixels is None:
        assert pixels.shape == entry.shape
        return
    assert pixels.shape == entry.pixels.shape
    difference = np.abs(pixels.astype(np.int64) - entry.pixels)
    assert difference.max() <= entry.tolerance, (entry.name, int(difference.max()))


def write_images(folder, how_many=30, side=24, seed=0):
    """Write good PNG images, each of its own content, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(how_many):
        pixels = rng.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
        paths.append(folder / f"good_{i:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


# Ten kinds of bad files, for whole runs.
TEN_KINDS = (
    "truncated.jpg",
    "truncated.png",
    "empty.jpg",
    "html.jpg",
    "eps.jpg",
    "pdf.jpg",
    "bomb_100_megapixels.png",
    "bomb_screen.gif",
    "7_high.png",
    "wrong_checksum.png",
)


def write_bad(folder, names=TEN_KINDS):
    """Write files of the corpus into a folder and return their paths."""
    known = {entry.name: entry.data for entry in entries()}
    paths = []
    for name in names:
        paths.append(Path(folder) / f"bad_{name}")
        paths[-1].write_bytes(known[name])
    return paths


def odd_paths(folder):
    """Make what is no regular file: a directory, a pipe nobody writes to, a dead link."""
    folder = Path(folder)
    (folder / "directory.png").mkdir(parents=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "dead_link.png").symlink_to(folder / "nothing.png")
    names = ("directory.png", "pipe.png", "dead_link.png", "missing.png")
    return {name: folder / name for name in names}
