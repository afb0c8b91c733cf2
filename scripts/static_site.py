"""Render the README, the report, the notebooks and the docs as HTML pages in ``site/``. Called by ``make site``.

The folder is complete: files that a page shows or links to are copied into it, and nothing is loaded from the network.
``site/index.html`` is the report, ``site/start.html`` the README.
"""

import argparse
import base64
import html
import os
import re
import shutil
from io import BytesIO
from pathlib import Path
from string import Template

import nbformat
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from wdlab.records.identity import PROJECT

TEMPLATE = PROJECT / "scripts" / "site_template.html"
REPORT = PROJECT / "results" / "REPORT.md"
README = PROJECT / "README.md"
NAMES = {REPORT: "index.html", README: "start.html"}
GROUPS = {
    "": [README, REPORT],
    "Notebooks": sorted((PROJECT / "notebooks").glob("*.ipynb")),
    "Docs": sorted((PROJECT / "docs").glob("*.md")),
}
PAGES = {path: NAMES.get(path, f"{path.stem}.html") for paths in GROUPS.values() for path in paths}
LINK = re.compile(r'(?P<key>href|src)="(?P<path>[^"#:]+)(?P<place>#[^"]*)?"')  # a relative one
HEADING = re.compile(r"<h(?P<level>\d)>(?P<text>.*?)</h", re.DOTALL)
POINTS = 72  # in an inch
TEXT = FontProperties(size=12)  # points, the size of the text in the template


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Render the report, the notebooks and the docs as HTML pages.")
    parser.add_argument("--out", type=Path, default=PROJECT / "site", help="folder in which the pages are written")
    out = parser.parse_args().out
    for path in PAGES:
        write(path, out)
    print(f"pages    {out / PAGES[REPORT]}")


def write(path: Path, out: Path) -> None:
    """Write the page of a notebook or of a file in Markdown, and copies of the files that it links to."""
    exporter = HTMLExporter(
        template_name="basic",
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(read(path))
    title = HEADING.search(body)
    body = HEADING.sub(lambda heading: f'<h{heading["level"]} id="{place(heading["text"])}">{heading["text"]}</h', body)
    text = Template(TEMPLATE.read_text()).substitute(
        title=title["text"] if title else path.stem,
        colours=HtmlFormatter().get_style_defs(".highlight"),
        navigation=navigation(path),
        body=LINK.sub(lambda link: f'{link["key"]}="{target(path, link, out)}"', body),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGES[path]).write_text(text)


def read(path: Path) -> nbformat.NotebookNode:
    """Return a notebook, with drawn formulas and texts for its pictures; Markdown becomes a notebook of one cell."""
    if path.suffix == ".md":
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text())])
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\$[^$]+\$", lambda formula: drawn(formula[0]), cell.source)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": output.data["text/plain"]}
    return notebook


def place(heading: str) -> str:
    """Return the id of a heading, by which links in Markdown lead to it: ``#my-runs`` for *My runs*."""
    return re.sub(r"[^\w-]", "", re.sub(r"<[^>]*>", "", heading).lower().replace(" ", "-"))


def drawn(formula: str) -> str:
    """Return a formula as a picture in HTML, as high as the text next to it."""
    file = BytesIO()
    depth = mathtext.math_to_image(formula, file, TEXT, POINTS, "svg")
    picture = base64.b64encode(file.getvalue()).decode()
    style = f"vertical-align: -{depth}pt"
    return (
        f'<img class="formula" style="{style}" alt="{html.escape(formula)}" src="data:image/svg+xml;base64,{picture}">'
    )


def navigation(current: Path) -> str:
    """Return the links to all pages, in groups."""
    groups = []
    for name, paths in GROUPS.items():
        links = [f"<span>{name}</span>"] * bool(name)
        for path in paths:
            shown = "start" if path == README else path.stem.replace("_", " ").lower()
            links.append(f'<a href="{PAGES[path]}"{" aria-current=page" * (path == current)}>{shown}</a>')
        groups.append(f"<div>{' '.join(links)}</div>")
    return "\n".join(groups)


def target(page: Path, link: re.Match, out: Path) -> str:
    """Return what a link or a picture of a page is in the site: a page, or a copy of a file; a folder is not copied."""
    path = Path(os.path.normpath(page.parent / html.unescape(link["path"])))
    if path in PAGES:
        return PAGES[path] + (link["place"] or "")
    if path.is_dir():
        return os.path.relpath(path, out)
    copy = out / path.relative_to(PROJECT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
    return copy.relative_to(out).as_posix()


if __name__ == "__main__":
    main()
