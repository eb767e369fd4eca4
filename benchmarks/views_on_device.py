"""Time of the torch engine on a GPU, and how far its views are from the native engine's.

    python benchmarks/views_on_device.py

Random uint8 images lie on the device; drawing, the transfer of the records and rendering are timed,
by the clock, after the device is done. Needs no network; minutes, most of them compilation. Writes
benchmarks/results/views_on_device.json, cell by cell, and skips what is there.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from environment import environment

from ssl_views import ViewRecipe

RESULT = Path(__file__).parent / "results" / "views_on_device.json"
CELLS = [(32, 1024, 4), (32, 2048, 2), (32, 512, 8), (96, 256, 4), (224, 64, 4)]  # size, B, V
FULL = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "jitter_prob": 0.8,
    "grayscale_prob": 0.2,
    "blur_prob": 0.5,
    "solarize_prob": 0.1,
}


def milliseconds(function, device, rounds):
    """Return the times of some calls, each until the device is done."""
    times = []
    for _ in range(rounds):
        torch.get_device_module(device).synchronize()
        start = time.perf_counter()
        function()
        torch.get_device_module(device).synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def measure(size, num_images, num_views, device, rounds):
    recipe = ViewRecipe(image_size=size, num_views=num_views, **FULL)
    shape = (num_images, 3, size, size)
    images = list(torch.randint(0, 256, shape, dtype=torch.uint8))
    on_device = list(torch.stack(images).to(device))
    sides, indices = [size] * num_images, range(num_images)
    records = recipe.draw(indices, sides, sides, epoch=0)
    options = {"normalize": False, "dtype": torch.float32}
    torch_engine = {**options, "engine": "torch"}
    views = recipe.render(on_device, records, **torch_engine)  # compiles
    error = (views.cpu() - recipe.render(images, records, engine="auto", **options)).abs().max()

    epochs = iter(range(1, 10**6))

    def whole():
        drawn = recipe.draw(indices, sides, sides, epoch=next(epochs))
        recipe.render(on_device, drawn, **torch_engine)

    for _ in range(3):
        whole()
    return {
        "size": size,
        "num_images": num_images,
        "num_views": num_views,
        "largest_error": error.item(),
        "milliseconds": {
            "render": milliseconds(
                lambda: recipe.render(on_device, records, **torch_engine), device, rounds
            ),
            "draw and render": milliseconds(whole, device, rounds),
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.manual_seed(0)
    done = json.loads(args.output.read_text())["cells"] if args.output.is_file() else []
    for size, num_images, num_views in CELLS:
        if any((c["size"], c["num_images"]) == (size, num_images) for c in done):
            continue
        cell = measure(size, num_images, num_views, torch.device(args.device), args.rounds)
        done.append({**cell, **environment(), "seed": 0, "rounds": args.rounds})
        result = {"cells": done}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        times = {name: f"{median(v):.3f} ms" for name, v in cell["milliseconds"].items()}
        print(size, num_images * num_views, "views", times, "error", cell["largest_error"])
