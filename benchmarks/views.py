"""Time per view beside the peers, in one interleaved run.

    pip install lightly albumentations kornia torchvision
    OMP_NUM_THREADS=1 python benchmarks/views.py --dataset CIFAR10 --photos FOLDER_OF_PHOTOS

One recipe for all: random resized crop, flip, colour jitter, grayscale, blur, solarize, normalize.
First from decoded images, then from JPEG bytes over the number of views. Times are CPU-seconds of
this process, one thread; every round runs all methods in shuffled order, and a ratio is the median
of the ratios of the rounds. What each method does and leaves out is WORK below. Nothing else should
run; about 5 minutes. Writes benchmarks/results/views.json; benchmarks/tables.py makes the tables.
"""

import argparse
import importlib.metadata
import io
import json
import os
import sys
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from environment import environment
from PIL import Image, ImageOps
from timing import cpu_microseconds, median_ratio, show
from transformers import set_seed

from ssl_views import ViewRecipe, load_images
from ssl_views.data.decode import decode_image
from ssl_views.native import instruction_sets, render_native
from ssl_views.pixels import PixelBatch
from ssl_views.view_records import Rendering

RESULTS = Path(__file__).parent / "results"
SEED = 0
NUM_VIEWS = 4
NUM_IMAGES = {32: 256, 96: 32, 224: 32}
JPEG_SIZES, JPEG_VIEWS = (32, 224), (2, 4, 8)
KORNIA_PHOTO = (500, 375)  # width and height
KORNIA_BATCH = {32: 256, 96: 32, 224: 8}
NUM_CHECKED = 32
PEERS = ("lightly", "albumentations", "kornia", "torchvision")
LARGEST_ERROR = 1e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
SIGMA = (0.1, 2.0)
WORK = {
    "native": "draws records and renders uint8 (H, W, C) in memory (PixelBatch) into one reused "
    "batch (B, V, 3, S, S); the widest instruction set; antialiased; equals torchvision float",
    "native, ...": "other instructions, or another layout or dtype (uint8: not normalized); "
    "recipe.views takes a list of uint8 tensors (3, H, W) and allocates its result",
    "drawing": "of the records alone, which is part of all of ours",
    "torch engine": "the same, rendered eagerly in torch",
    "lightly": "BYOLView2Transform on PIL images, view by view, not stacked; "
    "antialiased uint8; PIL approximates the Gaussian by box blurs",
    "albumentations": "Compose of its transforms on uint8 arrays, view by view, not stacked; "
    "resizes without antialias, so its views are not torchvision's; channels last in memory",
    "kornia": "AugmentationSequential on stacked batches of 256, 32 or 8 images (32, 96, 224 px: "
    "its fastest), once per view, conversion to float included; one jitter order per batch, no "
    "antialias; it needs one size, so photographs were resized to 500 x 375 beforehand",
    "torchvision": "transforms.v2 on uint8 tensors, view by view, not stacked; antialiased",
    "jpeg, ours": "decode_image once per image, recipe.draw, recipe.render into a reused batch",
    "jpeg, lightly": "PIL decodes once per image, then V views",
}


def recipe_of(size, num_views=NUM_VIEWS):
    odds = {"jitter_prob": 0.8, "grayscale_prob": 0.2, "blur_prob": 0.5, "solarize_prob": 0.1}
    own = {"blur_sigma": SIGMA, "mean": MEAN, "std": STD, **JITTER}
    return ViewRecipe(image_size=size, num_views=num_views, **odds, **own)


def rendering_of(recipe):
    return Rendering(recipe.image_size, "bilinear", recipe.groups[0].kernel_size, MEAN, STD)


def sizes_of(images):
    return np.array([i.shape[1] for i in images]), np.array([i.shape[2] for i in images])


def ours(images, recipe):
    """Return what makes all views of the images, by method."""
    pixels, (heights, widths) = PixelBatch.of(images), sizes_of(images)
    indices, epochs, rendering = np.arange(len(images)), count(), rendering_of(recipe)

    def draw():
        return recipe.draw(indices, heights, widths, epoch=next(epochs), seed=SEED)

    def native(**options):
        out = [recipe.render(pixels, draw(), engine="native", **options)]
        return lambda: recipe.render(pixels, draw(), engine="native", out=out, **options)

    def narrower(name):
        options = {"out": render_native(pixels, draw(), rendering), "instruction_set": name}
        return lambda: render_native(pixels, draw(), rendering, **options)

    return {
        "native": native(),
        **{f"native, {name}": narrower(name) for name in reversed(instruction_sets()[:-1])},
        "native, bfloat16": native(dtype=torch.bfloat16),
        "native, channels_last": native(channels_last=True),
        "native, uint8": native(dtype=torch.uint8, normalize=False),
        "native, recipe.views": lambda: recipe.views(images, indices, epoch=next(epochs)),
        "drawing": draw,
        "torch engine": lambda: recipe.render(images, draw(), engine="torch"),
    }


def lightly_view(size):
    from lightly.transforms.byol_transform import BYOLView2Transform

    jitter = zip(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), JITTER.values(), strict=True)
    odds = {"gaussian_blur": 0.5, "solarization_prob": 0.1}
    own = {"sigmas": SIGMA, "normalize": {"mean": MEAN, "std": STD}}
    return BYOLView2Transform(input_size=size, **dict(jitter), **odds, **own)


def albumentations_view(size, kernel):
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or it asks the network for its newest version
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    steps = [
        A.RandomResizedCrop((size, size)),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(**JITTER, p=0.8),
        A.ToGray(p=0.2),
        A.GaussianBlur(blur_limit=(kernel, kernel), sigma_limit=SIGMA, p=0.5),
        A.Solarize(p=0.1),
    ]
    return A.Compose([*steps, A.Normalize(MEAN, STD), A.ToTensorV2()], seed=SEED)


def kornia_views(size, kernel):
    import kornia.augmentation as K

    steps = [
        K.RandomResizedCrop((size, size)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(**JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), SIGMA, p=0.5),
        K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=0.1),
    ]
    return K.AugmentationSequential(*steps, K.Normalize(MEAN, STD))


def torchvision_view(size, kernel):
    steps = [
        tv.RandomResizedCrop(size),
        tv.RandomHorizontalFlip(0.5),
        tv.RandomApply([tv.ColorJitter(**JITTER)], 0.8),
        tv.RandomGrayscale(0.2),
        tv.RandomApply([tv.GaussianBlur(kernel, SIGMA)], 0.5),
        tv.RandomSolarize(128, 0.1),
    ]
    return tv.Compose([*steps, tv.ToDtype(torch.float32, scale=True), tv.Normalize(MEAN, STD)])


def peers(images, recipe):
    """Return what makes all views of the images, by peer."""
    size, kernel = recipe.image_size, recipe.groups[0].kernel_size
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0)) for image in images]
    pil = [Image.fromarray(array) for array in arrays]
    one_size = pil if size == 32 else [ImageOps.fit(image, KORNIA_PHOTO) for image in pil]
    batch = torch.stack([tvf.pil_to_tensor(image) for image in one_size])
    from_pil, from_array = lightly_view(size), albumentations_view(size, kernel)
    from_batch, from_tensor = kornia_views(size, kernel), torchvision_view(size, kernel)
    views = range(recipe.num_views)

    def kornia():
        parts = (part.float() / 255 for part in batch.split(KORNIA_BATCH[size]))
        return [from_batch(part) for part in parts for _ in views]

    return {
        "lightly": lambda: [from_pil(image) for image in pil for _ in views],
        "albumentations": lambda: [from_array(image=array) for array in arrays for _ in views],
        "kornia": kornia,
        "torchvision": lambda: [from_tensor(image) for image in images for _ in views],
    }


def with_torchvision(image, records, at, recipe):
    """Render one view by torchvision's functions of float tensors."""
    box, size, kernel = records.box[at].tolist(), [recipe.image_size] * 2, recipe.groups[0][2]
    x = tvf.resized_crop(image.float() / 255, *box, size, antialias=True)
    x = tvf.horizontal_flip(x) if records.flip[at] else x
    adjust = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    for operation in records.order[at][records.order[at] >= 0]:
        x = adjust[operation](x, float(records.factor[at][operation]))
    x = tvf.rgb_to_grayscale(x, 3) if records.grayscale[at] else x
    sigma = float(records.blur_sigma[at])
    x = tvf.gaussian_blur(x, [kernel] * 2, [sigma] * 2) if sigma > 0 else x
    x = tvf.solarize(x, 0.5) if records.solarize[at] else x
    return tvf.normalize(x, MEAN, STD)


def largest_errors(images, recipe):
    """Return the largest difference from torchvision of pixels in [0, 1], by instruction set."""
    records = recipe.draw(range(len(images)), *sizes_of(images), epoch=0, seed=SEED)
    places = list(np.ndindex(records.flip.shape))
    expected = torch.stack([with_torchvision(images[at[0]], records, at, recipe) for at in places])
    errors, pixels = {}, PixelBatch.of(images)
    for name in instruction_sets():
        views = render_native(pixels, records, rendering_of(recipe), instruction_set=name)
        error = (views.flatten(0, 1) - expected).abs() * torch.tensor(STD).view(3, 1, 1)
        errors[name] = float(error.max())
    return errors


def from_jpeg(encoded, size):
    """Return what makes all views of the encoded images, with how many, by method and V."""
    view, epochs, n = lightly_view(size), count(), len(encoded)

    def pil_images():
        return [Image.open(io.BytesIO(code)).convert("RGB") for code in encoded]

    def decoded():
        return [decode_image(code, 3) for code in encoded]

    def ours(num_views):
        recipe, memory = recipe_of(size, num_views), []

        def run():
            images = decoded()
            records = recipe.draw(range(n), *sizes_of(images), epoch=next(epochs), seed=SEED)
            memory[:] = [recipe.render(images, records, engine="native", out=memory or None)]

        return run

    def lightly(num_views):
        return lambda: [view(image) for image in pil_images() for _ in range(num_views)]

    methods = {"ours, decoding": (decoded, n), "lightly, decoding": (pil_images, n)}
    for num_views in JPEG_VIEWS:
        methods[f"ours, V = {num_views}"] = ours(num_views), n * num_views
        methods[f"lightly, V = {num_views}"] = lightly(num_views), n * num_views
    return methods


def parse():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--dataset", required=True, help="images of 32 px, for views of 32 px")
    parser.add_argument("--photos", required=True, help="photographs, for views of 96 and 224 px")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224], choices=NUM_IMAGES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="per method and round, at least")
    parser.add_argument("--output", type=Path, default=RESULTS / "views.json")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    torch.set_num_threads(1)
    set_seed(SEED)
    what = "CPU-microseconds per view, per core (of decoding: per image), by method and round"
    result = {"what": what, "rounds": args.rounds, "seconds_per_round": args.seconds, "seed": SEED}
    result |= {"instruction_set": instruction_sets()[-1], **environment(), "work": WORK}
    result |= {"decoded": [], "jpeg": []}
    for size in args.sizes:
        rows, recipe = load_images(args.dataset if size == 32 else args.photos), recipe_of(size)
        encoded = [rows[i]["image"]["bytes"] for i in range(NUM_IMAGES[size])]
        images = [decode_image(code, 3) for code in encoded]
        errors = largest_errors(images[:NUM_CHECKED], recipe)
        if max(errors.values()) > LARGEST_ERROR:
            raise SystemExit(f"views of {size} px differ from torchvision's by {errors}")
        functions = {**ours(images, recipe), **peers(images, recipe)}
        methods = {name: (f, len(images) * NUM_VIEWS) for name, f in functions.items()}
        print(f"{size} px, decoded, V = {NUM_VIEWS}; largest errors {errors}", flush=True)
        times = cpu_microseconds(methods, args.rounds, args.seconds)
        show(times, "native")
        kernel = recipe.groups[0].kernel_size
        cell = {"size": size, "num_images": len(images), "blur_kernel_size": kernel}
        share = median_ratio(times, "drawing", "native")
        more = {"num_views": NUM_VIEWS, "largest_errors": errors, "drawing_share": share}
        result["decoded"].append({**cell, **more, "microseconds": times})
        if size not in JPEG_SIZES:
            continue
        print(f"{size} px, from JPEG bytes", flush=True)
        times = cpu_microseconds(from_jpeg(encoded, size), args.rounds, args.seconds)
        show(times, f"ours, V = {NUM_VIEWS}")
        few, many = JPEG_VIEWS[0], JPEG_VIEWS[-1]
        falls = {
            who: median_ratio(times, f"{who}, V = {many}", f"{who}, V = {few}")
            for who in ("ours", "lightly")
        }
        print(f"time per view, V = {many} relative to V = {few}:", falls, flush=True)
        more = {"num_views": JPEG_VIEWS, "most_to_fewest_views": falls}
        result["jpeg"].append({**cell, **more, "microseconds": times})
    used = [name for name in ("simplejpeg",) if name in sys.modules]  # by decode_image
    for package in (*PEERS, "pillow", "opencv-python-headless", *used):
        result["versions"][package] = importlib.metadata.version(package)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
