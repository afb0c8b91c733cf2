"""The provenance of a run: package versions, the git commit, the uncommitted changes, the time."""

import functools
import hashlib
import platform
import subprocess
import time
from importlib import metadata

from wdlab.records.identity import PROJECT

_PACKAGES = (
    *("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb", "pandas"),
    *("gymnasium", "stable-baselines3"),
)
_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
_DIFF_LIMIT = 200_000  # characters; a longer diff is replaced by its checksum


@functools.cache  # 4 ms for each run of a sweep
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages among ``_PACKAGES``, by name."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def code_version() -> dict[str, str]:
    """Return the git ``commit`` of the code and its ``uncommitted`` changes (a diff as text); {} outside a checkout.

    Both are read at the first call in this process. Untracked files are named at the end of the diff. A diff of more
    than ``_DIFF_LIMIT`` characters is replaced by its SHA-256.
    """
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    watched = ("wdlab", "configs", "scripts", "pyproject.toml", "requirements.lock")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *watched)
    diff = _git("diff", "HEAD", "--", *watched) + "".join(f"\nuntracked: {path}" for path in untracked.splitlines())
    if len(diff) > _DIFF_LIMIT:
        diff = f"sha256 {hashlib.sha256(diff.encode()).hexdigest()} ({len(diff)} characters)"
    return {"commit": commit, "uncommitted": diff}


def _git(*arguments: str) -> str:
    """Return the output of a git command, run in the checkout of this code; "" if the command fails."""
    try:
        completed = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return completed.stdout.strip() if completed.returncode == 0 else ""


def utc_now() -> str:
    """Return the current time in UTC, written as ``2026-01-31T12:00:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
