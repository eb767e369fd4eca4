"""The sections of a model card, in Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from ssl_views.card_facts import CardFacts, metrics_of
from ssl_views.card_loading import loading
from ssl_views.card_text import code, plain, table
from ssl_views.evaluation.metric_meanings import explained

NOT_STATED = "not stated"
_NOT_KNOWN = "not known"
_NAME = 100  # characters
_ARGUMENTS = 300


def sections(facts: CardFacts, folder_name: str, picture: str | None) -> dict[str, str]:
    """Return the sections by the names that the template has for them.

    Args:
        facts: what the card states.
        folder_name: what it says to load, where the title is no Hub id.
        picture: name of the file with the spectrum, or None.
    """
    encoder, title = facts.encoder, facts.details.title
    return {
        "title": (
            f"{code(encoder.architecture)}{_by_what(facts)}"
            if title is None
            else plain(title, _NAME)
        ),
        "summary": (
            f"An image encoder{_by_what(facts)}. It turns an image into {encoder.num_features:,} "
            "numbers, its features, for classifiers, search or clustering."
        ),
        "about": _about(facts),
        "loading": loading(facts, folder_name),
        "data": _data(facts),
        "recipe": _recipe(facts),
        "evaluation": _evaluation(facts, picture),
        "cost": _cost(facts),
        "limits": "\n".join(f"- {line}" for line in _limits(facts)),
        "licence": _licence(facts),
        "citation": _citation(facts),
    }


def _by_what(facts: CardFacts) -> str:
    """Return what is known of how it came to be."""
    if facts.training is None:
        return ""
    further = "" if facts.recipe.initial_weights is None else " further"
    return f", pretrained{further} without labels"


def _about(facts: CardFacts) -> str:
    encoder = facts.encoder
    rows = [
        ("Architecture", f"{code(encoder.architecture)}{_arguments(encoder.model_args)}"),
        ("Parameters", f"{encoder.num_parameters / 1e6:.1f} M ({encoder.num_parameters:,})"),
        ("Features", f"{encoder.num_features:,}"),
        ("Input", f"{_size(facts)} (channels x height x width)"),
        ("Preprocessing", f"{code(encoder.interpolation)} resize, mean {_list(encoder.mean)}, "
         f"std {_list(encoder.std)}"),
    ]  # fmt: skip
    return table(rows, ("", ""))


def _data(facts: CardFacts) -> str:
    details, training = facts.details, facts.training
    count = "" if training is None or training.images is None else f"{training.images:,} images."
    told = [f"As stated: {plain(details.data)}"] if details.data is not None else []
    if details.datasets:
        links = [f"[{plain(n)}](https://huggingface.co/datasets/{n})" for n in details.datasets]
        told.append(f"Data sets of the Hub: {', '.join(links)}")
    if not told:
        told = [f"{NOT_STATED.capitalize()}."]
    return "\n\n".join([*told, *([f"The training used {count}"] if count else [])])


def _recipe(facts: CardFacts) -> str:
    recipe, training = facts.recipe, facts.training
    enlarged = f", enlarged {recipe.upscale} times for the network" if recipe.upscale > 1 else ""
    hidden = ", ".join(f"{width:,}" for width in recipe.projector_hidden_dims) or "none"
    weight = recipe.orthogonality_weight
    start = recipe.initial_weights
    rows = [
        ("Views per image (V)", f"{recipe.num_views}"),
        ("Size of a view", f"{recipe.image_size} x {recipe.image_size} pixels{enlarged}"),
        ("View recipe", f"{code(recipe.recipe)}{_arguments(recipe.recipe_args)}"),
        ("Loss", f"{code(recipe.loss)}{_arguments(recipe.loss_args)}"),
        ("Projector dimension (d)", f"{recipe.projector_dim:,}; hidden layers: {hidden}"),
        ("Orthogonality weight (beta)", "see the loss" if weight is None else f"{weight:.6g}"),
        ("Weights at the start", "random" if start is None else plain(start, _NAME)),
    ]
    if training is None:
        return table(rows, ("", "")) + "\n\nHow long it was trained is not known."
    lasted = f"{training.steps:,}"
    if not training.finished and training.planned_steps is not None:
        lasted += f" of {training.planned_steps:,}"
    if training.weights_step not in (None, training.steps):
        lasted += f"; the weights are the best ones, of step {training.weights_step:,}"
    optimizer = _known(training.optimizer and code(training.optimizer))
    if training.precision is not None:
        optimizer += f", in {code(training.precision)}"
    rate = _known(training.learning_rate, "{:g}")
    if training.schedule is not None:
        rate += f", {code(training.schedule)} schedule"
    if training.warmup_steps is not None:
        steps = training.warmup_steps
        rate += f", warm-up of {f'{100 * steps:g} %' if steps < 1 else f'{steps:,g} steps'}"
    rows += [
        ("Steps", lasted),
        ("Images per step", _known(training.images_per_step, "{:,}")),
        ("Epochs", _known(training.epochs, "{:.4g}")),
        ("Images seen", _known(training.images_seen, "{:,}")),
        ("Optimizer", optimizer),
        ("Learning rate", rate),
        ("Weight decay", _known(training.weight_decay, "{:g}")),
        ("Seed", ", ".join(map(str, training.seeds)) or _NOT_KNOWN),
    ]
    note = (
        "The projector is not part of the encoder. An image counts once per epoch, however many "
        "views it has."
    )
    return f"{table(rows, ('', ''))}\n\n{note}"


def _evaluation(facts: CardFacts, picture: str | None) -> str:
    evaluation = facts.evaluation
    if evaluation is None:
        return "This encoder was not evaluated."
    metrics, protocol = metrics_of(evaluation), evaluation.get("protocol") or {}
    data = facts.details.evaluation_data or evaluation.get("data")
    precision = str(protocol.get("precision", NOT_STATED))
    averaged = protocol.get("feature_views")
    views = plain(str(protocol.get("features", NOT_STATED)), _NAME)
    if averaged is not None and averaged != 1:
        views += ": a clean one and augmented ones, of training and test images"
    sentences = [
        f"Images: {NOT_STATED if data is None else plain(data).rstrip('.')}.",
        f"Frozen features of {views}, computed in {code(precision)}.",
    ]
    if metrics.knn is None:
        sentences.append(f"{metrics.num_test:,} images; no accuracies, for they have no labels.")
    else:
        sentences += [
            f"{metrics.num_train:,} images to learn from, {metrics.num_test:,} to evaluate.",
            f"kNN with k = {plain(str(protocol.get('k', NOT_STATED)), 20)} and temperature "
            f"{plain(str(protocol.get('temperature', NOT_STATED)), 20)}.",
            "The weight decay of linear probes was chosen on training images.",
        ]
    if metrics.lidar is not None and "compared_views" in protocol:
        views_, images = (
            plain(str(protocol.get(k)), 20) for k in ("compared_views", "view_images")
        )
        sentences.append(f"LiDAR and view invariance: {views_} views of {images} images.")
    rows = [(name, value, plain(meaning)) for name, value, meaning in explained(metrics)]
    parts = [" ".join(sentences), table(rows, ("Metric", "Value", "What it means"))]
    if picture is not None:
        law = "" if metrics.alpha is None else f", with a power law of exponent {metrics.alpha:.2f}"
        about = f"Eigenvalues of the covariance of test features against their rank{law}"
        parts.append(f"![{about}]({picture})")
    return "\n\n".join(parts)


def _cost(facts: CardFacts) -> str:
    cost = facts.cost
    if cost is None:
        return "Not known."
    hardware = _NOT_KNOWN
    if cost.device is not None:
        number = "" if cost.num_devices is None else f"{cost.num_devices:,} "
        what = "cores of " if cost.kind == "cpu" else "x "
        hardware = f"{number}{what if number else ''}{plain(cost.device, _NAME)}"
    versions = ", ".join(f"{code(n, 30)} {plain(v, 30)}" for n, v in cost.versions.items())
    minutes = None if cost.seconds is None else cost.seconds / 60
    rows = [
        ("Hardware", hardware),
        ("Processes", _known(cost.processes, "{:,}")),
        ("Training, without evaluations", _known(minutes, "{:,.1f} minutes")),
        ("Images per second", _known(cost.images_per_second, "{:,.0f}")),
        ("Versions", versions or _NOT_KNOWN),
    ]
    return table(rows, ("", ""))


def _limits(facts: CardFacts) -> list[str]:
    recipe, training, encoder = facts.recipe, facts.training, facts.encoder
    lines = []
    if facts.details.limits is not None:
        lines.append(f"As stated: {plain(facts.details.limits)}")
    if training is not None and not training.finished:
        lines.append("The training had not ended when this encoder was written.")
    others = "any images" if facts.evaluation is None else "other images than those above"
    lines += [
        f"It was not evaluated on {others}, and not for fairness between groups of people.",
        "Features say what the training images and views made of them: what views change, by "
        "cropping or colour, they are made to ignore.",
        "Images must be prepared as above; other preprocessing gives other features.",
    ]
    if recipe.upscale > 1:
        lines.append(
            f"It was trained on views of {recipe.image_size} pixels, enlarged {recipe.upscale} "
            "times; the loaders above resize images straight to "
            f"{encoder.input_size[-1]} pixels."
        )
    if recipe.initial_weights is not None:
        lines.append(
            "It did not start from random weights: the licence and the images of the weights at "
            "the start matter too."
        )
    if encoder.input_size[0] != 3:
        lines.append(
            "The pipelines of transformers make every image RGB, which this encoder does not take: "
            "use the code above."
        )
    if encoder.needs is not None:
        lines.append(
            f"timm itself does not have the architecture: `import {encoder.needs}` comes first, "
            "and only where that package is installed can it be loaded."
        )
    return lines


def _licence(facts: CardFacts) -> str:
    stated = facts.details.license
    if stated is None:
        return f"{NOT_STATED.capitalize()}. Ask before you use the weights."
    return f"Of the weights: {plain(stated, _ARGUMENTS)}"


def _citation(facts: CardFacts) -> str:
    version = facts.versions.get("ssl_views")
    made = f"`ssl_views` {plain(version, 30)}" if version is not None else "`ssl_views`"
    return (
        "Many views and small projectors: [arXiv 2312.10725](https://arxiv.org/abs/2312.10725). "
        "Architecture: [timm](https://github.com/huggingface/pytorch-image-models). Made with "
        f"{made}."
    )


def _arguments(values: Mapping[str, Any]) -> str:
    """Return arguments behind a name, or nothing where there are none."""
    told = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return f" with {plain(', '.join(told), _ARGUMENTS)}" if told else ""


def _size(facts: CardFacts) -> str:
    return " x ".join(map(str, facts.encoder.input_size))


def _list(values: tuple[float, ...]) -> str:
    return plain(", ".join(f"{value:g}" for value in values), _NAME)


def _known(value: Any, form: str = "{}") -> str:
    return _NOT_KNOWN if value is None else form.format(value)
