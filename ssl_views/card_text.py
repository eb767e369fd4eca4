"""Text of strangers in Markdown: on one line, not too long, and without any markup of its own."""

import re
from collections.abc import Iterable

from ssl_views.naming import printable

PLACEHOLDER = "THIS_FOLDER"  # what a card without a Hub id says to load

_LONGEST = 1000
_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Repositories of the Hub have one slash and neither ".." nor "--" in them.
_HUB_ID = re.compile(
    r"(?=.{3,96}$)(?!.*(--|\.\.))[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*/[A-Za-z0-9][\w.-]*", re.ASCII
)


def one_line(text: str, longest: int = _LONGEST) -> str:
    r"""Return a text on one line without invisible characters, cut where it is too long.

    Example:
        >>> one_line("a\n---\tb and so on", 9)
        'a --- b…'
    """
    short = " ".join(text[: 10 * longest].split())
    line = printable(short)
    return (
        line if len(line) <= longest else f"{line[: longest - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
    )


def plain(text: str, longest: int = _LONGEST) -> str:
    r"""Return a text that Markdown shows as it is, within a paragraph or a cell of a table.

    Example:
        >>> plain("a|b <script> [x](y)")
        'a\\|b &lt;script&gt; \\[x\\](y)'
    """
    line = one_line(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", line)


def code(name: str, longest: int = 100) -> str:
    """Return a name as code, or as plain text where it holds more than names do."""
    return f"`{name}`" if _NAME.fullmatch(name) and len(name) <= longest else plain(name, longest)


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form "user/name" of a repository."""
    return _HUB_ID.fullmatch(text) is not None


def table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
