"""Opens the sampler that a run's config asks for, and resolves how its turns are scheduled."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from learners.config import RunConfig
from learners.policy import LoadedModel, lora, save_model
from learners.sampling.sampler import Sampler, StopCriteria, collect_end_ids
from learners.sampling.transformers_sampler import TransformersSampler
from learners.sampling.vllm_engine import VllmEngine, require_vllm
from learners.sampling.vllm_sampler import VllmSampler, export_weights
from learners.sampling.vllm_server import Settings, VllmServer


def open_sampler(config: RunConfig, loaded: LoadedModel, stop_tags: Sequence[str]) -> Sampler:
    """Open the sampler that `--sampler` names, on the policy's model.

    Raises:
        UsageError: it is vLLM, which is not installed.
    """
    dtype = torch.bfloat16 if config.optimisation.autocast else loaded.model.dtype
    rows = config.sampling.sampler_rows
    if config.sampling.sampler == "transformers":
        return TransformersSampler(*loaded, stop_tags, rows=rows, dtype=dtype)

    require_vllm()
    end_ids = collect_end_ids(*loaded)
    scratch = tempfile.TemporaryDirectory(prefix="appo-vllm-")
    folder = Path(scratch.name)
    if config.sampling.sampler == "vllm-server":
        settings = Settings(
            scratch.name,
            str(dtype).removeprefix("torch."),
            rows,
            torch.get_num_threads(),
            tuple(stop_tags),
            tuple(sorted(end_ids)),
        )
        server = VllmServer(settings, lambda folder: _save_merged(loaded, folder))
        # The server writes new weights there, and reads them, as long as it exists.
        weakref.finalize(server, scratch.cleanup)
        return server
    with scratch:
        _save_merged(loaded, folder)
        engine = VllmEngine(folder, dtype, rows)
    stop_criteria = StopCriteria(loaded.tokenizer, stop_tags, end_ids)
    return VllmSampler(engine, stop_criteria, lambda: export_weights(loaded.model))


def _save_merged(loaded: LoadedModel, folder: Path) -> None:
    """Save the model with its adapters merged in, and no separate adapters."""
    save_model(loaded, folder)
    # vLLM loads every file of weights in a folder.
    (folder / lora.FILE).unlink(missing_ok=True)


def resolve_turns(config: RunConfig) -> Literal["lockstep", "overlap"]:
    """Return `--turns`, with auto resolved to the mode that should be faster on this machine."""
    if config.sampling.turns != "auto":
        return config.sampling.turns
    fast = config.sampling.sampler != "transformers" or torch.cuda.is_available()
    return "overlap" if fast else "lockstep"
