"""A report as one HTML file that needs no network and runs no script."""

import base64
import html
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssl_views.naming import printable

_PNG = b"\x89PNG\r\n\x1a\n"
# A browser then loads nothing but the pictures in the file, whatever a class or folder is called.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #555; --card: #f6f6f6;
  background: Canvas; }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #bbb; --card: #222; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; line-height: 1.45;
  font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-top: 1px solid var(--line); padding: 0.45rem 0.75rem 0.45rem 0; text-align: left;
  vertical-align: top; font-weight: normal; }
.metrics th { font-weight: 600; }
.metrics td { padding-right: 0; text-align: right; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.facts th { color: var(--soft); min-width: 7.5rem; width: 30%; }
small { color: var(--soft); display: block; font-size: 0.9rem; font-weight: normal; }
.pictures { columns: 2 28rem; column-gap: 1rem; }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  break-inside: avoid; margin: 0 0 1rem; overflow: hidden; padding: 0 0 0.75rem; }
figure h3 { font-size: 1rem; margin: 0; padding: 0.6rem 0.75rem; }
figure img { background: #fff; display: block; height: auto; padding: 0.4rem; width: 100%; }
figcaption { font-size: 0.9rem; padding: 0.6rem 0.75rem 0; }
@media (max-width: 40rem) { body { padding: 0.5rem; } figure img { padding: 0.2rem 0; } }
@media print { :root { color-scheme: light; --line: #ccc; --soft: #555; --card: #fff; }
  body { max-width: none; padding: 0; } .pictures { columns: auto; }
  figure img { max-height: 14cm; max-width: 62%; width: auto; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class ReportPicture:
    """A picture of a report.

    Attributes:
        title: a heading.
        png: the bytes of a PNG file.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    title: str
    png: bytes
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise ValueError(
                f"a picture of a report must be a PNG file; that of {self.title!r} is not. "
                "Use png_of."
            )


def report_page(
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Sequence[tuple[str, str, str]],
    pictures: Sequence[ReportPicture],
    notes: Sequence[str],
) -> str:
    """Return a report as an HTML document, to be written as UTF-8.

    Args:
        title: what is reported on.
        facts: what was measured, and how, by name.
        metrics: name, value and meaning of each.
        pictures: in reading order.
        notes: sentences at the end.

    Returns:
        A document that holds its pictures. All texts may be hostile: they are shown as they are,
        control characters as Python escapes them.
    """
    measured = "".join(
        f'<tr><th scope="row">{_text(name)}<small>{_text(meaning)}</small></th>'
        f"<td>{_text(value)}</td></tr>\n"
        for name, value, meaning in metrics
    )
    known = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>\n'
        for name, value in facts.items()
    )
    parts = [
        _section("Metrics", _table("metrics", measured), metrics),
        _section(
            "Pictures", f'<div class="pictures">\n{"".join(map(_figure, pictures))}</div>', pictures
        ),
        _section("What was measured", _table("facts", known), facts),
        _section("Notes", f"<ul>{''.join(f'<li>{_text(n)}</li>' for n in notes)}</ul>", notes),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{_text(title)}</h1>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str, shown: Mapping[str, str] | Sequence[object]) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>\n" if shown else ""


def _table(name: str, rows: str) -> str:
    return f'<div class="table"><table class="{name}">\n<tbody>\n{rows}</tbody></table></div>'


def _figure(picture: ReportPicture) -> str:
    width, height = struct.unpack(">II", picture.png[16:24])
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<figure>\n<h3>{_text(picture.title)}</h3>\n"
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{_escaped(picture.alt)}">\n'
        f"<figcaption>{_text(picture.caption)}</figcaption>\n</figure>\n"
    )


def _text(text: str) -> str:
    """Return markup that shows a text, isolated from the writing direction around it."""
    return f"<bdi>{_escaped(text)}</bdi>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
