"""Checkpoints of a run: written atomically, the newest two are kept.

A checkpoint is written into a folder of another name and renamed when it is complete. So a kill at
any moment leaves the last checkpoint intact.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from learners.errors import RunFolderError
from learners.policy import Policy, save_model
from learners.run_folder import checkpoint_folder, is_disk_full, list_checkpoints, sync_to_disk

MAX_CHECKPOINTS = 2


def save_checkpoint(folder: Path, iteration: int, policy: Policy, state: dict[str, Any]) -> None:
    """Write everything that the next iteration depends on; delete the oldest checkpoint.

    Args:
        folder: the run's.
        iteration: iterations done.
        policy: its weights and its optimizer are saved.
        state: anything else, as JSON; `read_state` returns it.

    Raises:
        RunFolderError: the disk is full; older checkpoints stay intact.
    """
    target = checkpoint_folder(folder, iteration)
    partial = target.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        partial.mkdir(parents=True)
        save_model(policy.loaded, partial)
        optimizer = {"optimizer": policy.optimizer.state_dict(), "updates": policy.updates}
        torch.save(optimizer, partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps(state))
        for path in partial.iterdir():
            sync_to_disk(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync_to_disk(target.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not is_disk_full(error):
            raise
        weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
        size = 3 * weights  # AdamW keeps two moments per weight
        raise RunFolderError(
            f"no space left for checkpoint {iteration} in {folder} (about "
            f"{size / 1e6:.0f} MB). Free some and run the same command: it resumes "
            f"from checkpoint {max(list_checkpoints(folder), default=0)}."
        ) from error
    for old in list_checkpoints(folder)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(checkpoint_folder(folder, old))


def load_checkpoint(folder: Path, iteration: int, policy: Policy) -> dict[str, Any]:
    """Restore the optimizer and return the state; the weights are loaded with the model."""
    source = checkpoint_folder(folder, iteration)
    saved = torch.load(source / "optimizer.pt", weights_only=True)
    policy.optimizer.load_state_dict(saved["optimizer"])
    policy.updates = saved["updates"]
    return read_state(folder, iteration)


def read_state(folder: Path, iteration: int) -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote."""
    path = checkpoint_folder(folder, iteration) / "state.json"
    state: dict[str, Any] = json.loads(path.read_text())
    return state
