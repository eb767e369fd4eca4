"""The report of a run: its metrics with their meanings, and all its pictures. Needs matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.decode import decode_pixels
from ssl_views.data.image_limits import ImageLimits
from ssl_views.evaluation.feature_sets import LabelledFeatures
from ssl_views.evaluation.history import RunHistory, write_whole
from ssl_views.evaluation.image_pictures import (
    draw_map,
    draw_neighbours,
    map_points,
    thumbnail_places,
)
from ssl_views.evaluation.knn import Neighbours, knn_predictions, nearest_neighbours
from ssl_views.evaluation.metric_meanings import explained
from ssl_views.evaluation.picture_style import png_of
from ssl_views.evaluation.pictures import (
    draw_confusion,
    draw_effective_rank,
    draw_spectrum,
    draw_terms,
    most_confused,
)
from ssl_views.evaluation.report import Metrics
from ssl_views.evaluation.report_page import ReportPicture, report_page
from ssl_views.plots import draw_view_grid
from ssl_views.spectrum import fit_power_law
from ssl_views.views import ViewRecipe

_QUERIES, _NEIGHBOURS = 10, 5
_VIEW_ROWS = 4
_SHOWN_SIDE = 160  # pixels
_LEAST_MAPPED = 5


@dataclass(frozen=True)
class Evaluated:
    """What a report is about.

    Attributes:
        run: its folder.
        config: of the model.
        metrics: that were computed.
        protocol: by name, as in evaluation.json; with k and temperature of kNN.
        features: of training and test images.
        eigenvalues: of the covariance of the test features, as from `eigenspectrum`.
        train: rows of the former.
        test: rows of the latter.
        limits: which images were used.
    """

    run: Path
    config: SSLViewsConfig
    metrics: Metrics
    protocol: Mapping[str, Any]
    features: LabelledFeatures
    eigenvalues: Tensor
    train: Any
    test: Any
    limits: ImageLimits

    def images(self, rows: Any, places: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return the pixels (H, W, C) of some rows."""
        values, _ = MultiViewDataset(rows).read(places)
        return [decode_pixels(v, self.config.num_channels, self.limits) for v in values]

    def small_images(self, rows: Any, places: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return them one by one shrunk to what a picture shows."""
        return [_shrink(self.images(rows, [place])[0]) for place in places]


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(image.shape[:2]) / _SHOWN_SIDE
    if factor <= 1:
        return image
    size = [max(1, round(side / factor)) for side in image.shape[:2]]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return small.round().to(torch.uint8).numpy()


def write_report(path: Path, evaluated: Evaluated) -> None:
    """Write a report as one HTML file; it appears whole.

    Args:
        path: of the file.
        evaluated: what it is about.
    """
    notes = [evaluated.features.no_labels] if evaluated.features.no_labels else []
    history = None
    try:
        history = RunHistory.read(evaluated.run)
    except ValueError as error:  # a model that something else has saved
        notes.append(f"No pictures of the training: {error}")
    k = int(evaluated.protocol["k"])
    neighbours = nearest_neighbours(
        evaluated.features.train, evaluated.features.test, k=max(k, _NEIGHBOURS)
    )
    pictures = [
        *_of_images(evaluated, neighbours),
        *_of_training(evaluated, history),
        *_of_features(evaluated, neighbours, k),
    ]
    page = report_page(
        title=f"Evaluation of {evaluated.run}",
        facts=_facts(evaluated, history),
        metrics=explained(evaluated.metrics),
        pictures=pictures,
        notes=notes,
    )
    write_whole(path, page)


def _facts(evaluated: Evaluated, history: RunHistory | None) -> dict[str, str]:
    metrics, config = evaluated.metrics, evaluated.config
    facts = {
        "data": str(evaluated.protocol["dataset"]),
        "images": f"{metrics.num_train:,} to learn from, {metrics.num_test:,} to evaluate",
        "features": f"{evaluated.protocol['features']}, {evaluated.protocol['precision']}",
        "kNN": f"k = {evaluated.protocol['k']}, temperature {evaluated.protocol['temperature']}, "
        "cosine similarity",
        "backbone": f"{config.backbone}, {metrics.feature_dim} features",
        "views": f"{config.num_views} of {config.image_size} pixels, recipe {config.recipe}",
        "loss": f"{config.loss}, projector {config.projector_dim}",
    }
    if history is not None:
        state = "" if history.finished else " (not finished)"
        images, seconds = history.total("images_seen"), history.total("train_seconds")
        facts["steps"] = f"{history.state['global_step']:,}{state}"
        if images is not None and seconds is not None:
            facts["trained"] = f"on {images:,.0f} images in {seconds / 60:,.1f} minutes"
    return facts


def _of_images(evaluated: Evaluated, neighbours: Neighbours) -> Iterator[ReportPicture]:
    features = evaluated.features
    places = np.linspace(0, len(features.test) - 1, min(_QUERIES, len(features.test))).astype(int)
    queries, found = places.tolist(), neighbours.indices[places].cpu()[:, :_NEIGHBOURS]
    train_rows = _rows_of(features.train_places, found.flatten().tolist())
    test_rows = _rows_of(features.test_places, queries)
    shown = evaluated.small_images(evaluated.train, train_rows)
    own = evaluated.small_images(evaluated.test, test_rows)
    width = found.shape[1]
    rows = [(image, shown[i * width : (i + 1) * width]) for i, image in enumerate(own)]
    labels = None
    if features.train_labels is not None and features.test_labels is not None:
        classes = features.train_labels.cpu()[found].tolist()
        labels = list(zip(features.test_labels.cpu()[places].tolist(), classes, strict=True))
    yield ReportPicture(
        "Nearest images",
        png_of(draw_neighbours(rows, labels, features.class_names)),
        f"{len(rows)} test images, each beside its {width} nearest training images.",
        "Test images at the left, evenly chosen; the training images whose features are nearest, "
        "nearest first."
        + (" A check mark: the class agrees; a cross: it does not." if labels else ""),
    )
    recipe = ViewRecipe.for_config(evaluated.config)
    whole = evaluated.images(evaluated.test, test_rows[:_VIEW_ROWS])
    some = [torch.from_numpy(image).permute(2, 0, 1) for image in whole]
    buffer = BytesIO()
    draw_view_grid(some, recipe).save(buffer, format="png", optimize=True)
    yield ReportPicture(
        "Views",
        buffer.getvalue(),
        f"{len(some)} test images, each beside {recipe.num_views} augmented views.",
        "What training compares: views of an image should have like representations. If a view "
        "no longer shows what matters to you, weaken the recipe.",
    )


def _rows_of(places: Tensor | None, numbers: Sequence[int]) -> list[int]:
    return list(numbers) if places is None else places[list(numbers)].tolist()


def _of_training(evaluated: Evaluated, history: RunHistory | None) -> Iterator[ReportPicture]:
    if history is None:
        return
    logged = {n: (s.steps, s.values) for n in history.names for s in [history.series(n)]}
    if "loss" in logged:
        yield ReportPicture(
            "Loss and its terms",
            png_of(draw_terms(logged)),
            "The loss and each of its unweighted terms against the training step.",
            "Training batches, and test images where the run was evaluated. Terms should fall or "
            "level off together.",
        )
    if {"eval_effective_rank", "embedding_effective_rank"} & logged.keys():
        yield ReportPicture(
            "Effective rank",
            png_of(draw_effective_rank(logged)),
            "The effective rank of features and embeddings against the training step.",
            "A fall towards 1 is collapse. When it has levelled off, more steps change little.",
        )


def _of_features(evaluated: Evaluated, neighbours: Neighbours, k: int) -> Iterator[ReportPicture]:
    features, eigenvalues = evaluated.features, evaluated.eigenvalues
    if bool((eigenvalues > 0).any()):
        law = None if evaluated.metrics.alpha is None else fit_power_law(eigenvalues)
        yield ReportPicture(
            "Eigenspectrum",
            png_of(draw_spectrum(eigenvalues, law)),
            "Eigenvalues of the covariance of test features against their rank, with a power law.",
            "Variance of the features along their principal axes. A steep fall means that few "
            "directions carry everything.",
        )
    if len(features.test) >= _LEAST_MAPPED:
        points, places = map_points(features.test)
        labels = None if features.test_labels is None else features.test_labels.cpu()[places]
        thumbnails = None
        if labels is None:
            chosen = thumbnail_places(points)
            rows = _rows_of(features.test_places, places[chosen].tolist())
            shown = evaluated.small_images(evaluated.test, rows)
            thumbnails = dict(zip(chosen, shown, strict=True))
        yield ReportPicture(
            "Map",
            png_of(draw_map(points, labels, features.class_names, thumbnails)),
            f"{len(points)} test images in the plane, like ones near each other.",
            "t-SNE of test features: groups are images that the backbone finds alike. Distances "
            "between groups mean nothing.",
        )
    if features.train_labels is None or features.test_labels is None:
        return
    voters = Neighbours(neighbours.indices[:, :k], neighbours.similarity[:, :k])
    temperature = float(evaluated.protocol["temperature"])
    predicted = knn_predictions(voters, features.train_labels, temperature=temperature).cpu()
    truth = features.test_labels.cpu()
    confused = most_confused(truth, predicted, features.class_names)
    listed = "; ".join(f"{a} as {b} ({100 * share:.0f} %)" for a, b, share in confused)
    yield ReportPicture(
        "Confusion",
        png_of(draw_confusion(truth, predicted, features.class_names)),
        "Which share of each class kNN predicts as which.",
        "True classes down, the class of the nearest images across, in percent of the true class. "
        + (f"Most frequent: {listed}." if listed else "No image is predicted wrong."),
    )
