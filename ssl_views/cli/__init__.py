"""The command line: one small file per command."""

import importlib
import sys
import warnings

from PIL import Image

from ssl_views.naming import did_you_mean

COMMANDS = {
    "pretrain": "train a backbone on images without labels",
    "preview": "draw what the network will see",
    "evaluate": "what a run has learned, in numbers and pictures",
    "compare": "one table and one picture over runs",
    "sweep": "a grid of runs, what they reached, and what that cost",
    "plan": "which settings to spend a time budget on, from short runs",
    "export": "write the encoder folder for timm and transformers",
    "publish": "put an encoder on the Hub",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; what ends it becomes a sentence and exit code 1, or 2 for wrong input."""
    argv = sys.argv[1:] if argv is None else argv
    usage = "usage: ssl-views COMMAND [--help] ...\n\n" + "\n".join(
        f"  {n:10} {t}" for n, t in COMMANDS.items()
    )
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage + "\n")
        return 0
    if argv[0] not in COMMANDS:
        sys.stderr.write(
            f"ssl-views: no command {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)}\n{usage}\n"
        )
        return 2
    # Images above Pillow's limit become bad images, so there is nothing to warn of.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        importlib.import_module(f"ssl_views.cli.{argv[0]}").run(argv[1:])
    except (ValueError, RuntimeError) as error:
        if not _raised_here(error):
            raise
        sys.stderr.write(f"ssl-views: {_sentence(error)}\n")
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("ssl-views: interrupted\n")
        return 130
    return 0


def _raised_here(error: Exception) -> bool:
    """Return whether this package raised the error on purpose, so that its sentence is enough."""
    if {"BadImage", "TooManyBadImages"} & {t.__name__ for t in type(error).__mro__}:
        return True  # torch raises those of worker processes
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(
        "ssl_views"
    )


def _sentence(error: Exception) -> str:
    """Return the message; torch puts those of worker processes behind their traceback."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback" in text else text
