"""The committed report is what the committed results say, whatever their order; no number in it is written by hand."""

import ast
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from scripts import report as script
from wdlab.analysis import declaration, report
from wdlab.analysis.tables import FigureFiles

CLAIMS = sorted((script.RESULTS / "claims").glob("*/*.json"))
JUDGED = [json.loads(path.read_text()) for path in CLAIMS]
DIGIT = re.compile(r"\d")


@pytest.fixture(scope="module")
def content() -> dict:
    return report.collect(script.RESULTS)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """A copy of the results of two figures at a scale, with three figures declared."""
    monkeypatch.setattr(declaration, "names", lambda: ["fig3", "fig4", "fig9"])
    for name in ("fig3", "fig4"):
        files, copies = (FigureFiles.of(name, "cpu", root) for root in (script.RESULTS, tmp_path))
        for path, copy in ((files.table, copies.table), (files.verdicts, copies.verdicts)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


def test_the_committed_report_is_that_of_the_results(content):
    """If this fails, `make report`."""
    assert json.loads((script.RESULTS / script.NUMBERS).read_text()) == json.loads(json.dumps(content))
    assert (script.RESULTS / script.PAGE).read_text() == script.page(content)


def test_the_totals_are_those_of_the_files_of_verdicts(content):
    for of in (*content["papers"], *content["scales"]):
        files = [j for j in JUDGED if j["scale"] == of["scale"] and j["paper"] == of.get("paper", j["paper"])]
        claims = [claim for judged in files for claim in judged["claims"]]
        assert {k: n for k, n in of["verdicts"].items() if n} == Counter(claim["verdict"] for claim in claims)
        assert of["claims"] == len(claims) and of["exploratory"] == sum(claim["exploratory"] for claim in claims)
        assert of["changed"] == sum("changed after runs were seen" in claim.get("note", "") for claim in claims)
        assert of["tested"] == sum(claim["p_value"] is not None for claim in claims)
    assert sum(of["claims"] for of in content["papers"]) == sum(len(judged["claims"]) for judged in JUDGED)
    assert {(f["figure"], f["scale"]) for f in content["figures"]} == {(j["figure"], j["scale"]) for j in JUDGED}


def test_every_claim_is_on_the_page_with_its_numbers(content):
    page = script.page(content)
    lines = set(page.splitlines())
    of_values = [claim for judged in JUDGED for claim in judged["claims"] if claim["interval"] is not None]
    assert all(re.search(r"% interval|range|in each of", claim["sentence"]) for claim in of_values)
    for judged in JUDGED:
        for claim in judged["claims"]:
            measured = claim["sentence"].removeprefix(" ".join(claim["statement"].split())).strip()
            title = judged["panels"][claim["panel"]]["title"]
            note = f" ({claim['note']})" if "note" in claim else ""
            line = f"  - **{claim['verdict']}** at `{judged['scale']}`, {title}. {measured}{note}"
            assert line in lines  # and nothing after the note: each number is on the page once


def test_runs_and_diverged_runs_are_those_of_the_records(content):
    for figure in content["figures"]:
        (judged,) = [j for j in JUDGED if (j["figure"], j["scale"]) == (figure["figure"], figure["scale"])]
        assert (figure["runs"], figure["diverged"]) == (sum(judged["runs"].values()), judged["runs"].get("diverged", 0))
    assert any(figure["diverged"] for figure in content["figures"])


def test_the_order_of_claims_keys_and_rows_does_not_matter(results):
    before = report.collect(results)
    for path in (results / "claims").glob("*/*.json"):
        judged = json.loads(path.read_text())
        random.Random(0).shuffle(judged["claims"])
        judged["devices"].reverse()
        path.write_text(json.dumps(dict(reversed(judged.items()))))
    for path in (results / "tables").glob("*/*.csv"):
        pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    after = report.collect(results)
    assert after == before and script.page(after, results) == script.page(before, results)


def test_what_was_not_made_is_listed(results):
    content = report.collect(results)
    script.write(results)
    page = (results / script.PAGE).read_text()
    assert "Not made: at `quick` scale all figures; at `cpu` scale fig9; at `paper` scale all figures." in page
    assert [(of["scale"], of["figures"]) for of in content["scales"]] == [("quick", 0), ("cpu", 2), ("paper", 0)]


def test_hours_are_added_up_and_those_without_a_record_named(results):
    path = FigureFiles.of("fig3", "cpu", results).verdicts
    judged = json.loads(path.read_text()) | {
        "devices": ["X, threads: 1"],
        "compute": {"X": {"hours": 2, "core_hours": 4}},
    }
    path.write_text(json.dumps(judged))
    assert "| `cpu` | X | fig3 | 2 | 4 |" in script.page(report.collect(results), results)
    del judged["compute"]
    path.write_text(json.dumps(judged))
    assert "| `cpu` | X | fig3 | not recorded | not recorded |" in script.page(report.collect(results), results)


def test_no_number_is_written_by_hand():
    assert not DIGIT.search(re.sub("`.*?`", "", script.TEMPLATE.read_text()))
    for module in (script, report):
        tree = ast.parse(Path(module.__file__).read_text())
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef)]
        docstrings = {ast.get_docstring(node, clean=False) for node in documented}
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        texts = {value for value in constants - docstrings if isinstance(value, str)}
        assert not [text for text in texts if DIGIT.search(text) and not re.fullmatch(r"\.\dg", text)]  # a format


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)]+)\)", (script.RESULTS / script.PAGE).read_text())
    assert len(links) > 50 and not [link for link in links if not (script.RESULTS / link).exists()]


def test_grade_a_is_what_agrees_with_the_released_steps(content):
    released = report.PROOFS["tests/regularizers/test_golden.py"]
    assert len(content["methods"]) > 10 and all(of["proofs"] for of in content["methods"])
    for of in content["methods"]:
        assert of["grade"].startswith("A") == (released in of["proofs"]), of
