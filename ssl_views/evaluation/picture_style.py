"""How the pictures look: colours that colour-blind readers tell apart, text that a phone shows."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from ssl_views.naming import printable

# Okabe and Ito's colours, without yellow, which is too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
# One hue ordered by lightness: also readable in grey.
COLOR_MAP = "cividis"
SMALL_FONT = 9  # points; the least, for phones show a picture at about 0.7 of its size
WIDTH = 5.2  # inches, of every picture


def new_figure(height: float = 3.2) -> Figure:
    """Return an empty figure with constrained layout, without pyplot's global state.

    Args:
        height: inches.
    """
    return Figure(figsize=(WIDTH, height), layout="constrained")


def line_style(number: int) -> dict[str, Any]:
    """Return how the line of a group of runs looks; those of the first 28 groups differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
        "linewidth": 1.6,
        "markersize": 5,
    }


def png_of(figure: Figure, dpi: int = 150) -> bytes:
    """Return a figure as a PNG file without transparency."""
    drawn, packed = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as picture:
        picture.convert("RGB").save(packed, format="png", optimize=True, dpi=(dpi, dpi))
    return packed.getvalue()


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """Return the name of a class, or its label where it has none."""
    known = class_names is not None and 0 <= label < len(class_names)
    return class_names[label] if class_names is not None and known else str(label)


def drawn_name(label: int, class_names: Sequence[str] | None, most: int) -> str:
    """Return the name of a class in at most so many characters that the font has.

    Where the font lacks some, which would all be drawn as the same box, it is the label. Text of
    matplotlib that shows the name needs `parse_math=False`, for it may hold $.
    """
    name = printable(class_name(label, class_names))
    known = get_font(findfont(FontProperties())).get_charmap()
    if not all(ord(character) in known for character in name):
        return str(label)
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
