"""A figure in a notebook, from files that a test has made."""

import json

import numpy as np
import pytest
from PIL import Image

from wdlab.analysis import notebook
from wdlab.analysis.tables import FigureFiles
from wdlab.errors import ConfigError

CLAIM = {"id": "x", "n": 5, "mean_difference": 0.5, "interval": [0.25, 0.75]}
JUDGED = {
    "figure": "fig9",
    "title": "one against another",
    "scale": "quick",
    "scale_down": "small images; short runs",
    "panels": {
        "mlp": {"title": "Digits, MLP", "seeds": [0, 1, 2]},
        "gpt": {"title": "Text, GPT", "seeds": [0, 1, 2, 3, 4]},
        "none": {"title": "Without a claim", "seeds": [0, 1, 2]},
    },
    "tried": "nothing",
    "claims": [
        CLAIM | {"panel": "gpt", "verdict": "contradicted", "exploratory": False, "sentence": "One is\nabove 1."},
        CLAIM | {"panel": "mlp", "verdict": "reproduced", "exploratory": True, "sentence": "One is above 2."},
        CLAIM | {"panel": "gpt", "verdict": "reproduced", "exploratory": False, "sentence": "One is above 3."},
    ],
}


@pytest.fixture
def results(tmp_path):
    files = FigureFiles.of("fig9", "quick", tmp_path)
    for path in (files.verdicts, files.picture):
        path.parent.mkdir(parents=True)
    files.verdicts.write_text(json.dumps(JUDGED))
    pixels = np.zeros((40, 60, 4), dtype=np.uint8) + np.array([0, 114, 178, 255], dtype=np.uint8)
    pixels[10:20] = 255
    Image.fromarray(pixels).save(files.picture)
    return tmp_path


def test_a_figure_is_a_heading_a_picture_and_a_line_per_claim(results, monkeypatch):
    displayed = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: displayed.append(data))
    notebook.show("fig9", "quick", results)
    heading, picture, verdicts = displayed
    assert heading["text/markdown"] == (
        "**fig9 at `quick` scale, 3 to 5 seeds: one against another**  \n2 reproduced, 1 contradicted (1 exploratory)"
    )
    lines = [line for line in verdicts["text/markdown"].split("\n") if line]
    assert [line.partition(" (difference")[0] for line in lines] == [
        "Digits, MLP:",
        "- **reproduced**: One is above 2.",
        "Text, GPT:",
        "- **contradicted**: One is above 1.",
        "- **reproduced**: One is above 3.",
        "*Scale-downs: small images; short runs. Tried before these runs: nothing.*",
    ]
    assert "difference 0.5 [0.25, 0.75]" in lines[1]
    for text in (heading, verdicts):
        assert text["text/plain"] == text["text/markdown"]
    assert picture["image/png"]


def test_a_picture_of_few_colours_is_shown_as_it_is(results):
    files = FigureFiles.of("fig9", "quick", results)
    (results / "shown.png").write_bytes(notebook.picture(files))
    with Image.open(results / "shown.png") as shown, Image.open(files.picture) as committed:
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(committed.convert("RGB")))


def test_a_figure_that_was_not_made_says_how_to_make_it(results):
    with pytest.raises(ConfigError, match=r"fig9 at cpu scale: not made yet; run make reproduce-fig9 SCALE=cpu"):
        notebook.show("fig9", "cpu", results)


def about(whose: str, verdict: str, **more) -> dict:
    return {"statement": f"{whose}: one is\nabove another.", "verdict": verdict, "panel": "mlp"} | more


def test_an_explanation_is_confirmed_if_all_of_its_claims_are_reproduced():
    claims = [about("P5", "reproduced", holm=True), about("AdamC", "reproduced"), about("AdamC", "no difference")]
    judged = JUDGED | {"claims": claims}
    assert (
        notebook.explanation(judged, "P5")
        == "**The explanation of P5 is confirmed here**: 1 of 1 claims are reproduced after Holm's correction."
    )
    assert notebook.explanation(judged, "AdamC").split("\n") == [
        "**The explanation of AdamC is not confirmed here**: 1 of 2 claims are reproduced after Holm's correction.",
        "",
        "- Digits, MLP: one is above another: *no difference*.",
    ]
    judged["claims"][0]["holm"] = False
    assert notebook.explanation(judged, "P5").endswith("*reproduced, not after Holm's correction*.")
    assert "not confirmed" in notebook.explanation(judged, "nobody")


def test_explanations_are_displayed_as_one_text(results, monkeypatch):
    displayed = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: displayed.append(data["text/markdown"]))
    files = FigureFiles.of("fig9", "quick", results)
    files.verdicts.write_text(json.dumps(JUDGED | {"claims": [about("P5", "reproduced")]}))
    notebook.show_explanations("fig9", "quick", ["P5", "AdamC"], results)
    assert [text.count("The explanation of") for text in displayed] == [2]
