"""Store the cards that the code renders now: python tests/publish/store_cards.py."""

from test_model_card import CARDS, STORED

from ssl_views.model_card import render_card

if __name__ == "__main__":
    for name, facts in STORED.items():
        (CARDS / f"{name}.md").write_text(render_card(facts), encoding="utf-8")
