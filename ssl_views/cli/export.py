"""`ssl-views export`: from a run to a folder that timm and transformers load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from ssl_views.card_facts import CardDetails
from ssl_views.card_sections import NOT_STATED
from ssl_views.cli.arguments import command_line, flag, make_parser, read_arguments
from ssl_views.cli.console import say
from ssl_views.encoder_folder import CARD_FILE, ENCODER_FILES, check_encoder
from ssl_views.export import export_encoder

_STATED_BY = {
    "license": "licence",
    "data": "training images",
    "evaluation_data": "evaluation images",
    "limits": "limits",
}


@dataclass
class ExportArguments:
    """What the model card says beyond what the run knows, and further files."""

    license: str | None = flag(
        None, "Licence of the weights: an id of the Hub such as apache-2.0, or a name."
    )
    data: str | None = flag(None, "Which images it was trained on, in a sentence.")
    datasets: list[str] | None = flag(None, "Hub ids of data sets that the images are from.")
    evaluation_data: str | None = flag(None, "Which images it was evaluated on.")
    title: str | None = flag(None, "Title of the card: user/name, where it is to be published.")
    limits: str | None = flag(None, "What it should not be used for, in a sentence.")
    onnx: bool = flag(False, 'Also write model.onnx; needs pip install "ssl-views[onnx]".')
    revision: str | None = flag(None, "Branch, tag or commit, where RUN is a Hub id.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "export", "Write the trained backbone of a run, a checkpoint or a Hub id as a folder that "
        "timm and transformers load without this package, with a model card.",
        ExportArguments, positionals=("run", "encoder"),
    )  # fmt: skip
    arguments, words = read_arguments(parser, argv)
    details = CardDetails(
        license=arguments.license,
        data=arguments.data,
        datasets=tuple(arguments.datasets or ()),
        evaluation_data=arguments.evaluation_data,
        title=arguments.title,
        limits=arguments.limits,
    )
    folder = export_encoder(
        words.run,
        words.encoder,
        revision=arguments.revision,
        details=details,
        onnx=arguments.onnx,
    )
    info = check_encoder(folder)
    shape = " x ".join(map(str, info.input_size))
    say(
        f"{folder} holds {info.architecture}: {info.num_parameters / 1e6:,.1f} M parameters, "
        f"{info.num_features} features, input {shape}"
    )
    for name in ENCODER_FILES:
        if (folder / name).is_file():
            say(f"  {name:18} {(folder / name).stat().st_size:13,} bytes")
    results = ModelCard.load(folder / CARD_FILE).data.eval_results or []
    _say_not_stated(details, results)
    _say_evaluated(results, words.run)
    if info.needs is not None:
        say(
            f"note: timm itself has no {info.architecture}; whoever loads it must install and "
            f"import {info.needs} first"
        )
    say("Load it with")
    say(f'  timm.create_model("local-dir:{folder}", pretrained=True)')
    say(f'  transformers.AutoModel.from_pretrained("{folder}")')
    say("Publish it with")
    say("  " + command_line("publish", str(folder), arguments.title or "USER/NAME"))


def _say_not_stated(details: CardDetails, results: Sequence[EvalResult]) -> None:
    """Say what the card leaves open, and which flags would say it."""
    missing = [name for name in _STATED_BY if getattr(details, name) is None]
    known = {"data"} if details.datasets else set()
    if not any(result.dataset_name == NOT_STATED for result in results):
        known.add("evaluation_data")
    named = [f"{_STATED_BY[name]} (--{name})" for name in missing if name not in known]
    if named:
        say(f"not stated in the card: {', '.join(named)}")


def _say_evaluated(results: Sequence[EvalResult], run: str) -> None:
    """Say whether the card has results, and what gives it some."""
    if results:
        say(f"evaluated: {len(results)} metrics are in the card")
        return
    say("not evaluated, as the card says")
    if Path(run).is_dir():
        say("  " + command_line("evaluate", run, "--dataset", "IMAGES"))
        say("and export again, for a card with results")
