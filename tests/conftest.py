"""Shared by all tests: small configs, a run in a temporary folder, command lines in this process and in a shell."""

import io
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from wdlab import train
from wdlab.records.identity import compose_config

PROJECT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"
# Torch's cache of compiled loops does not tell instruction sets apart, and under another one they compute nonsense.
CAPABILITY = torch.backends.cpu.get_cpu_capability().replace(" ", "_")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"wdlab_compiled_{CAPABILITY}"))
TINY = ("train.steps=20", "train.log_every=10", "train.eval_every=10", "model.width=8", "logger=disabled")
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
UNSET = ("WDLAB_DATA", "HYDRA_FULL_ERROR")  # variables that a user may have set, and no test expects
MOST_WORKERS = 8  # each takes about 1 GiB
FIRST = ("test_slurm", "test_figures", "test_kill", "test_benchmark")  # the longest: no worker is left alone with one


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core that this process may use, with one thread each; 0, no worker, for a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # which the workers inherit
    return min(cores, MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; workers take whole files in this order."""
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.fixture(autouse=True)
def process_as_before():
    """Undo what a run or a command line sets for its whole process, which the next test must not see."""
    loggers = [logging.getLogger(name) for name in (None, "wdlab")]
    before = [(logger, logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    for logger, level, propagate, handlers in before:
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    GlobalHydra.instance().clear()


@pytest.fixture
def compose(tmp_path):
    """Compose a tiny run's config whose files go to the test's folder."""

    def _compose(*overrides: str, runs_in: str = "runs"):
        return compose_config([*TINY, "runtime=cpu", f"paths.runs={tmp_path / runs_in}", *overrides])

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
        environment = {**os.environ, **OFFLINE, "no_proxy": "", "PYTHONPATH": str(PROJECT), **(env or {})}
        for name in UNSET:
            environment.pop(name, None)
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **options
        )

    return _shell


@pytest.fixture
def command(tmp_path, capfd):
    """Run a command line as ``shell`` does, but in this process: where no process of its own is needed."""

    def _command(*arguments: str, main: Callable[[], None] = train.main, cwd: Path = tmp_path):
        GlobalHydra.instance().clear()
        train._errors.clear()
        capfd.readouterr()
        words, before, code = ["wdlab", *arguments], Path.cwd(), 0
        with mock.patch.dict(os.environ, OFFLINE | {"no_proxy": ""}), mock.patch.object(sys, "argv", words):
            for name in UNSET:
                os.environ.pop(name, None)
            os.chdir(cwd)
            try:
                main()
            except SystemExit as ended:
                code = ended.code or 0
            finally:
                os.chdir(before)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return _command


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
