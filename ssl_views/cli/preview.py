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
from ssl_views.cli.setup import decode_some, describe_views, image_limits, make_config
from ssl_views.data.sources import load_images
from ssl_views.evaluation.view_batches import describe_left_out
from ssl_views.pixels import PixelBatch
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
    limits = image_limits(data)
    rows = load_images(
        data.dataset,
        split=data.split,
        image_column=data.image_column,
        allow_remote_images=data.allow_remote_images,
    )
    config = make_config(rows, data.dataset, views, ModelArguments(), limits=limits)
    num_images = min(preview.num_images, len(rows))
    values = [rows[i]["image"] for i in range(num_images)]
    pixels, bad = decode_some(values, config.num_channels, limits)
    images = PixelBatch.of_arrays(list(pixels.values())).tensors()
    picture = draw_view_grid(
        images,
        ViewRecipe.for_config(config),
        indices=list(pixels),
        seed=preview.seed,
        epoch=preview.epoch,
    )
    if bad:
        say(describe_left_out(bad, num_images))
    output = Path(preview.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(output)
    say(f"{output}: {len(images)} images, {describe_views(config)}")
