"""A report is one file that loads nothing, and no name can break out of it."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from ssl_views.evaluation.report_page import ReportPicture, report_page

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "' onload='alert(1)",
    "<!-- </table></style><style>*{background:url(http://x)}</style>",
    "&lt;b&gt; &amp;",
    "\u202eright to left\u202c مرحبا",
    "nul\x00 escape\x1b[31m line\n\r\u2028 lone\udc80",
    "W" * 5000,
    "",
]
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Elements with their attributes, texts by heading, and whether every element is closed."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def png(width=40, height=30):
    buffer = BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="png")
    return buffer.getvalue()


def page_of(text="text", num_pictures=2):
    return report_page(
        title=f"Report {text}",
        facts={f"fact {text}": f"value {text}"},
        metrics=[(f"kNN {text}", f"56.6 % {text}", f"higher is better {text}")],
        pictures=[
            ReportPicture(f"title {text}", png(), f"alt {text}", f"caption {text}")
            for _ in range(num_pictures)
        ],
        notes=[f"note {text}"],
    )


def test_everything_is_there():
    read = Reader(page_of())
    kinds = ("Report", "kNN", "56.6 %", "higher is better", "title", "caption", "fact", "value")
    for kind in (*kinds, "note"):
        assert f"{kind} text" in read.texts
    assert [tag for tag, _ in read.elements if tag in ("h1", "h2", "h3")] == [
        "h1", "h2", "h2", "h3", "h3", "h2", "h2",
    ]  # fmt: skip
    assert read.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.all(
        "meta"
    )
    assert all(attributes == {"scope": "row"} for attributes in read.all("th"))


def test_pictures_are_in_the_file():
    images = Reader(page_of()).all("img")
    assert len(images) == 2
    for image in images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == png()
        assert image["alt"] == "alt text"
        assert (image["width"], image["height"]) == ("40", "30")


@pytest.mark.parametrize("text", ["text", *HOSTILE], ids=range(len(HOSTILE) + 1))
def test_no_text_adds_an_element_or_loads_anything(text):
    page = page_of(text)
    plain, read = Reader(page_of()), Reader(page)
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert [list(a) for _, a in read.elements] == [list(a) for _, a in plain.elements]
    assert not {"script", "iframe", "object", "link", "base", "form", "a"} & {
        tag for tag, _ in read.elements
    }
    for _, attributes in read.elements:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert page.encode("utf-8").decode("utf-8") == page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2028]", page)


def test_hostile_text_is_shown_as_it_is():
    for text in HOSTILE[:5]:
        assert f"note {text}" in Reader(page_of(text)).texts
        assert text.replace("<", "") == text or text not in page_of(text)
    assert (
        r"note nul\x00 escape\x1b[31m line\n\r\u2028 lone\udc80"
        in Reader(page_of(HOSTILE[6])).texts
    )


def test_the_policy_allows_nothing_else():
    metas = Reader(page_of()).all("meta")
    policies = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_empty_sections_are_left_out():
    page = report_page(title="Empty", facts={}, metrics=[], pictures=[], notes=[])
    read = Reader(page)
    assert read.all("section") == []
    assert read.all("h1") == [{}]


def test_a_picture_must_be_a_png():
    with pytest.raises(ValueError, match="that of 'Map' is not"):
        ReportPicture("Map", b"GIF89a", "", "")
