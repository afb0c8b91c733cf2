"""``make fetch-NAME``: what it says about data sets that need no download."""

import pytest

from scripts import fetch_data

SAID = {
    "digits": "digits: installed with scikit-learn, nothing to fetch",
    "descriptions": "descriptions: installed with scikit-learn, nothing to fetch",
    "cartpole": "cartpole: an environment, nothing to fetch; needs the extra rl, see docs/data.md",
}


@pytest.mark.parametrize("name", SAID)
def test_a_data_set_without_files_is_not_said_to_be_fetched(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fetch_data.py", name])
    fetch_data.main()
    assert capsys.readouterr().out.strip() == SAID[name]
