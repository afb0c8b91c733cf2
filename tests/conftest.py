"""Shared by all tests: small configs, a run in a temporary folder, a subprocess that behaves like a user's shell."""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from wdlab import runs

PROJECT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"
# Torch's cache of compiled loops does not tell instruction sets apart, and under another one they compute nonsense.
CAPABILITY = torch.backends.cpu.get_cpu_capability().replace(" ", "_")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"wdlab_compiled_{CAPABILITY}"))
TINY = ("train.steps=20", "train.log_every=10", "train.eval_every=10", "model.width=8", "logger=disabled")


@pytest.fixture
def compose(tmp_path):
    """Compose a tiny run's config whose files go to the test's folder."""

    def _compose(*overrides: str, runs_in: str = "runs"):
        return runs.compose([*TINY, "runtime=cpu", f"paths.runs={tmp_path / runs_in}", *overrides])

    return _compose


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A data folder in the hub's layout with 60 random images of CIFAR-10's and of MNIST's shape, and a small text."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, shape in (("cifar10", (32, 32, 3)), ("mnist", (28, 28))):
        (folder / name).mkdir()
        for part in ("train", "test"):
            images = [png(random.integers(0, 256, shape, dtype=np.uint8)) for _ in range(60)]
            table = pd.DataFrame({"img": images, "label": np.arange(60) % 10})
            table.to_parquet(folder / name / f"{part}.parquet")
    letters = random.choice(list("abcdefgh"), 2000)
    (folder / "tinyshakespeare.txt").write_text("".join(letters))
    return folder


def png(pixels: np.ndarray) -> dict:
    """An image as the hub's tables hold it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


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


@pytest.fixture(scope="session")
def shared_cifar10(shared_data) -> Path:
    """Where real CIFAR-10 is, beside real MNIST."""
    if not (shared_data / "cifar10" / "train.parquet").is_file():
        pytest.skip(f"no cifar10/train.parquet under {shared_data}; set WDLAB_DATA")
    return shared_data


@pytest.fixture
def float64():
    """Float64 as torch's default for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
