"""Checkpoints: tensors and plain types only, written completely or not at all. The previous one is kept."""

import io
import os
from typing import Any

import torch

from wdlab.errors import CheckpointError
from wdlab.records.directory import RunDirectory
from wdlab.records.files import writing


def save(run: RunDirectory, state: dict[str, Any]) -> None:
    """Write ``state`` as the run's newest checkpoint. The one before stays as ``checkpoint.previous.pt``.

    Raises:
        OSError: if the file cannot be written. Earlier checkpoints stay unmodified.
    """
    content = io.BytesIO()  # torch.save to a full disk raises an error without the reason
    torch.save({"run": run.name, **_without_other_memory(state)}, content)
    temporary = run.path / ".checkpoint.tmp"
    with writing(run.checkpoint, undo=temporary.unlink), temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    if run.checkpoint.exists():
        run.checkpoint.replace(run.previous_checkpoint)
    temporary.replace(run.checkpoint)


def _without_other_memory(state: Any) -> Any:
    """Clone the tensors that are views of a larger storage; torch.save would write the whole storage."""
    if isinstance(state, dict):
        return {key: _without_other_memory(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_without_other_memory, state))
    if isinstance(state, torch.Tensor) and state.untyped_storage().nbytes() > state.nbytes:
        return state.clone()
    return state


def load(run: RunDirectory) -> dict[str, Any] | None:
    """Return the newest checkpoint of a run, on the CPU, or None if it has none.

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
        earlier = "the checkpoint before it" if other is not None and other.exists() else "the start"
        kind = type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, cannot be read as a checkpoint ({kind}); delete it to resume from {earlier}"
        ) from error
    if owner != run.name:
        raise CheckpointError(f"{path}: belongs to run {owner}")
    return state


def require(run: RunDirectory) -> dict[str, Any]:
    """Return the newest checkpoint of a run, on the CPU.

    Raises:
        CheckpointError: if there is none, or for the reasons of :func:`load`.
    """
    state = load(run)
    if state is None:
        raise CheckpointError(f"{run.path}: has no checkpoint to evaluate")
    return state
