"""vLLM's engine in this process. The only file that imports vllm; written and tested with 0.32.

On a CPU the KV cache has 2 GiB in blocks of 32 tokens: with small blocks a branch recomputes less.
A GPU is shared with training: the engine gets less than half of its memory, and frees it while it
sleeps. vLLM opens a process group of its own in this process, so under torchrun use the server.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from learners.errors import UsageError
from learners.sampling.vllm_sampler import Piece, Weights, entropy_lower_bound

TOP = 20
"""Number of likeliest tokens whose log-probabilities are requested: vLLM's own limit."""


CPU_CACHE_BYTES = 2 << 30


GPU_SHARE = 0.45
"""Fraction of a GPU's memory."""


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        UsageError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "vLLM is not installed here. On a GPU `pip install 'appo-gym[vllm]'`; on a CPU "
            "`make .venv-vllm/.installed`, and run with .venv-vllm/bin/python"
        )


class VllmEngine:
    """Wraps `vllm.LLMEngine`. Mutated by every call."""

    def __init__(self, folder: Path, dtype: torch.dtype, rows: int) -> None:
        """Load a model; takes seconds on a GPU and up to a minute on a CPU.

        Args:
            folder: what `learners.policy.loading.save_model` wrote.
            dtype: float32 or bfloat16.
            rows: maximum number of requests in one step.

        Raises:
            UsageError: vLLM is not installed.
        """
        require_vllm()
        # No worker processes: weights are handed over as tensors, within this process.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import EngineArgs, LLMEngine

        cuda = torch.cuda.is_available()
        device_options: dict[str, Any] = (
            {"gpu_memory_utilization": GPU_SHARE, "enable_sleep_mode": True}
            if cuda
            else {
                "kv_cache_memory_bytes": CPU_CACHE_BYTES,
                "block_size": 32,
                "enforce_eager": True,
            }
        )
        set_threads, threads = torch.set_num_threads, torch.get_num_threads()
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                dtype=str(dtype).removeprefix("torch."),
                max_num_seqs=rows,
                max_logprobs=TOP,
                logprobs_mode="processed_logprobs",  # at the request's temperature
                generation_config="vllm",  # not the model's own sampling settings
                enable_prefix_caching=True,
                skip_tokenizer_init=True,
                disable_log_stats=True,
                **device_options,
            )
        )
        # On a CPU vLLM replaces this function in the whole process; training sets threads with it.
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        self._sleeps = cuda

    def add(
        self,
        name: str,
        prefix_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        temperature: float,
        end_ids: Sequence[int],
    ) -> None:
        """See `learners.sampling.vllm_sampler.Engine`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=max(temperature, 0.0),
            seed=seed,
            stop_token_ids=list(end_ids),
            logprobs=TOP,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(name, {"prompt_token_ids": list(prefix_ids)}, params)

    def step(self) -> Iterable[Piece]:
        """See `learners.sampling.vllm_sampler.Engine`."""
        pieces = []
        for output in self._engine.step():
            (completion,) = output.outputs
            spans = [] if completion.logprobs is None else _split_spans(completion.logprobs)
            pieces.append(
                Piece(
                    output.request_id,
                    tuple(completion.token_ids),
                    [span[0] for span in spans],
                    [entropy_lower_bound(span[1:]) for span in spans],
                    output.finished,
                )
            )
        return pieces

    def abort(self, names: Sequence[str]) -> None:
        """See `learners.sampling.vllm_sampler.Engine`."""
        self._engine.abort_request(list(names))

    def load(self, weights: Weights) -> None:
        """See `learners.sampling.vllm_sampler.Engine`.

        Raises:
            RuntimeError: requests are under way.
        """
        self._engine.collective_rpc(_load_weights, args=(weights,))
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not reset: requests are under way")

    def sleep(self) -> None:
        """Move weights to the host's memory and drop the KV cache; do nothing on a CPU."""
        if self._sleeps:
            self._engine.sleep(level=1)

    def wake(self) -> None:
        """See `learners.sampling.vllm_sampler.Engine`."""
        if self._sleeps:
            self._engine.wake_up()


def _split_spans(flat: Any) -> list[list[float]]:  # noqa: ANN401 - vLLM's FlatLogprobs
    """List for each token its own log-probability, then those of the likeliest."""
    bounds = zip(flat.start_indices, flat.end_indices, strict=True)
    return [flat.logprobs[start:end] for start, end in bounds]


def _load_weights(worker: Any, weights: Weights) -> None:  # noqa: ANN401 - vLLM's worker
    """Replace the weights of a worker's model; runs in the worker's process."""
    if isinstance(weights, Path):
        worker.reload_weights(weights_path=str(weights))
    else:
        worker.reload_weights(weights_iterator=iter(weights))
    if not torch.cuda.is_available():
        _repack_heads(worker.model_runner.get_model())


def _repack_heads(model: Module) -> None:
    """Pack the heads' new weights.

    On a CPU vLLM 0.32 packs a copy of the head, and a reload does not renew the copy of a head that
    is tied to the embedding.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
