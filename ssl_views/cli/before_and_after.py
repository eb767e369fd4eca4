"""The table at the end of a run: was it worth it?"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_views.cli.console import metrics_table, protocol_line, say
from ssl_views.data.sources import take_fraction
from ssl_views.evaluation.feature_sets import LabelledFeatures, labelled_features
from ssl_views.evaluation.features import Extraction, raw_pixels
from ssl_views.evaluation.history import write_whole
from ssl_views.evaluation.report import evaluate_features
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.views import ViewRecipe

_TRAIN, _TEST = 5000, 2000


class BeforeAndAfter:
    """Features of some images before and after training, beside their raw pixels.

    Args:
        train: rows to compare with; at most 5,000 are used.
        test: rows to evaluate; at most 2,000 are used.
        extraction: how features are made.
    """

    def __init__(self, train: Any, test: Any, extraction: Extraction) -> None:
        self.train = take_fraction(train, min(1.0, _TRAIN / len(train)))
        self.test = take_fraction(test, min(1.0, _TEST / len(test)))
        self.extraction = extraction
        self._before: dict[str, LabelledFeatures] = {}

    def before(self, model: SSLViewsModel, name: str) -> None:
        """Keep the features of the model that training starts from, under a name for the table."""
        self._before = {name: self._features(model)}

    def _features(self, model: SSLViewsModel) -> LabelledFeatures:
        return labelled_features(model, self.train, self.test, extraction=self.extraction)

    def after(self, model: SSLViewsModel) -> None:
        """Keep the features of the trained model."""
        self._recipe = ViewRecipe.for_config(model.config)
        self._trained = self._features(model)

    def report(self, output_dir: Path) -> None:
        """Print the table and write it to summary.json."""
        trained = self._trained
        pixels = [
            raw_pixels(rows, self._recipe, extraction=self.extraction)
            for rows in (self.train, self.test)
        ]
        compared = {
            "raw pixels": replace(trained, train=pixels[0], test=pixels[1]),
            **self._before,
            "trained backbone": trained,
        }
        metrics = {name: evaluate_features(f) for name, f in compared.items()}
        say("\n" + metrics_table(metrics))
        say(protocol_line(metrics["trained backbone"], why=trained.no_labels))
        summary = {name: m.as_dict() for name, m in metrics.items()}
        write_whole(output_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
