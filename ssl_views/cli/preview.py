"""`ssl-views preview`: a picture of what the network will see."""

from dataclasses import dataclass
from pathlib import Path

from ssl_views.cli.arguments import (
    DataArguments,
    ModelArguments,
    ViewArguments,
    flag,
    make_parser,
    read_arguments,
)
from ssl_views.cli.console import say
from ssl_views.cli.setup import describe_views, make_config
from ssl_views.data.dataset import decode_batch
from ssl_views.data.sources import load_images
from ssl_views.plots import draw_view_grid
from ssl_views.views import ViewRecipe


@dataclass
class PreviewArguments:
    """Which picture."""

    num_images: int = flag(8, "Rows of the picture.")
    output: str = flag("views.png", "File to write.")
    seed: int = flag(42, "Seed of the run.")
    epoch: int = flag(0, "Epoch of the run.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "preview", "Draw the views of some images, exactly as a run with this seed sees them.",
        DataArguments, ViewArguments, PreviewArguments,
    )  # fmt: skip
    data, views, preview = read_arguments(parser, argv)
    rows = load_images(data.dataset, split=data.split, image_column=data.image_column)
    config = make_config(rows, data.dataset, views, ModelArguments())
    indices = range(min(preview.num_images, len(rows)))
    images = decode_batch(
        [rows[i]["image"] for i in indices], indices, config.num_channels
    ).tensors()
    picture = draw_view_grid(
        images, ViewRecipe.for_config(config), seed=preview.seed, epoch=preview.epoch
    )
    output = Path(preview.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(output)
    say(f"{output}: {len(images)} images, {describe_views(config)}")
