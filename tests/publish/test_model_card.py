"""The whole card is a tested artifact; what strangers wrote stays text."""

import importlib.util
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from card_cases import DETAILS, EVALUATED, EVALUATION, HOSTILE, NOT_EVALUATED
from huggingface_hub import ModelCard
from PIL import Image

from ssl_views.card_facts import CardDetails
from ssl_views.card_text import code, plain
from ssl_views.model_card import render_card, spectrum_picture

CARDS = Path(__file__).parent / "cards"
STORED = {"evaluated": EVALUATED, "not_evaluated": NOT_EVALUATED}


@pytest.mark.parametrize("name", STORED)
def test_the_whole_card_is_the_stored_one(name):
    rendered = render_card(STORED[name])
    assert rendered == (CARDS / f"{name}.md").read_text(encoding="utf-8"), (
        "if the change is wanted, store it: python tests/publish/store_cards.py"
    )


def texts(facts):
    """Numbers as a person reads them."""
    yield from ("1,234,567", "256", "3 x 64 x 64", "0.4914", "0.2023", "resnet18")
    yield from ("32 x 32 pixels, enlarged 2 times", "0.25, 1.0", "`kernel`", "128", "512, 256")
    yield from ("1,170", "299,520", "6 |", "17 |", "0.005", "0.05", "10 %", "`bf16`", "50,000")
    yield from ("8 x NVIDIA H200", "15.1 minutes", "331", "torch` 2.15.0", "0.1.0")
    yield from ("56.6 %", "56.9 %", "31.2 ± 1.7 %", "152.2 of 256", "1.23", "0.99", "88.2", "0.53")
    yield from ("10,000", "k = 20", "temperature 0.1", "one clean view", "4 views of 512 images")
    yield from (facts.details.data, facts.details.limits, facts.details.evaluation_data)


def test_every_known_number_is_in_the_card():
    body = ModelCard(render_card(EVALUATED)).text
    for text in texts(EVALUATED):
        assert text in body, text


def test_metadata_can_be_read_back(tmp_path):
    (tmp_path / "README.md").write_text(render_card(EVALUATED), encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-feature-extraction")
    assert data.license == "cc-by-4.0"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.base_model is None
    found = {result.metric_name: result for result in data.eval_results}
    assert [(r.metric_type, r.metric_value) for r in found.values()] == [
        ("accuracy", 0.5657), ("accuracy", 0.5691), ("accuracy", 0.312),
        ("effective_rank", 152.243), ("alpha", 1.2345), ("lidar", 88.25),
        ("view_invariance", 0.534),
    ]  # fmt: skip
    knn = found["kNN accuracy"]
    assert (knn.dataset_type, knn.dataset_name) == ("uoft-cs/cifar10", DETAILS.evaluation_data)
    assert knn.task_type == "image-classification"
    assert found["LiDAR"].task_type == "image-feature-extraction"
    assert {"k": 20, "temperature": 0.1, "num_test": 10_000}.items() <= knn.metric_args.items()
    few = found["linear probe accuracy, 1 % of the labels"].metric_args
    assert (few["low"], few["high"], few["draws"]) == (0.295, 0.329, 5)


def test_what_is_not_known_is_not_stated():
    card = ModelCard(render_card(NOT_EVALUATED))
    assert card.data.license is None
    assert card.data.datasets is None
    assert card.data.eval_results is None
    assert card.data.base_model == "someone/earlier"
    for sentence in (
        "This encoder was not evaluated.",
        "## Training images\n\nNot stated.",
        "## Licence\n\nNot stated.",
        "## What the training took\n\nNot known.",
        "The training had not ended",
        "400 of 1,170",
        "import my_package.models",
        "someone/earlier",
    ):
        assert sentence in card.text, sentence
    assert "spectrum.png" not in card.text
    alone = render_card(replace(NOT_EVALUATED, training=None))
    assert "How long it was trained is not known." in alone


def test_evaluation_images_without_a_name_are_not_stated():
    evaluation = {**EVALUATION, "data": None}
    facts = replace(EVALUATED, evaluation=evaluation, details=CardDetails())
    card = ModelCard(render_card(facts))
    assert "Images: not stated." in card.text
    assert {(r.dataset_type, r.dataset_name) for r in card.data.eval_results} == {
        ("other", "not stated")
    }


def test_averaged_views_and_missing_labels_are_said():
    protocol = {**EVALUATION["protocol"], "feature_views": 16, "features": "mean of 16 views"}
    text = render_card(replace(EVALUATED, evaluation={**EVALUATION, "protocol": protocol}))
    assert "mean of 16 views: a clean one and augmented ones" in text
    without = {**EVALUATION, "knn": None, "linear_probe": None, "few_labels": None}
    text = render_card(replace(EVALUATED, evaluation=without))
    assert "no accuracies, for they have no labels" in text
    assert "kNN accuracy" not in text
    old = {key: EVALUATION[key] for key in ("effective_rank", "feature_dim", "num_train")}
    text = render_card(replace(EVALUATED, evaluation={**old, "num_test": 10}))
    assert "| effective rank | 152.2 of 10 |" in text


def test_what_to_load_follows_from_the_title():
    text = render_card(EVALUATED)
    assert 'timm.create_model("hf-hub:someone/thin-resnet18-cifar10", pretrained=True)' in text
    assert 'from_encoder("someone/thin-resnet18-cifar10")' in text
    assert "THIS_FOLDER" not in text
    named = replace(EVALUATED, details=CardDetails(title="Thin ResNet"))
    text = render_card(named, folder_name="encoders/thin")
    assert "# Thin ResNet\n" in text
    assert 'create_model("local-dir:encoders/thin", pretrained=True)' in text
    for name in ('x"); import os; ("', "a\nb", "", "../`x`"):
        with pytest.raises(ValueError, match="names of files in a card must be of letters"):
            render_card(EVALUATED, folder_name=name)
        with pytest.raises(ValueError, match="names of files in a card must be of letters"):
            render_card(EVALUATED, picture=name)


@pytest.mark.parametrize(
    ("given", "license", "name"),
    [
        ("apache-2.0", "apache-2.0", None),
        ("MIT", "mit", None),
        ("openrail++", "openrail++", None),
        ("no", "other", "no"),
        ("GPLv3", "other", "gplv3"),
        ("gpl-3.0", "gpl-3.0", None),
        ("My own licence, v1", "other", "my-own-licence-v1"),
        ("许可证", "other", "other"),
        ("x\nlicense: mit", "other", "x-license-mit"),
        ("a" * 100, "other", "a" * 60),
    ],
)
def test_licences(given, license, name):
    card = ModelCard(render_card(replace(EVALUATED, details=CardDetails(license=given))))
    assert card.data.license == license
    assert card.data.license_name == name
    assert f"Of the weights: {given[:8].splitlines()[0]}" in card.text


def test_the_spectrum_is_drawn_where_it_can_be(monkeypatch):
    with Image.open(BytesIO(spectrum_picture(EVALUATION))) as picture:
        assert picture.format == "PNG"
        assert picture.width < 1000
    assert "](spectrum.png)" in render_card(EVALUATED)
    assert "](other.png)" in render_card(EVALUATED, picture="other.png")
    for nothing in (None, {}, {**EVALUATION, "eigenspectrum": [0.0, 0.0]}):
        assert spectrum_picture(nothing) is None
    no_law = {**EVALUATION, "alpha": None, "eigenspectrum": [1.0, 0.5]}
    assert spectrum_picture(no_law).startswith(b"\x89PNG")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    assert spectrum_picture(EVALUATION) is None
    assert "spectrum.png" not in render_card(EVALUATED)


def with_text(text):
    """Facts of which every text that is not checked elsewhere is the same."""
    recipe = replace(
        EVALUATED.recipe,
        initial_weights=text,
        recipe=text,
        recipe_args={text: text},
        loss=text,
        loss_args={"x": [text]},
    )
    protocol = dict.fromkeys(EVALUATION["protocol"], text)
    return replace(
        EVALUATED,
        encoder=replace(
            EVALUATED.encoder,
            architecture=text,
            model_args={text: {text: text}},
            interpolation=text,
        ),
        recipe=recipe,
        training=replace(EVALUATED.training, optimizer=text, schedule=text, precision=text),
        cost=replace(EVALUATED.cost, device=text, versions={text: text}),
        evaluation={**EVALUATION, "data": text, "protocol": protocol},
        versions={"ssl_views": text},
        details=CardDetails(
            license=text[:100],
            data=text[:1000],
            evaluation_data=text[:1000],
            title=text[:100],
            limits=text[:1000],
        ),
    )


def skeleton(card):
    """What Markdown makes of a card besides text: headings, lists, cells, code, links, HTML."""
    fenced, parts = False, []
    for line in card.text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            parts.append(line)
            continue
        if fenced:
            parts.append(line)
            continue
        bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", line)  # what is escaped is text
        bare = re.sub(r"`[\w.-]+`", "", bare)  # names as code
        start = re.match(r"\s*(#+ |[-+*>] |\d+\. |\||---|~~~|!\[)?", bare)[0]
        links = re.findall(r"\]\(([^)]*)\)", bare)
        parts.append((start, bare.count("|"), re.findall(r"[<>`*~]", bare), links, not bare))
        assert "_" not in re.sub(r"\(https://\S*\)", "", bare)
    assert not fenced
    return parts


@pytest.mark.parametrize("kind", HOSTILE)
def test_texts_of_strangers_stay_text(kind, tmp_path):
    text = HOSTILE[kind]
    rendered = render_card(with_text(text))
    (tmp_path / "README.md").write_text(rendered, encoding="utf-8")  # it can be encoded
    card, harmless = (
        ModelCard.load(tmp_path / "README.md"),
        ModelCard(render_card(with_text("x y"))),
    )
    assert skeleton(card) == skeleton(harmless)
    assert card.data.to_dict().keys() == harmless.data.to_dict().keys()
    assert card.data.license == "other"
    assert re.fullmatch(r"[a-z0-9.-]{1,60}", card.data.license_name)
    assert (card.data.library_name, card.data.tags) == (
        harmless.data.library_name,
        harmless.data.tags,
    )
    assert len(card.data.eval_results) == len(harmless.data.eval_results)
    assert all(character.isprintable() for character in rendered.replace("\n", ""))
    assert len(rendered) < 30_000
    assert "49" not in card.text.replace("0.49", "")  # no template is evaluated


@pytest.mark.parametrize("kind", [k for k in HOSTILE if k not in ("long", "one long word")])
def test_texts_of_strangers_are_told(kind):
    """Escaping loses nothing but line ends: the words are still there."""
    words = re.findall(r"[a-z]{3,}", HOSTILE[kind])
    told = ModelCard(render_card(with_text(HOSTILE[kind]))).text
    assert all(word in told for word in words)


def test_a_text_is_one_line_and_not_too_long():
    assert plain(" a\r\n\tb\u2028c ") == "a b c"
    assert plain("a" * 30, 10) == "a" * 9 + "…"
    assert code("a.b_c-1") == "`a.b_c-1`"
    assert code("a`b") == r"a\`b"
    assert code("a" * 11, 10) == "a" * 9 + "…"
