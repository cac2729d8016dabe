"""The elements that the page's code counts on, as its types have them: tsc cannot read HTML."""

import re
from html.parser import HTMLParser

import pytest

from tests.web.fake_cell import WEB

TYPES = (WEB.parent / "scripts/page-checks/types.d.ts").read_text(encoding="utf-8")


class _Ids(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if id := dict(attrs).get("id"):
            self.tags[id] = tag


def tags_of(page: str) -> dict[str, str]:
    return _Ids((WEB / page).read_text(encoding="utf-8")).tags


@pytest.mark.parametrize(("page", "code"), [("index.html", "js"), ("ops/index.html", "ops")])
def test_every_element_that_is_named_is_there(page: str, code: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in (WEB / code).glob("*.js")]
    named = {id for source in sources for id in re.findall(r'\$\("#([\w-]+)"', source)}
    assert named
    assert named - tags_of(page).keys() == set()


def test_elements_are_of_the_kind_that_their_types_say() -> None:
    tags = tags_of("index.html")
    kinds = re.findall(r'"#([\w-]+)": HTML(\w+)Element;', TYPES)
    assert kinds
    names = {"TextArea": "textarea", "Image": "img"}
    assert {id: names.get(kind, kind.lower()) for id, kind in kinds} == {
        id: tags.get(id) for id, _ in kinds
    }


def test_colours_are_of_browsers_that_are_still_in_use() -> None:
    """Chromium before 123 and Safari before 17.5 leave out what has ``light-dark()``."""
    sheets = {path: path.read_text(encoding="utf-8") for path in WEB.rglob("*.css")}
    assert [
        str(path) for path, text in sheets.items() if re.search(r":[^;{}/]*light-dark", text)
    ] == []
