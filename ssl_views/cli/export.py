"""`ssl-views export`: from a run to a folder that timm and transformers load."""

from ssl_views.cli.arguments import make_parser, read_arguments
from ssl_views.cli.console import say
from ssl_views.cli.setup import load_run
from ssl_views.export import export_encoder


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "export", "Write the trained backbone as a folder that timm and transformers load without "
        "this package.",
        positionals=("run", "encoder"),
    )  # fmt: skip
    (words,) = read_arguments(parser, argv)
    folder = export_encoder(load_run(words.run), words.encoder)
    say(f"{folder} holds config.json, model.safetensors and README.md. Load it with")
    say(f'  timm.create_model("local-dir:{folder}", pretrained=True)')
    say(f'  transformers.AutoModel.from_pretrained("{folder}")')
