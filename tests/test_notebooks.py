"""The committed notebooks show the committed pictures and verdicts; they run from top to bottom without training."""

import base64
import itertools
import json
import re
from io import BytesIO

import nbformat
import numpy as np
import pytest
from PIL import Image

from scripts import notebooks
from wdlab.analysis import notebook, verdicts
from wdlab.analysis.tables import FigureFiles
from wdlab.records.identity import PROJECT

MOST_BYTES = 1_500_000
SHOWN = re.compile(r'show\("(\w+)", "(\w+)"\)')
each_notebook = pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)


def read(path) -> list[nbformat.NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def shown(path):
    """Each figure that a notebook shows, with the outputs of its cell."""
    return [(SHOWN.fullmatch(cell.source).groups(), cell.outputs) for cell in read(path) if SHOWN.search(cell.source)]


def texts(cells) -> list[str]:
    """All outputs of cells but pictures."""
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.get("data", {"text": output.get("text")}) for output in outputs]
    return [text for each in data for kind, text in sorted(each.items()) if kind != "image/png"]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


@each_notebook
def test_pictures_and_verdicts_are_those_of_the_results(path):
    """If this fails, `make notebooks`."""
    assert len(shown(path)) >= 3
    for (name, scale), (heading, picture, listed) in shown(path):
        files = FigureFiles.of(name, scale, PROJECT / "results")
        judged = json.loads(files.verdicts.read_text())
        assert heading.data["text/markdown"] == notebook.heading(judged, files)
        assert listed.data["text/markdown"] == notebook.verdict_list(judged)
        assert all(claim["sentence"] in listed.data["text/markdown"] for claim in judged["claims"])
        committed = base64.b64decode(picture.data["image/png"])
        assert np.array_equal(pixels(committed), pixels(notebook.picture(files))), (name, scale)


@each_notebook
def test_executing_gives_the_committed_texts(path):
    assert texts(notebooks.executed(path).cells) == texts(read(path))


@each_notebook
def test_a_notebook_is_complete_small_and_the_same_after_every_execution(path):
    content = nbformat.read(path, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.source.startswith("from ") for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < MOST_BYTES
    assert content.metadata == notebooks.METADATA and all(cell.metadata == {} for cell in content.cells)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert not any(re.search(r"(^|[\s\"'(=])(/\w+/|[A-Z]:\\)", text) for text in texts(content.cells))


@each_notebook
def test_no_verdict_and_no_number_of_a_run_is_written_by_hand(path):
    prose = " ".join(cell.source for cell in read(path) if cell.cell_type == "markdown")
    assert not re.search(rf"\b({'|'.join(verdicts.VERDICTS)})\b", prose)
    assert not re.search(r"\d\s?%|\b\d\.\d", prose)


def test_no_cell_is_copied_from_one_notebook_to_another():
    code = {path: [cell.source for cell in read(path) if cell.cell_type == "code"] for path in notebooks.NOTEBOOKS}
    for one, other in itertools.combinations(notebooks.NOTEBOOKS, 2):
        assert not [source for source in code[one] if source in code[other] and "\n" in source]
