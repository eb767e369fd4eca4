"""The model card of an encoder: what is known of it, and "not stated" for the rest.

All that comes from users, runs and files is escaped: it can end neither the metadata nor a cell.
"""

import importlib.util
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ssl_views.card_facts import DATASET_ID, CardFacts, metrics_of
from ssl_views.card_licences import LICENCE_IDS
from ssl_views.card_sections import NOT_STATED, sections
from ssl_views.card_text import PLACEHOLDER, is_hub_id, one_line
from ssl_views.encoder_folder import SPECTRUM_FILE
from ssl_views.evaluation.report import Metrics
from ssl_views.spectrum import fit_power_law

_FOLDER = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_DIGITS = 6  # of the numbers in the metadata


def render_card(
    facts: CardFacts, *, folder_name: str = PLACEHOLDER, picture: str = SPECTRUM_FILE
) -> str:
    """Return the model card of an encoder folder, with metadata.

    Args:
        facts: what it states.
        folder_name: what it says to load, where the title is no Hub id.
        picture: name of the file with the spectrum, shown where `spectrum_picture` draws one.

    Raises:
        ValueError: if folder_name or picture is no plain name of a file.
    """
    for name in (folder_name, picture):
        if not _FOLDER.fullmatch(name):
            raise ValueError(
                f"names of files in a card must be of letters, digits, _, - and .; got {name!r}. "
                "Choose another."
            )
    shown = picture if _can_draw(facts.evaluation) else None
    template = files("ssl_views").joinpath("model_card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _metadata(facts), template_str=template, card=sections(facts, folder_name, shown)
    )
    return str(card).rstrip() + "\n"


def spectrum_picture(evaluation: Mapping[str, Any] | None) -> bytes | None:
    """Draw the eigenspectrum of an evaluation.

    Args:
        evaluation: content of evaluation.json.

    Returns:
        A PNG file; None where there is no eigenspectrum, or matplotlib is not installed.
    """
    if evaluation is None or not _can_draw(evaluation):
        return None
    from ssl_views.evaluation.picture_style import png_of  # needs matplotlib
    from ssl_views.evaluation.pictures import draw_spectrum

    values = torch.tensor(evaluation["eigenspectrum"], dtype=torch.float64)
    law = None if metrics_of(evaluation).alpha is None else fit_power_law(values)
    return png_of(draw_spectrum(values, law), dpi=100)


def _can_draw(evaluation: Mapping[str, Any] | None) -> bool:
    values = (evaluation or {}).get("eigenspectrum") or [0.0]
    return max(values) > 0 and importlib.util.find_spec("matplotlib") is not None


def _metadata(facts: CardFacts) -> ModelCardData:
    details, start = facts.details, facts.recipe.initial_weights
    name = one_line(details.title or facts.encoder.architecture, 100)
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "self-supervised", "ssl-views"],
        **_license(details.license),
        datasets=list(details.datasets) or None,
        base_model=start if start is not None and is_hub_id(start) else None,
        model_name=name.rpartition("/")[2] or name,
        eval_results=None if facts.evaluation is None else _results(facts, facts.evaluation),
    )


def _license(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    if text.strip().lower() in LICENCE_IDS:
        return {"license": text.strip().lower()}
    name = "-".join(re.findall(r"[a-z0-9.]+", text.lower()))[:60].strip("-.")
    return {"license": "other", "license_name": name or "other"}


def _results(facts: CardFacts, evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """Return the metrics with their protocol, for the model index of the Hub."""
    protocol, data = evaluation.get("protocol") or {}, evaluation.get("data")
    stated = facts.details.evaluation_data or data or NOT_STATED
    metrics = metrics_of(evaluation)
    how = {
        key: value
        for key, value in protocol.items()
        if key in ("features", "precision") and value is not None
    }
    how.update(num_train=metrics.num_train, num_test=metrics.num_test)
    return [
        EvalResult(
            task_type="image-classification" if kind == "accuracy" else "image-feature-extraction",
            dataset_type=data if DATASET_ID.fullmatch(data or "") else "other",
            dataset_name=one_line(stated, 100),
            metric_type=kind,
            metric_name=name,
            metric_value=_short(value),
            metric_args={key: _short(argument) for key, argument in {**own, **how}.items()},
        )
        for kind, name, value, own in _numbers(metrics, protocol)
    ]


def _numbers(
    metrics: Metrics, protocol: Mapping[str, Any]
) -> list[tuple[str, str, float, dict[str, Any]]]:
    """Return type, name, value and own arguments of each metric that there is."""
    votes = {key: protocol[key] for key in ("k", "temperature") if key in protocol}
    views = {key: protocol[key] for key in ("compared_views", "view_images") if key in protocol}
    decay = metrics.linear_probe_weight_decay
    probe = {} if decay is None else {"weight_decay": decay}
    found: list[tuple[str, str, float | None, dict[str, Any]]] = [
        ("accuracy", "kNN accuracy", metrics.knn, votes),
        ("accuracy", "linear probe accuracy", metrics.linear_probe, probe),
    ]
    for share, few in (metrics.few_labels or {}).items():
        name = f"linear probe accuracy, {100 * float(share):g} % of the labels"
        interval: dict[str, Any] = {
            "low": few.low,
            "high": few.high,
            "interval": "95 %",
            "draws": few.n,
        }
        own = {key: value for key, value in interval.items() if value is not None}
        found.append(("accuracy", name, few.mean, own))
    ranks = {} if metrics.alpha_ranks is None else {"ranks": list(metrics.alpha_ranks)}
    found += [
        ("effective_rank", "effective rank", metrics.effective_rank, {}),
        ("alpha", "alpha of the eigenspectrum", metrics.alpha, ranks),
        ("lidar", "LiDAR", metrics.lidar, views),
        ("view_invariance", "view invariance", metrics.view_invariance, views),
    ]
    return [(kind, name, value, own) for kind, name, value, own in found if value is not None]


def _short(value: Any) -> Any:
    """Return a value of the metadata, its text on a short line, its number with few digits."""
    if isinstance(value, str):
        return one_line(value, 60)
    return round(value, _DIGITS) if isinstance(value, float) else value
