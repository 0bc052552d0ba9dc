"""Which sampler a run has, and how its turns are ordered."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from learners.config import RunConfig
from learners.policy import LoadedModel, lora, save_model
from learners.sampling.sampler import Sampler, TurnEnd, end_ids
from learners.sampling.transformers_sampler import TransformersSampler
from learners.sampling.vllm_engine import VllmEngine, require_vllm
from learners.sampling.vllm_sampler import VllmSampler, weights_of
from learners.sampling.vllm_server import Settings, VllmServer


def open_sampler(config: RunConfig, loaded: LoadedModel, stop_tags: Sequence[str]) -> Sampler:
    """The sampler that a run's `sampler` names, of the policy's model.

    Raises:
        UsageError: it is vLLM, which is not installed.
    """
    dtype = torch.bfloat16 if config.optimisation.autocast else loaded.model.dtype
    if config.sampling.sampler == "transformers":
        return TransformersSampler(
            *loaded, stop_tags, rows=config.sampling.sampler_rows, dtype=dtype
        )

    require_vllm()
    ends = end_ids(*loaded)
    scratch = tempfile.TemporaryDirectory(prefix="appo-vllm-")
    folder = Path(scratch.name)
    if config.sampling.sampler == "vllm-server":
        settings = Settings(
            scratch.name,
            str(dtype).removeprefix("torch."),
            config.sampling.sampler_rows,
            torch.get_num_threads(),
            tuple(stop_tags),
            tuple(sorted(ends)),
        )
        server = VllmServer(settings, lambda folder: _save(loaded, folder))
        weakref.finalize(server, scratch.cleanup)
        return server
    with scratch:
        _save(loaded, folder)
        engine = VllmEngine(folder, dtype, config.sampling.sampler_rows)
    end = TurnEnd(loaded.tokenizer, stop_tags, ends)
    return VllmSampler(engine, end, lambda: weights_of(loaded.model))


def _save(loaded: LoadedModel, folder: Path) -> None:
    """Whole weights alone: vLLM reads every file of weights in a folder."""
    save_model(loaded, folder)
    (folder / lora.FILE).unlink(missing_ok=True)


def turns(config: RunConfig) -> Literal["lockstep", "overlap"]:
    """What `turns` says; auto is whichever promises most where the run is."""
    if config.sampling.turns != "auto":
        return config.sampling.turns
    fast = config.sampling.sampler != "transformers" or torch.cuda.is_available()
    return "overlap" if fast else "lockstep"
