"""Reports as pages of HTML: what must hold of each."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Hold the parts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.heading = tag == "h2"
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.heading:
            self.headings.append(data)
            self.heading = False


def read_page(html: str) -> Page:
    """A page with figures and tables, without scripts and links out, whose ids are there and its own."""
    page = Page()
    page.feed(html)
    assert {"svg", "table"} <= page.tags
    assert not {"script", "img", "link", "iframe", "b"} & page.tags
    assert [link for link in page.links if not link.startswith("#")] == []
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    return page
