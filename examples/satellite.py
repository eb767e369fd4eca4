"""Tiles of any number of bands, as numpy files: pretrain an encoder that takes all bands.

python examples/satellite.py path/to/tiles --output_dir runs/satellite

Tiles are .npy files (H, W, bands) of one size. If they lie in folders, these are classes, which
only the evaluation uses. They are converted once, to runs/satellite/dataset, which the command line
takes too: ssl-views pretrain --dataset runs/satellite/dataset
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from datasets import Array3D, ClassLabel, Dataset, Features
from transformers import set_seed

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
    export_encoder,
)
from ssl_views.data.sources import hold_out, load_train_and_test, take_fraction


def read_tile(path):
    """Return (H, W, bands). For other files change what it returns, and "*.npy" below.

    GeoTIFF: tifffile.imread(path), or rasterio.open(path).read().transpose(1, 2, 0)
    """
    return np.load(path)


def to_uint8(tile, low, high):
    """Scale each band so that `low` becomes 0 and `high` 255; uint8 is left as it is."""
    if tile.dtype == np.uint8:
        return tile
    scaled = (tile - low) / np.maximum(high - low, 1e-6)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def convert(folder, output, num_measured=200):
    paths = sorted(folder.rglob("*.npy"))
    if not paths:
        raise SystemExit(f"{folder} holds no .npy files")
    # Measured on some of the tiles, and the same for all: a dark tile stays dark.
    some = np.random.default_rng(0).permutation(len(paths))[:num_measured]
    tiles = np.stack([read_tile(paths[i]) for i in some])
    low, high = np.percentile(tiles, (1, 99), axis=(0, 1, 2))
    classes = sorted({path.parent.name for path in paths if path.parent != folder})
    features = {"image": Array3D(tiles.shape[1:], "uint8")}
    if classes:
        features["label"] = ClassLabel(names=classes)

    def rows():
        for path in paths:
            row = {"image": to_uint8(read_tile(path), low, high), "label": path.parent.name}
            yield {name: row[name] for name in features}

    with TemporaryDirectory(dir=output.parent) as cache:
        dataset = Dataset.from_generator(rows, Features(features), cache_dir=cache)
        dataset.save_to_disk(output)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/satellite"))
    args = parser.parse_args(argv)

    set_seed(42)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not (args.output_dir / "dataset").is_dir():
        convert(args.tiles, args.output_dir / "dataset")
    train, test = load_train_and_test(str(args.output_dir / "dataset"))
    # Evaluations look at training images alone: test images choose nothing.
    probe_train, probe_test = hold_out(take_fraction(train, min(1.0, 5000 / len(train))))
    pixels = train.shuffle(seed=0)[:200]["image"] / 255
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    config = SSLViewsConfig(
        backbone=args.backbone,
        image_size=args.image_size,
        num_channels=pixels.shape[-1],
        # Of the recipe, what needs RGB is left out: saturation, hue and grey.
        recipe="imagenet",
        recipe_args={"mean": mean.tolist(), "std": std.tolist(), "solarize_prob": 0.0},
    )
    trainer = SSLViewsTrainer(
        SSLViewsForPreTraining(config),
        SSLViewsTrainingArguments(
            str(args.output_dir),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=min(args.batch_size, len(test)),
            eval_strategy="epoch",
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=MultiViewDataset(train),
        eval_dataset=MultiViewDataset(test, epoch=0),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
        probe_train=probe_train,
        probe_test=probe_test,
    )
    trainer.train("auto")
    folder = export_encoder(trainer.model, args.output_dir / "encoder")

    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()  # no ssl_views here
    cfg = encoder.pretrained_cfg
    tile = test[0]["image"] / 255
    x = torch.tensor((tile - cfg["mean"]) / cfg["std"], dtype=torch.float32).permute(2, 0, 1)
    print(f"{folder}: a tile {tuple(tile.shape)} gives features {tuple(encoder(x[None]).shape)}")


if __name__ == "__main__":
    main()
