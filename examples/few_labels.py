"""What an encoder is worth where few images have labels: frozen features and a linear classifier.

python examples/few_labels.py runs/mine --dataset path/or/hub-id

The first argument is the folder of a run or an exported encoder. Draws of labelled images differ by
chance, so accuracies are means over several draws, with the 95 % interval of the mean; raw pixels
and the untrained backbone get the same draws.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import timm
import torch
from tqdm import tqdm
from transformers import set_seed

from ssl_views import (
    Extraction,
    SSLViewsConfig,
    SSLViewsModel,
    ViewRecipe,
    few_label_accuracies,
    labelled_features,
)
from ssl_views.data.sources import load_train_and_test
from ssl_views.evaluation.features import raw_pixels
from ssl_views.evaluation.intervals import interval_of_mean


def load(folder):
    """Load the backbone of a run, or an encoder folder of timm."""
    stored = json.loads((Path(folder) / "config.json").read_text())
    if stored["model_type"] == SSLViewsConfig.model_type:
        return SSLViewsModel.from_pretrained(folder)
    pixels = stored["pretrained_cfg"]
    set_by_model = ("in_chans", "img_size")
    config = SSLViewsConfig(
        backbone=stored["architecture"],
        model_args={k: v for k, v in stored["model_args"].items() if k not in set_by_model},
        image_size=pixels["input_size"][1],
        num_channels=pixels["input_size"][0],
        recipe_args={"mean": pixels["mean"], "std": pixels["std"]},
    )
    model = SSLViewsModel(config)
    model.backbone = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--num_draws", type=int, default=5)
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = load_train_and_test(args.dataset)
    trained = load(args.run).to(device)
    set_seed(0)
    untrained = SSLViewsModel(trained.config).to(device)
    recipe = ViewRecipe.for_config(trained.config)

    with tqdm(total=2 * (len(train) + len(test)), desc="features", unit="image") as bar:
        extraction = Extraction(num_threads=os.cpu_count() or 1, on_batch=bar.update)
        features = labelled_features(trained, train, test, extraction=extraction)
        if features.no_labels:
            parser.error(f"{args.dataset} cannot be used: {features.no_labels}")
        before = labelled_features(untrained, train, test, extraction=extraction)
    pixels = [raw_pixels(rows, recipe, extraction=extraction) for rows in (train, test)]
    compared = {
        "raw pixels": replace(features, train=pixels[0], test=pixels[1]),
        "untrained backbone": before,
        "trained backbone": features,
    }
    headings = [f"{share * 100:g} % of {len(features.train):,} labels" for share in args.shares]
    print(f"{'':20}" + "".join(f"{heading:>28}" for heading in headings))
    for name, found in compared.items():
        f = found.to(torch.device(device))
        cells = []
        for share in args.shares:
            labelled = f.train, f.train_labels, f.test, f.test_labels
            accuracies = few_label_accuracies(*labelled, share=share, num_draws=args.num_draws)
            interval = interval_of_mean(accuracies)
            cell = f"{interval.mean:.1%}"
            if interval.low is not None:
                cell += f" ({max(interval.low, 0):.1%} to {min(interval.high, 1):.1%})"
            cells.append(cell)
        print(f"{name:20}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    main()
