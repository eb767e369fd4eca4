"""The cards in this repository are those of the stored results."""

import importlib.util
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "model_cards"


@pytest.fixture(scope="module")
def cards():
    pytest.importorskip("matplotlib")  # the cards show pictures
    path = ROOT / "benchmarks" / "model_cards.py"
    spec = importlib.util.spec_from_file_location("benchmark_model_cards", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_card_is_what_its_result_says(cards):
    name = "digits_test_resnet"
    facts = cards.stored_facts()
    text = cards.rendered(facts)[f"{name}.md"]
    assert (FOLDER / f"{name}.md").read_text(encoding="utf-8") == text, (
        "python benchmarks/model_cards.py writes the cards again"
    )
    with Image.open(FOLDER / f"{name}.png") as picture:
        assert picture.format == "PNG"
    card = ModelCard.load(FOLDER / f"{name}.md")
    stored = facts[name].evaluation
    assert card.data.eval_results[0].metric_value == round(stored["knn"], 6)
    assert f"]({name}.md)" in (FOLDER / "README.md").read_text()


def test_the_list_has_the_cards_that_there_are(cards):
    text = (FOLDER / "README.md").read_text()
    assert cards.listed(text, cards.stored_facts()) == text
    assert {path.stem for path in FOLDER.glob("*.md")} == {"README", *cards.stored_facts()}
    assert cards.listed(text, []).count("None yet.") == 1


def test_no_result_holds_a_path_of_a_machine():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        card = json.dumps(json.loads(path.read_text()).get("card"))
        assert not any(word in card for word in ("/home", "/root", "/tmp", "/work"))
