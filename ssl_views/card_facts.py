"""Everything that a model card states, and nothing else: JSON values that are checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ssl_views.card_parts import (
    CostFacts,
    EncoderFacts,
    RecipeFacts,
    TrainingFacts,
    cost_facts,
    encoder_facts,
    recipe_facts,
    training_facts,
)
from ssl_views.checked_values import CheckedValues, is_finite
from ssl_views.evaluation.history import RunHistory
from ssl_views.evaluation.intervals import Interval
from ssl_views.evaluation.report import Metrics
from ssl_views.hardware import current_versions
from ssl_views.modeling_ssl_views import SSLViewsModel

DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_LONGEST_TEXT = 1000
_LONGEST = {"license": 100, "title": 100}
_METRICS = [each.name for each in fields(Metrics)]
_NO_NUMBERS = ("few_labels", "alpha_ranks")
_PROTOCOL = (  # what is told of a protocol: the data set may be a path
    "features", "feature_views", "precision", "k", "temperature", "compared_views", "view_images",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CardDetails(CheckedValues):
    """What only the user knows. What is left out is "not stated" in the card.

    Attributes:
        license: of the weights: a licence id of the Hub such as "apache-2.0", or the name of
            another licence.
        data: which images it was trained on, in a sentence.
        datasets: Hub ids of data sets that the training images are from.
        evaluation_data: which images it was evaluated on, in a few words.
        title: of the card; a Hub id "user/name" is also what the card says to load.
        limits: what it should not be used for, in a sentence.

    Raises:
        ValueError: if one is blank, or no Hub id where it must be one.
    """

    license: str | None = None
    data: str | None = None
    datasets: tuple[str, ...] = ()
    evaluation_data: str | None = None
    title: str | None = None
    limits: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{each.name} must say something; got {value!r}. Leave it out.")
            longest = _LONGEST.get(each.name, _LONGEST_TEXT)
            if isinstance(value, str) and len(value) > longest:
                raise ValueError(
                    f"{each.name} must have at most {longest} characters; got {len(value)}. Say "
                    "the rest in a file of its own."
                )
        for name in self.datasets:
            if not DATASET_ID.fullmatch(name):
                raise ValueError(
                    f"datasets must be Hub ids such as 'user/name'; got {name[:80]!r}. Describe "
                    "other images in data."
                )


@dataclass(frozen=True, kw_only=True)
class CardFacts(CheckedValues):
    """What a model card states.

    Attributes:
        encoder: the network.
        recipe: what it was to learn.
        training: how long it learned; None where no run is known.
        cost: what that took; None where no run is known.
        evaluation: content of evaluation.json, without what may be a path; None where there is
            none.
        versions: of the packages that wrote the card.
        details: what only the user knows.

    Raises:
        ValueError: if a value has not the type that it must have, or is not finite.
    """

    encoder: EncoderFacts
    recipe: RecipeFacts
    training: TrainingFacts | None = None
    cost: CostFacts | None = None
    evaluation: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    details: CardDetails = CardDetails()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation is not None:
            metrics_of(self.evaluation)


def facts_of(
    model: SSLViewsModel, history: RunHistory | None, details: CardDetails = CardDetails()
) -> CardFacts:
    """Gather what is known of an encoder.

    Args:
        model: the backbone that is exported.
        history: of its run, where there is one.
        details: what only the user knows.

    Raises:
        ValueError: if a record or an evaluation is damaged.
    """
    return CardFacts(
        encoder=encoder_facts(model),
        recipe=recipe_facts(model, history),
        training=None if history is None else training_facts(history),
        cost=None if history is None else cost_facts(history),
        evaluation=_public_evaluation(None if history is None else history.evaluation),
        versions=current_versions(),
        details=details,
    )


def metrics_of(evaluation: Mapping[str, Any]) -> Metrics:
    """Return the metrics of an evaluation.json, checked.

    Args:
        evaluation: its content.

    Raises:
        ValueError: if one is missing, or no finite number.
    """
    try:
        values = {name: evaluation[name] for name in _METRICS if name in evaluation}
        few, ranks = values.pop("few_labels", None) or {}, values.pop("alpha_ranks", None)
        draws = {str(float(share)): Interval(**few[share]) for share in few}
        metrics = Metrics(
            **values,
            few_labels=draws or None,
            alpha_ranks=None if ranks is None else (int(ranks[0]), int(ranks[1])),
        )
        wrong = _unusable(metrics, evaluation)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        wrong = [error]
    if wrong:
        raise ValueError(
            "an evaluation must hold metrics that are finite numbers; of this one "
            f"{repr(wrong[0])[:80]} is none. Run ssl-views evaluate again."
        )
    return metrics


def _unusable(metrics: Metrics, evaluation: Mapping[str, Any]) -> list[Any]:
    """Return values that are not what they must be."""
    needed: list[Any] = [
        metrics.effective_rank,
        metrics.feature_dim,
        metrics.num_train,
        metrics.num_test,
    ]
    if metrics.alpha is not None:
        needed += [metrics.alpha_r_squared, *(metrics.alpha_ranks or (None,))]
    if metrics.lidar is not None:
        needed.append(metrics.view_invariance)
    draws = (metrics.few_labels or {}).values()
    needed += [x for few in draws for x in (few.mean, few.n)]
    needed += evaluation.get("eigenspectrum") or []
    others = [getattr(metrics, name) for name in _METRICS if name not in _NO_NUMBERS]
    others += [x for few in draws for x in (few.low, few.high)]
    protocol = evaluation.get("protocol") or {}
    told = [evaluation.get("data"), *(protocol.get(name) for name in _PROTOCOL)]
    return [
        *(x for x in needed if not is_finite(x)),
        *(x for x in others if not (x is None or is_finite(x))),
        *(x for x in told if not (x is None or isinstance(x, str) or is_finite(x))),
        *(x for x in told[:1] if not isinstance(x, str | None)),
    ]


def _public_evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what may be published of an evaluation.json."""
    if evaluation is None:
        return None
    metrics_of(evaluation)
    protocol = evaluation.get("protocol") or {}
    data = evaluation.get("data")
    kept = {name: evaluation[name] for name in (*_METRICS, "eigenspectrum") if name in evaluation}
    told = {name: protocol[name] for name in _PROTOCOL if name in protocol}
    return dict(json.loads(json.dumps({**kept, "data": data, "protocol": told})))
