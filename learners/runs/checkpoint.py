"""Run folders and checkpoints: atomic, two kept, refused when they belong to another run.

A folder holds config.json, machine.json, metrics.jsonl, rollouts/, checkpoints/<iteration>/. A
checkpoint is written beside its place and renamed, so that a kill at any moment leaves the last one
whole.
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

KEPT = 2


def save_checkpoint(folder: Path, iteration: int, policy: Policy, state: dict[str, Any]) -> None:
    """Write the policy after `iteration` iterations, with everything the next one depends on.

    Raises:
        RunFolderError: the disk is full; the older checkpoints are whole.
    """
    target = checkpoint_folder(folder, iteration)
    partial = target.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
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
        raise RunFolderError(
            f"no space left for checkpoint {iteration} in {folder} (about "
            f"{_needed(policy) / 1e6:.0f} MB). Free some and run the same command: it resumes "
            f"from checkpoint {(list_checkpoints(folder) or [0])[-1]}."
        ) from error
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(checkpoint_folder(folder, old))


def load_checkpoint(folder: Path, iteration: int, policy: Policy) -> dict[str, Any]:
    """Restore optimiser and state; the weights were loaded from the same folder."""
    source = checkpoint_folder(folder, iteration)
    saved = torch.load(source / "optimizer.pt", weights_only=True)
    policy.optimizer.load_state_dict(saved["optimizer"])
    policy.updates = saved["updates"]
    return read_state(folder, iteration)


def read_state(folder: Path, iteration: int) -> dict[str, Any]:
    """What `save_checkpoint` was given beside the policy."""
    path = checkpoint_folder(folder, iteration) / "state.json"
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _needed(policy: Policy) -> int:
    return 3 * sum(int(p.numel() * p.element_size()) for p in policy.model.parameters())
