"""`ssl-views evaluate`: what a trained backbone's features are worth, in numbers and pictures."""

import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from ssl_views.cli.arguments import LabelledDataArguments, flag, make_parser, read_arguments
from ssl_views.cli.console import few_labels_lines, metrics_table, protocol_line, say, spread_line
from ssl_views.cli.setup import image_limits, load_run
from ssl_views.data.sources import load_train_and_test, public_name
from ssl_views.evaluation.feature_cache import FeatureCache
from ssl_views.evaluation.feature_sets import labelled_features
from ssl_views.evaluation.features import (
    Extraction,
    FeatureProtocol,
    view_representations,
)
from ssl_views.evaluation.history import write_whole
from ssl_views.evaluation.knn import check_votes
from ssl_views.evaluation.probe import view_rows
from ssl_views.evaluation.report import FEW_LABELS, evaluate_features
from ssl_views.spectrum import eigenspectrum
from ssl_views.statistics import rank
from ssl_views.training_args import default_view_threads
from ssl_views.views import ViewRecipe

_VIEW_IMAGES = 512


@dataclass
class EvaluateArguments(LabelledDataArguments):
    """Which images, and which protocol."""

    k: int = flag(20, "Neighbours of kNN.")
    temperature: float = flag(0.1, "Temperature of kNN.")
    feature_views: int = flag(
        1,
        "1: one clean view per image. n > 1: mean of a clean and n - 1 augmented views, written to "
        "files of its own; 16 is the protocol of arXiv 2312.10725.",
    )
    precision: str = flag("float32", "Of the backbone: float32, bfloat16 or float16.")
    batch_size: int = flag(256, "Views at once.")
    feature_cache: str = flag(
        "auto", "Folder that keeps features for the next time; auto: in the run; or none."
    )
    report: bool = flag(True, "Also draw report.html; needs matplotlib.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "evaluate", "kNN, linear probes, spectrum and statistics of views of a run's frozen "
        "features, and a report with pictures.",
        EvaluateArguments, positionals=("run",),
    )  # fmt: skip
    arguments, rest = read_arguments(parser, argv)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _evaluate(arguments, Path(rest.run))
        return
    processes = PartialState(cpu=not torch.accelerator.is_available())
    try:
        _evaluate(arguments, Path(rest.run))
    finally:
        processes.destroy_process_group()


def _evaluate(arguments: EvaluateArguments, run: Path) -> None:
    check_votes(arguments.k, arguments.temperature)
    precision: Any = arguments.precision
    protocol = FeatureProtocol(arguments.feature_views, precision)
    limits = image_limits(arguments)
    if not arguments.feature_cache:
        raise ValueError("feature_cache must be a folder, auto or none; got an empty name.")
    model = load_run(str(run))
    own = "" if protocol.feature_views == 1 else f"_{protocol.name.replace(' ', '_')}"
    output, report = run / f"evaluation{own}.json", run / f"report{own}.html"
    if rank() == 0:
        _check_writable(run)
    train, test = load_train_and_test(
        arguments.dataset,
        split=arguments.split,
        image_column=arguments.image_column,
        test_split=arguments.test_split,
        allow_remote_images=arguments.allow_remote_images,
    )
    some = view_rows(test, _VIEW_IMAGES)
    recipe = ViewRecipe.for_config(model.config)
    kept = {"auto": run / "features", "none": None}
    folder = kept.get(arguments.feature_cache, Path(arguments.feature_cache))
    total = len(train) + len(test) + len(some)
    with tqdm(
        total=total, desc="features", unit="image", dynamic_ncols=True, disable=rank() > 0
    ) as bar:
        extraction = Extraction(
            arguments.batch_size, default_view_threads(), limits, on_batch=bar.update
        )
        features = labelled_features(
            model, train, test,
            protocol=protocol,
            extraction=extraction,
            cache=None if folder is None else FeatureCache(folder),
        )  # fmt: skip
        views = view_representations(
            model, some, recipe, precision=protocol.precision, extraction=extraction
        )
    if rank() > 0:
        return
    features = features.to(model.device)
    eigenvalues = eigenspectrum(features.test)
    metrics = evaluate_features(
        features,
        views=views.to(model.device),
        eigenvalues=eigenvalues,
        k=arguments.k,
        temperature=arguments.temperature,
        few_labels=FEW_LABELS,
    )
    say(metrics_table({str(run): metrics}))
    for line in few_labels_lines(metrics):
        say(line)
    say(spread_line(metrics))
    say(
        protocol_line(
            metrics,
            arguments.k,
            arguments.temperature,
            features=protocol.name,
            why=features.no_labels,
        )
    )
    how = {
        "features": protocol.name,
        **asdict(protocol),
        "k": arguments.k,
        "temperature": arguments.temperature,
        "compared_views": len(views),
        "view_images": views.shape[1],
        "dataset": arguments.dataset,
        "split": arguments.split,
        "test_split": arguments.test_split,
    }
    stored = {
        **metrics.as_dict(),
        "data": public_name(arguments.dataset),
        "protocol": how,
        "eigenspectrum": [float(f"{value:.6g}") for value in eigenvalues.tolist()],
    }
    write_whole(output, json.dumps(stored, indent=2) + "\n")
    say(f"written to {output}")
    if not arguments.report:
        return
    if importlib.util.find_spec("matplotlib") is None:
        say('for report.html with pictures: pip install "ssl-views[plots]"')
        return
    from ssl_views.evaluation.run_report import Evaluated, write_report  # needs matplotlib

    evaluated = Evaluated(
        run, model.config, metrics, how, features, eigenvalues, train, test, limits
    )
    write_report(report, evaluated)
    say(f"pictures in {report}")


def _check_writable(folder: Path) -> None:
    """Check that results can be written, before they are computed."""
    probe = folder / ".writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"results are written into the run's folder, which must allow it; got {error}. Copy "
            "the run, or change its permissions."
        ) from error
