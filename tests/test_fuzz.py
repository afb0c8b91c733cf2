"""Malformed command lines and configs: one line ``error: ...``, exit code 2, nothing trained or written."""

import pytest

from tests.malformed import MUTATIONS, malformed
from wdlab import loop

CASES = 3 * len(MUTATIONS)
FIRST = 0


@pytest.mark.parametrize(
    "seed", range(FIRST, FIRST + CASES), ids=lambda s: f"{s}-{MUTATIONS[s % len(MUTATIONS)].__name__}"
)
def test_a_malformed_line_is_one_error_and_nothing_else(command, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(loop, "fit", lambda *_: pytest.fail("it trains"))
    empty = tmp_path / "empty"
    empty.mkdir()
    line = malformed(seed, tmp_path)
    ended = command(*line, cwd=empty)
    output, complaint = ended.stdout, ended.stderr
    assert ended.returncode == 2 and output == "", (line, output, complaint)
    assert complaint.startswith("error: ") and complaint.count("\n") == 1 and len(complaint) > 12, (line, complaint)
    assert list(empty.iterdir()) == [], line
