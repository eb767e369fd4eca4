"""Names in messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question naming the known names nearest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def printable(text: str) -> str:
    """Return a text whose control characters and the like are written as Python escapes them."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
