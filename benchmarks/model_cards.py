"""Write the model cards of the encoders of benchmarks/results/*.json, from the facts stored there.

python benchmarks/model_cards.py            # rewrite model_cards/
"""

import json
from pathlib import Path

from ssl_views.card_facts import CardDetails, CardFacts, facts_of
from ssl_views.evaluation.history import RunHistory
from ssl_views.model_card import render_card, spectrum_picture
from ssl_views.modeling_ssl_views import SSLViewsModel

ROOT = Path(__file__).parents[1]
RESULTS, FOLDER = ROOT / "benchmarks" / "results", ROOT / "model_cards"
START, END = "<!-- cards -->\n", "<!-- end -->"
CARDS = {  # name of the card: the result that has its facts, and what the list says of it
    "digits_test_resnet": ("main_job", "what `ssl-views pretrain` makes without arguments"),
    "cifar10_resnet18": ("cifar10_cpu", "the recipe `examples/cifar10_cpu.yaml`"),
}


def card_of(run, **details):
    """Return the facts of an evaluated run, as a result stores them."""
    model = SSLViewsModel.from_pretrained(run, use_safetensors=True)
    return facts_of(model, RunHistory.read(run), CardDetails(**details)).as_dict()


def stored_facts():
    """Return the facts of each card that a result has."""
    facts = {}
    for name, (result, _) in CARDS.items():
        stored = json.loads((RESULTS / f"{result}.json").read_text()).get("card")
        if stored is not None:
            facts[name] = CardFacts.from_dict(stored)
    return facts


def rendered(facts):
    """Return the text of each card by the name of its file."""
    return {
        f"{name}.md": render_card(stored, picture=f"{name}.png") for name, stored in facts.items()
    }


def listed(text, names):
    """Return model_cards/README.md with its list of cards."""
    lines = "".join(f"* [{name}]({name}.md): {CARDS[name][1]}\n" for name in names)
    head, rest = text.split(START)
    return f"{head}{START}{lines or 'None yet.' + chr(10)}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    facts = stored_facts()
    for file, text in rendered(facts).items():
        (FOLDER / file).write_text(text, encoding="utf-8")
    for name, stored in facts.items():
        picture = spectrum_picture(stored.evaluation)
        if picture is not None:
            (FOLDER / f"{name}.png").write_bytes(picture)
    contents = FOLDER / "README.md"
    contents.write_text(listed(contents.read_text(), facts))
    print(f"written to {FOLDER}: {', '.join(facts) or 'nothing, for no result has a card'}")
