"""Checkpoint files: tensors and plain types only, written completely or not at all. A run keeps its newest two."""

import io
import os
from typing import Any

import torch

from wdlab.errors import CheckpointError
from wdlab.records.directory import RunDirectory
from wdlab.records.files import undone_on_error


def save(run: RunDirectory, state: dict[str, Any]) -> None:
    """Write ``state`` as the run's newest checkpoint. The checkpoint before it is kept as ``checkpoint.previous.pt``.

    Args:
        run: the directory of the run.
        state: tensors, numbers and text by key, also nested in dicts, lists and tuples. ``run``, the run's name, is
            added as a further key of the file.

    Raises:
        OSError: if the file cannot be written. Earlier checkpoints stay unmodified.
    """
    content = io.BytesIO()  # first to memory: torch.save to a full disk gives no reason in its error
    torch.save({"run": run.name, **_without_other_memory(state)}, content)
    temporary = run.path / ".checkpoint.tmp"
    with undone_on_error(run.checkpoint, undo=temporary.unlink), temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    if run.checkpoint.exists():
        run.checkpoint.replace(run.previous_checkpoint)
    temporary.replace(run.checkpoint)


def _without_other_memory(state: Any) -> Any:
    """Return ``state`` with a clone of each tensor that is a view of a larger storage.

    Without the clone torch.save would write the whole storage.
    """
    if isinstance(state, dict):
        return {key: _without_other_memory(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_without_other_memory, state))
    if isinstance(state, torch.Tensor) and state.untyped_storage().nbytes() > state.nbytes:
        return state.clone()
    return state


def load(run: RunDirectory) -> dict[str, Any] | None:
    """Return a run's newest checkpoint with its tensors on the CPU, or None if the run has no checkpoint.

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


def load_or_raise(run: RunDirectory) -> dict[str, Any]:
    """Return a run's newest checkpoint with its tensors on the CPU.

    Raises:
        CheckpointError: if the run has no checkpoint, the file cannot be read, or it belongs to another run.
    """
    state = load(run)
    if state is None:
        raise CheckpointError(f"{run.path}: has no checkpoint to evaluate")
    return state
