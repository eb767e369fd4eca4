"""Tables of the cost of views, for `tables.py`."""

from statistics import median

VIEWS = {  # rows of the table, and how they are named
    "native, avx2": "ours, native, AVX2",
    "native, sse2": "ours, native, SSE2",
    "torch engine": "ours, torch engine",
    "lightly": "lightly (PIL)",
    "albumentations": "albumentations (no antialias)",
    "kornia": "kornia (no antialias, one jitter order per batch)",
    "torchvision": "torchvision v2, uint8",
}
PEERS = ("torchvision", "lightly", "albumentations", "kornia", "pillow", "simplejpeg")


def _ratio(times, name, base):
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def _number(value):
    return f"{value:.1f}" if value < 20 else f"{value:.0f}"


def _footnote(result):
    versions = result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in PEERS if name in versions)
    machine, rounds = result["machine"]["processor"], result["rounds"]
    return f"an {machine}, medians of {rounds} interleaved rounds; {named}."


def views(result):
    """Table of the time per view, relative to the native engine."""
    cells = result["decoded"]
    columns = [f"{cell['size']} px" for cell in cells]
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(cells)]
    for key, name in VIEWS.items():
        if all(key in cell["microseconds"] for cell in cells):
            ratios = [_number(_ratio(c["microseconds"], key, "native")) for c in cells]
            lines.append(f"| {name} | {' | '.join(ratios)} |")
    error = max(max(cell["largest_errors"].values()) for cell in cells)
    shares = " / ".join(f"{100 * cell['drawing_share']:.0f}" for cell in cells)
    return [
        *lines,
        "",
        f"Time per view, in multiples of the native engine's "
        f"({result['instruction_set'].upper()}): V = {cells[0]['num_views']}, from decoded "
        f"images to normalized float32, drawing included "
        f"({shares} % of ours). Largest difference of ours from torchvision's float "
        f"functions {error:.0e}, of pixels in [0, 1]. CPU time, one thread of {_footnote(result)}",
    ]


def views_jpeg(result):
    """Table of the time per view from JPEG bytes, over the number of views."""
    numbers = result["jpeg"][0]["num_views"]
    base = f"ours, V = {numbers[0]}"
    columns = [*(f"V = {v}" for v in numbers), "decoding an image"]
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for cell in result["jpeg"]:
        for who in ("ours", "lightly"):
            keys = [*(f"{who}, V = {v}" for v in numbers), f"{who}, decoding"]
            ratios = [f"{_ratio(cell['microseconds'], key, base):.2f}" for key in keys]
            lines.append(f"| {cell['size']} px, {who} | {' | '.join(ratios)} |")
    return [
        *lines,
        "",
        f"Time per view from JPEG bytes, in multiples of {base}; an image is decoded once. CPU "
        f"time, one thread of {_footnote(result)}",
    ]


LOADERS = {  # rows of the table, and how they are named
    "ours, cache": "ours, 2 threads, from `PixelCache`",
    "ours, JPEG": "ours, 2 threads, from JPEG",
    "ours, cache, 1 thread": "ours, 1 thread, from `PixelCache`",
    "ours, JPEG, 1 thread": "ours, 1 thread, from JPEG",
    "ours, cache, processes": "`DataLoader`, 2 processes, from `PixelCache`",
    "ours, JPEG, processes": "`DataLoader`, 2 processes, from JPEG",
    "decoding": "only decoding JPEG, 2 threads: a bound",
}


def loader(result):
    """Table of the views per second of whole loaders, relative to lightly's."""
    cells = result["cells"]
    columns = [f"{cell['size']} px" for cell in cells]
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(cells)]
    for key, name in LOADERS.items():
        ratios = [_number(_ratio(cell["views_per_second"], key, "lightly")) for cell in cells]
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    batches = " / ".join(str(cell["batch_size"]) for cell in cells)
    return [
        *lines,
        "",
        "Views per second, in multiples of lightly's with a DataLoader of 2 processes, from JPEG. "
        f"Wall clock, V = {result['num_views']}, batches of {batches} images, "
        f"{result['machine']['cores']} cores of {_footnote(result)}",
    ]
