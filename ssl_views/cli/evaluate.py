"""`ssl-views evaluate`: what a trained backbone's features are worth."""

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ssl_views.cli.arguments import DataArguments, _flag, make_parser, read_arguments
from ssl_views.cli.console import metrics_table, say
from ssl_views.cli.setup import load_run
from ssl_views.data.sources import load_train_and_test
from ssl_views.evaluation.features import extract_features, labels_of
from ssl_views.evaluation.report import LabelledFeatures, evaluate_features
from ssl_views.views import ViewRecipe


@dataclass
class EvaluateArguments:
    """Which protocol."""

    k: int = _flag(20, "Neighbours of kNN.")
    temperature: float = _flag(0.1, "Temperature of kNN.")
    batch_size: int = _flag(256, "Images at once.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "evaluate", "kNN, linear probe and effective rank of a run's frozen features, on one clean view per image.",
        DataArguments, EvaluateArguments, positionals=("run",),
    )  # fmt: skip
    data, protocol, rest = read_arguments(parser, argv)
    model = load_run(rest.run)
    recipe = ViewRecipe.for_config(model.config)
    train, test = load_train_and_test(
        data.dataset, split=data.split, image_column=data.image_column, test_split=data.test_split
    )
    parts = []
    for rows, name in ((train, "train"), (test, "test")):
        with tqdm(total=len(rows), desc=f"{name} features", unit="image", dynamic_ncols=True) as bar:
            parts.append(extract_features(model, rows, recipe, batch_size=protocol.batch_size, on_batch=bar.update))
    features = LabelledFeatures(*parts, labels_of(train), labels_of(test))
    metrics = evaluate_features(features, k=protocol.k, temperature=protocol.temperature)
    say(metrics_table({str(rest.run): metrics}))
    say(
        f"one clean view; {metrics.num_train:,} images to compare with, {metrics.num_test:,} to evaluate; "
        f"kNN: k = {protocol.k}, temperature {protocol.temperature}"
    )
    if metrics.knn is None:
        say("The images have no labels, so there is no accuracy.")
    output = Path(rest.run) / "evaluation.json"
    result = {**metrics.as_dict(), "k": protocol.k, "temperature": protocol.temperature, "feature_views": 1}
    output.write_text(json.dumps(result, indent=2) + "\n")
    say(f"written to {output}")
