"""`ssl-views evaluate`: what a trained backbone's features are worth."""

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ssl_views.cli.arguments import LabelledDataArguments, flag, make_parser, read_arguments
from ssl_views.cli.console import metrics_table, protocol_line, say
from ssl_views.cli.setup import image_limits, load_run
from ssl_views.data.sources import load_train_and_test
from ssl_views.evaluation.features import labelled_features
from ssl_views.evaluation.report import evaluate_features


@dataclass
class EvaluateArguments(LabelledDataArguments):
    """Which images, and which protocol."""

    k: int = flag(20, "Neighbours of kNN.")
    temperature: float = flag(0.1, "Temperature of kNN.")
    batch_size: int = flag(256, "Images at once.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "evaluate", "kNN, linear probe and effective rank of a run's frozen features, on one "
        "clean view per image.",
        EvaluateArguments, positionals=("run",),
    )  # fmt: skip
    protocol, rest = read_arguments(parser, argv)
    limits = image_limits(protocol)
    model = load_run(rest.run)
    train, test = load_train_and_test(
        protocol.dataset,
        split=protocol.split,
        image_column=protocol.image_column,
        test_split=protocol.test_split,
        allow_remote_images=protocol.allow_remote_images,
    )
    total = len(train) + len(test)
    with tqdm(total=total, desc="features", unit="image", dynamic_ncols=True) as bar:
        features = labelled_features(
            model,
            train,
            test,
            batch_size=protocol.batch_size,
            on_batch=bar.update,
            limits=limits,
        )
    metrics = evaluate_features(features, k=protocol.k, temperature=protocol.temperature)
    say(metrics_table({str(rest.run): metrics}))
    say(protocol_line(metrics, protocol.k, protocol.temperature))
    output = Path(rest.run) / "evaluation.json"
    how = {"k": protocol.k, "temperature": protocol.temperature, "feature_views": 1}
    output.write_text(json.dumps({**metrics.as_dict(), **how}, indent=2) + "\n")
    say(f"written to {output}")
