"""Checkpoints: tensors and plain types only, whole or not there, the previous one kept. Called by the loop."""

import io
import os
from typing import Any

import torch

from wdlab.errors import CheckpointError
from wdlab.records.directory import RunDirectory
from wdlab.records.files import writing


def save(run: RunDirectory, state: dict[str, Any]) -> None:
    """Write ``state`` as the run's newest checkpoint; the one before stays as ``checkpoint.previous.pt``.

    Raises:
        OSError: if it cannot be written. Those that were there stay as they are.
    """
    content = io.BytesIO()  # torch.save into a file that cannot be written does not say why
    torch.save({"run": run.name, **_by_itself(state)}, content)
    temporary = run.path / ".checkpoint.tmp"
    with writing(run.checkpoint, undo=temporary.unlink), temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    if run.checkpoint.exists():
        run.checkpoint.replace(run.previous_checkpoint)
    temporary.replace(run.checkpoint)


def _by_itself(state: Any) -> Any:
    """A nested state whose tensors are all that lies in their memory; torch would save the rest of it too."""
    if isinstance(state, dict):
        return {key: _by_itself(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_by_itself, state))
    if isinstance(state, torch.Tensor) and state.untyped_storage().nbytes() > state.nbytes:
        return state.clone()
    return state


def load(run: RunDirectory) -> dict[str, Any] | None:
    """The newest checkpoint of a run, on the CPU, or None if it has none.

    Raises:
        CheckpointError: if the file cannot be read or belongs to another run.
    """
    path = run.checkpoint if run.checkpoint.exists() else run.previous_checkpoint
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        owner = state["run"]
    except Exception as error:
        other = run.previous_checkpoint if path == run.checkpoint else None
        after = "the checkpoint before it" if other is not None and other.exists() else "the start"
        raise CheckpointError(
            f"{path}: damaged, cannot be read as a checkpoint ({type(error).__name__}); delete it to go on from {after}"
        ) from error
    if owner != run.name:
        raise CheckpointError(f"{path}: belongs to run {owner}")
    return state


def require(run: RunDirectory) -> dict[str, Any]:
    """The newest checkpoint of a run that is to be measured, on the CPU.

    Raises:
        CheckpointError: if there is none, or as for :func:`load`.
    """
    state = load(run)
    if state is None:
        raise CheckpointError(f"{run.path}: has no checkpoint to evaluate")
    return state
