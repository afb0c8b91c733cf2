"""Shared by all tests: small configs, a run in a temporary folder, a subprocess that behaves like a user's shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wdlab import runs

PROJECT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"
TINY = ("train.steps=20", "train.log_every=10", "train.eval_every=10", "model.width=8", "logger=disabled")


@pytest.fixture
def compose(tmp_path):
    """Compose a tiny run's config whose files go to the test's folder."""

    def _compose(*overrides: str, runs_in: str = "runs"):
        return runs.compose([*TINY, "runtime=cpu", f"paths.runs={tmp_path / runs_in}", *overrides])

    return _compose


@pytest.fixture
def shell(tmp_path):
    """Run ``python -m wdlab.train`` in an empty folder, as a user would; returns the finished process."""

    def _shell(*arguments: str, module: str = "wdlab.train", env: dict | None = None, **options):
        offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        environment = {**os.environ, **offline, "no_proxy": "", "PYTHONPATH": str(PROJECT), **(env or {})}
        environment.pop("WDLAB_DATA", None)
        environment.pop("HYDRA_FULL_ERROR", None)
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **options
        )

    return _shell


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Where real MNIST is: $WDLAB_DATA, or the folder shared/data beside the checkout."""
    folder = Path(os.environ.get("WDLAB_DATA", SHARED_DATA))
    if not (folder / "mnist" / "train.parquet").is_file():
        pytest.skip(f"no mnist/train.parquet under {folder}; set WDLAB_DATA")
    return folder


@pytest.fixture
def float64():
    """Float64 as torch's default for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
