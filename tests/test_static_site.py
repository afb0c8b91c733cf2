"""The pages of ``make site`` are complete: nothing is loaded from the network, and every link leads to a file."""

import re
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("nbconvert")

from scripts import static_site

LOADS = {"script", "link", "iframe", "object", "embed"}


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def values(self, tag: str, key: str) -> list[str]:
        return [attributes[key] for name, attributes in self.tags if name == tag and key in attributes]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["static_site.py", "--out", str(out)])
        static_site.main()
    return {path.name: path for path in out.glob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site):
    assert {*site} == {*static_site.PAGES.values()}
    for path in site.values():
        text = path.read_text()
        page = Tags(text)
        assert not LOADS & {tag for tag, _ in page.tags}
        for source in page.values("img", "src"):
            assert source.startswith("data:image/") or (path.parent / source).resolve().is_relative_to(path.parent)
        assert "@import" not in text and "url(" not in text


def test_every_link_leads_to_a_file_and_every_page_to_every_other(site):
    for path in site.values():
        page = Tags(path.read_text())
        links = [link for link in page.values("a", "href") if "://" not in link]
        links += [source for source in page.values("img", "src") if not source.startswith("data:")]
        files = {link.partition("#")[0] for link in links if not link.startswith("#")}
        assert all((path.parent / file).exists() for file in files) and files >= {*site}
        assert not any(file.startswith((".", "/")) for file in files if (path.parent / file).is_file())


def test_a_link_to_a_place_leads_to_a_heading(site):
    pages = {name: Tags(path.read_text()) for name, path in site.items()}
    for name, page in pages.items():
        for file, _, place in (link.partition("#") for link in page.values("a", "href") if "://" not in link):
            assert not place or place in [attributes.get("id") for _, attributes in pages[file or name].tags]


def test_pictures_have_texts_and_formulas_are_drawn(site):
    text = site["pathprox.html"].read_text()
    page = Tags(text)
    alts = page.values("img", "alt")
    assert len(alts) == len(page.values("img", "src")) > 6 and "fig3 at cpu scale" in alts and "$w$" in alts
    assert not re.search(r"\\\\sum|\\$", re.sub("<[^>]*>", "", text))


def test_the_claims_are_lists_inside_their_fold(site):
    text = site["index.html"].read_text()
    assert text.count("<details>") == text.count("</details>") > 10
    for folded in re.findall("<details>(.*?)</details>", text, re.DOTALL):
        assert "<li>" in folded and "**" not in folded
