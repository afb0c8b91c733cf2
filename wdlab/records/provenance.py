"""The provenance of a run: package versions, the git commit and its uncommitted difference, the time."""

import functools
import hashlib
import platform
import subprocess
import time
from importlib import metadata

from wdlab.records.identity import PROJECT

_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb", "pandas")
_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
_DIFF_LIMIT = 200_000


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_version() -> dict[str, str]:
    """Return the git commit and the uncommitted difference at the first call in this process; {} outside a checkout."""
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
    """Return the output of a git command in the checkout, "" if it fails."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def utc_now() -> str:
    """Return the time in UTC as ``2026-01-31T12:00:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
