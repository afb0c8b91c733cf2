"""Execute the notebooks in place, so that they are committed with their outputs. Called by ``make notebooks``."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from wdlab.records.identity import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
SECONDS = 300  # for a cell, on a busy machine
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells, without what differs from one execution to the next."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=SECONDS, record_timing=False, resources=place).execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # without the version of Python
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
