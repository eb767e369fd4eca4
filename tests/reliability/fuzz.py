"""Thousands of damaged files through the decoder, in a process of its own.

`python fuzz.py COUNT SEED STATE` prints what happened as JSON. Case i of a seed is always the same:
`damaged(seed, i)`. STATE is a file that holds the number of the case at work, for when it crashes.
Before them, files that state nearly as many pixels as are allowed are measured one by one.
"""

import io
import json
import os
import random
import re
import resource
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ALLOWED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
OTHERS = ("PPM", "ICO", "JPEG2000", "TGA", "PCX", "SGI", "AVIF")
SECONDS, MEGABYTES = 0.5, 256  # bars per file
# Sizes that overflow, or that lie just below and above usual limits.
_SIZES = (0, 1, 7, 255, 4096, 8191, 8192, 8193, 32767, 65535, 2**26, 2**31 - 1, 2**31, 2**32 - 1)


def seed_files():
    """Return small valid files, several kinds per format: (format, bytes)."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    rgb, grey = Image.fromarray(rough), Image.fromarray(rough[:, :, 0])
    palette, rgba = rgb.quantize(16), Image.fromarray(np.dstack([rough, rough[:, :, 0]]))
    deep = Image.fromarray(rng.integers(0, 2**16, (24, 32), dtype=np.uint16))
    smooth = Image.linear_gradient("L").resize((32, 24)).convert("RGB")
    frames = {"save_all": True, "append_images": [smooth, rgb]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40

    def saved(image, format, **options):
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return format, buffer.getvalue()

    files = [
        saved(rgb, "JPEG"),
        saved(smooth, "JPEG", progressive=True, exif=exif),
        saved(rgb.convert("CMYK"), "JPEG"),
        saved(grey, "JPEG"),
        saved(rgb, "PNG", exif=exif),
        saved(rgba, "PNG"),
        saved(palette, "PNG", transparency=3),
        saved(deep, "PNG"),
        saved(smooth, "PNG", **frames),
        saved(rgb, "WEBP", exif=exif),
        saved(rgba, "WEBP", lossless=True),
        saved(smooth, "WEBP", **frames),
        saved(rgb, "BMP"),
        saved(palette, "BMP"),
        saved(palette, "GIF", transparency=2),
        saved(smooth, "GIF", **frames),
        saved(rgb, "TIFF", tiffinfo={274: 6}),
        saved(deep, "TIFF"),
        saved(smooth.convert("LAB"), "TIFF"),
        saved(grey.convert("1"), "TIFF", compression="group4"),
    ]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files.append(saved(rgb, "TIFF", compression=compression))
    files += [saved(rgb, format) for format in OTHERS]
    return files


def with_size(format, data, height, width):
    """Return a file that states another size than it holds; None where that is not tried."""
    data = bytearray(data)
    if format == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        return bytes(_right_checksums(data))
    if format == "JPEG":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif format == "BMP":
        data[18:26] = struct.pack("<II", width, height)
    elif format == "GIF":  # the screen, and the frame where it is found
        data[6:10] = struct.pack("<HH", width, height)
        at = data.find(b",\0\0\0\0")
        if at >= 0:
            data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    elif format == "TIFF":
        order = "<" if data[:2] == b"II" else ">"
        (start,) = struct.unpack_from(order + "I", data, 4)
        for tag, value in ((0, width), (1, height)):
            at = start + 2 + 12 * tag
            data[at + 2 : at + 12] = struct.pack(order + "HII", 4, 1, value)
    else:
        return None
    return bytes(data)


def damaged(seed, case, files=None):
    """Return (format, bytes) of one case."""
    rng = random.Random(f"{seed}:{case}")
    files = _files() if files is None else files
    format, data = rng.choice(files)
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        change = rng.choice((_flip, _flip, _size, _size, _cut, _insert, _swap, _copy, _tail))
        data = change(rng, data, format, files)
        if not data:
            break
    if format == "PNG" and rng.random() < 0.7:
        data = _right_checksums(data)  # otherwise nearly all end at a checksum
    return format, bytes(data)


_FILES = []


def _files():
    if not _FILES:
        _FILES.extend(seed_files())
    return _FILES


def _flip(rng, data, format, files):
    """Change bytes, mostly of the header."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = rng.random() < 0.6
        at = rng.randrange(min(len(data), 120) if near else len(data))
        data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8)), 0, 255))
    return data


def _size(rng, data, format, files):
    """Write a number where the format has its width and height, or another field."""
    values = [rng.choice(_SIZES) for _ in range(2)]
    fields = {"PNG": (16, ">II"), "BMP": (18, "<II"), "GIF": (6, "<HH"), "WEBP": (26, "<HH")}
    if format == "JPEG":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        place = (at + 5, ">HH") if at >= 0 else None
    elif format == "TIFF":
        place = _tiff_field(rng, data)
    else:
        place = fields.get(format, (rng.randrange(64), rng.choice((">HH", "<II", ">II"))))
    if place is None:
        return data
    at, layout = place
    width = struct.calcsize(layout)
    if at + width <= len(data):
        mask = 2 ** (8 * width // len(layout[1:])) - 1
        values = [min(v, mask) for v in values][: len(layout) - 1]
        data[at : at + width] = struct.pack(layout, *values)
    return data


def _tiff_field(rng, data):
    """Return the place of the value, count or type of a random tag."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 14:
        return None
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, start)
    tag = rng.randrange(max(1, count))
    if rng.random() < 0.5:
        tag %= 2  # width or height, often
    offset, layout = rng.choice(((8, "I"), (8, "I"), (4, "I"), (2, "H"), (0, "H")))
    return start + 2 + 12 * tag + offset, order + layout


def _cut(rng, data, format, files):
    return data[: rng.randrange(len(data))]


def _insert(rng, data, format, files):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 7, 64, 500))) + data[at:]


def _swap(rng, data, format, files):
    """Exchange two pieces; whole chunks in a PNG."""
    if format == "PNG":
        chunks = _chunks(data)
        if len(chunks) > 2:
            a, b = rng.sample(range(len(chunks)), 2)
            chunks[a], chunks[b] = chunks[b], chunks[a]
            return bytearray(data[:8] + b"".join(chunks))
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    n = rng.randrange(1, 64)
    return data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]


def _copy(rng, data, format, files):
    """Repeat a piece, in place of another or in addition."""
    a, b = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[a : a + rng.choice((4, 16, 100, 1000))]
    return data[:b] + piece * rng.choice((1, 1, 2, 50)) + data[b + rng.choice((0, len(piece))) :]


def _tail(rng, data, format, files):
    """Go on with the end of another file."""
    _, other = rng.choice(files)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _chunks(data):
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0] + 12
        chunks.append(bytes(data[at : at + length]))
        at += length
    return chunks


def _right_checksums(data):
    repaired = bytearray(data[:8])
    for chunk in _chunks(data):
        body = chunk[4:-4]
        repaired += chunk[:4] + body + struct.pack(">I", zlib.crc32(body))
    return repaired


def peak_bytes():
    """Return the largest memory that this process has had since it began or was forked."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would give that of the parent, where it had more
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_decoding(data):
    """Return "pixels", or the error's kind; anything that may not happen is "WRONG: ..."."""
    from ssl_views.data.decode import BadImage, PixelFormatError, decode_pixels

    try:
        pixels = decode_pixels(data, 3)
    except PixelFormatError:
        return "format"
    except BadImage as error:
        return "bad" if str(error) else "WRONG: an error without a reason"
    except BaseException as error:  # noqa: BLE001
        return f"WRONG: {type(error).__module__}.{type(error).__name__}: {error}"
    right = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3
    if not right or pixels.shape[2] != 3 or pixels.size == 0:
        return f"WRONG: {pixels!r:.80}"
    return "pixels"


def large_headers():
    """Return small files that state nearly as many pixels as are allowed: (name, bytes)."""
    # Square, flat and tall, for decoders reserve memory by rows or by the whole image; the last two
    # are of a size that many real images have.
    sizes = ((8191, 8191), (1024, 65_000), (65_000, 1024), (1440, 1440), (32, 65_000))
    cases = []
    for number, (format, data) in enumerate(_files()):
        if format in ALLOWED:
            for height, width in sizes:
                lie = with_size(format, data, height, width)
                if lie is not None:
                    cases.append((f"{format} {number}, {height} x {width}", lie))
    return cases


def in_child(work):
    """Return [what work() gives, seconds, peak megabytes above the start] from a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            start, began = peak_bytes(), time.thread_time()
            result = work()
            seconds, more = time.thread_time() - began, (peak_bytes() - start) / 2**20
            os.write(write, json.dumps([result, seconds, more]).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if status == 0 else [f"WRONG: exit status {status}", 0.0, 0.0]


def main(count, seed, state):
    """Run all cases and report."""
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # for the machine's sake
    files = _files()
    for _, data in files:
        try_decoding(data)  # libraries and tables are loaded before memory is measured
    headers = {n: in_child(lambda d=d: try_decoding(d)) for n, d in large_headers()}
    start, peak = peak_bytes(), peak_bytes()
    report = {"count": count, "results": {}, "wrong": [], "slow": [], "large": [], "formats": {}}
    slowest = (0.0, -1)
    number = os.open(state, os.O_WRONLY | os.O_CREAT)
    for case in range(count):
        os.pwrite(number, f"{case:12}".encode(), 0)
        format, data = damaged(seed, case, files)
        # Where warnings are errors, those of Pillow must not come out either.
        warnings.simplefilter("error" if case % 2 else "ignore")
        began = time.thread_time()
        result = try_decoding(data)
        seconds = time.thread_time() - began
        slowest = max(slowest, (seconds, case))
        if seconds > SECONDS:
            report["slow"].append((case, format, round(seconds, 3)))
        if peak_bytes() > peak:
            peak = peak_bytes()
            report["large"].append((case, format, (peak - start) // 2**20))
        if result.startswith("WRONG"):
            report["wrong"].append((case, format, result))
            result = "wrong"
        counts = report["formats"].setdefault(format, {})
        counts[result] = counts.get(result, 0) + 1
        report["results"][result] = report["results"].get(result, 0) + 1
    report["headers"] = headers
    report["slowest"], report["peak_megabytes"] = slowest, (peak - start) / 2**20
    report["wrong"], report["large"] = report["wrong"][:20], report["large"][-10:]
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
