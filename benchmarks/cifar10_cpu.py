"""CIFAR-10 on a CPU: raw pixels, untrained backbone, trained backbone.

    python benchmarks/cifar10_cpu.py --dataset PATH_OR_HUB_ID

Runs the documented recipe (examples/cifar10_cpu.yaml) once per seed, evaluates with all 50,000
training images as reference, and writes benchmarks/results/cifar10_cpu.json, with the facts of the
model card of the first seed's encoder. Nothing else should run meanwhile.
"""

import argparse
import json
import time
from pathlib import Path

from environment import environment
from transformers import set_seed

from model_cards import card_of
from ssl_views import SSLViewsConfig, SSLViewsModel, ViewRecipe
from ssl_views.cli import main
from ssl_views.data.sources import load_train_and_test
from ssl_views.evaluation.feature_sets import LabelledFeatures, labelled_features
from ssl_views.evaluation.features import raw_pixels
from ssl_views.evaluation.labels import labels_of
from ssl_views.evaluation.report import evaluate_features

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "cifar10_cpu.yaml"


def pretrain(dataset, seed, output_dir):
    """Run the recipe; return the seconds of the whole command."""
    start = time.perf_counter()
    arguments = ["pretrain", str(RECIPE), "--dataset", dataset, "--seed", str(seed)]
    if main([*arguments, "--output_dir", str(output_dir), "--save_strategy", "no"]) != 0:
        raise SystemExit("the recipe failed")
    return time.perf_counter() - start


def evaluate(dataset, seed, output_dir):
    train, test = load_train_and_test(dataset)
    config = SSLViewsConfig.from_pretrained(output_dir)
    recipe = ViewRecipe.for_config(config)
    labels = labels_of(train), labels_of(test)
    set_seed(seed)
    features = {
        "raw_pixels": LabelledFeatures(
            raw_pixels(train, recipe), raw_pixels(test, recipe), *labels
        ),
        "untrained_backbone": labelled_features(SSLViewsModel(config), train, test),
        "trained_backbone": labelled_features(
            SSLViewsModel.from_pretrained(output_dir), train, test
        ),
    }
    return {name: evaluate_features(f).as_dict() for name, f in features.items()}


def evaluated_card(dataset, name, output_dir):
    """Evaluate a run as the command does, and return the facts of its card."""
    if main(["evaluate", str(output_dir), "--dataset", dataset]) != 0:
        raise SystemExit("the evaluation failed")
    metrics = json.loads((output_dir / "evaluation.json").read_text())
    return card_of(
        output_dir,
        data=f"the {metrics['num_train']:,} training images of {name}",
        evaluation_data=f"the {metrics['num_test']:,} test images of {name}",
    )


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "cifar10_cpu")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "cifar10_cpu.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    runs, card = [], None
    for seed in args.seeds:
        output_dir = args.work_dir / str(seed)
        seconds = pretrain(args.dataset, seed, output_dir)
        runs.append({"seed": seed, "seconds": seconds, **evaluate(args.dataset, seed, output_dir)})
        if card is None:
            card = evaluated_card(args.dataset, args.dataset_name, output_dir)
        result = {
            "what": "kNN (k = 20, temperature 0.1) and linear probe on one clean view per image",
            "dataset": args.dataset_name,
            "recipe": RECIPE.relative_to(ROOT).as_posix(),
            "n": len(runs),
            **environment(),
            "runs": runs,
            "card": card,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(runs[-1], indent=2))
