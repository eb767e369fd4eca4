"""`ssl-views publish`: put an encoder folder on the Hub, verified by hash."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from yaml import YAMLError

from ssl_views.cli.arguments import flag, make_parser, read_arguments
from ssl_views.cli.console import say
from ssl_views.encoder_folder import CARD_FILE, check_encoder
from ssl_views.hub import Published, publish_encoder


@dataclass
class PublishArguments:
    """How the encoder appears on the Hub."""

    private: bool = flag(False, "Make the repository private; an existing one must be so already.")
    tag: str | None = flag(None, "New tag for what is published, such as v1.")
    message: str = flag("Publish the encoder", "Message of the commit.")
    dry_run: bool = flag(False, "Check the folder and say what would be published; send nothing.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "publish",
        "Put an encoder folder on the Hub in one commit, verify every file by hash, then tag it. "
        "Log in before with `hf auth login`, or set HF_TOKEN.",
        PublishArguments,
        positionals=("folder", "repository"),
    )
    arguments, words = read_arguments(parser, argv)
    folder = Path(words.folder)
    info = check_encoder(folder)
    shape = " x ".join(map(str, info.input_size))
    say(
        f"{folder} holds {info.architecture}: {info.num_parameters / 1e6:,.1f} M parameters, "
        f"{info.num_features} features, input {shape}"
    )
    for hint in card_hints(folder / CARD_FILE, words.repository):
        say(f"note: {hint}")
    if info.needs is not None:
        say(
            f"note: timm itself has no {info.architecture}; whoever loads it must install and "
            f"import {info.needs} first"
        )
    published = publish_encoder(
        folder,
        words.repository,
        private=arguments.private,
        tag=arguments.tag,
        message=arguments.message,
        dry_run=arguments.dry_run,
        on_event=lambda text: say(f"note: {text}"),
    )
    for name, sha256 in published.files.items():
        say(f"  {name:18} {(folder / name).stat().st_size:13,} bytes  sha256 {sha256}")
    if published.left_out:
        say(f"left out, as no part of an encoder: {', '.join(published.left_out)}")
    _say_where(published)


def card_hints(card_file: Path, repository: str) -> list[str]:
    """Return what a model card leaves open, and whether it names another repository."""
    try:
        card = ModelCard.load(card_file)
        data = card.data
    except (ValueError, YAMLError) as error:
        return [f"the metadata of {card_file.name} cannot be read ({error}); the Hub may refuse it"]
    hints = []
    if not data.license:
        hints.append("licence: not stated, so others may not know whether they may use it")
    if "\n## Training images\n\nNot stated." in card.text:
        hints.append("training images: not stated in the card (ssl-views export --data)")
    named = set(re.findall(r'"(?:hf-hub|local-dir):([^"]+)"', card.text)) - {repository}
    if named and "/" in repository:
        hints.append(
            f"the card says how to load {', '.join(sorted(named))}; export with --title "
            f"{repository} to name this repository"
        )
    return hints


def _say_where(published: Published) -> None:
    tag = f", tag {published.tag}" if published.tag else ""
    if published.dry_run:
        say(f"dry run: nothing was sent; this would be published at {published.url}{tag}")
        return
    say(f"published and verified: {published.url}, commit {published.commit}{tag}. Load it with")
    repo_id, revision = published.repo_id, published.tag or published.commit
    say(f'  timm.create_model("hf-hub:{repo_id}@{revision}", pretrained=True)')
    say(f'  transformers.AutoModel.from_pretrained("{repo_id}", revision="{revision}")')
    say(f'  ssl_views.load_encoder("{repo_id}", revision="{revision}")')
