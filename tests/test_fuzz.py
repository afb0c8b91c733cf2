"""Malformed command lines and configs: one line ``error: ...``, exit code 2, nothing trained or written."""

import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.malformed import MUTATIONS, malformed
from wdlab import loop, train

CASES = 3 * len(MUTATIONS)
FIRST = 0


@pytest.fixture
def typed(tmp_path, monkeypatch, capfd):
    """Type a command line in this process, in an empty folder; returns exit code, standard output and error."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("it trains"))
    monkeypatch.delenv("WDLAB_DATA", raising=False)

    def _typed(line: list[str]) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        train._errors.clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        monkeypatch.delenv("HYDRA_FULL_ERROR")
        monkeypatch.setattr(sys, "argv", ["train.py", *line])
        code = 0
        try:
            train.main()
        except SystemExit as error:
            code = error.code
        told, complaint = capfd.readouterr()
        assert list(empty.iterdir()) == [], line
        return code, told, complaint

    return _typed


@pytest.mark.parametrize(
    "seed", range(FIRST, FIRST + CASES), ids=lambda s: f"{s}-{MUTATIONS[s % len(MUTATIONS)].__name__}"
)
def test_a_malformed_line_is_one_error_and_nothing_else(typed, tmp_path, seed):
    line = malformed(seed, tmp_path)
    code, told, complaint = typed(line)
    assert code == 2 and told == "", (line, told, complaint)
    assert complaint.startswith("error: ") and complaint.count("\n") == 1 and len(complaint) > 12, (line, complaint)
