"""vLLM's engine in this process. The only file that imports vllm; made and tested with 0.32.

A CPU keeps 2 GB of keys and values in blocks of 32 tokens, because small blocks lose less where a
branch leaves; a GPU is shared with training and gets less than half of it, which it gives back
while it sleeps. vLLM opens a process group of its own here, so under torchrun use the server.
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
from learners.sampling.vllm_sampler import Piece, Weights, entropy_of

TOP = 20
"""Likeliest tokens whose log-probabilities are asked for: vLLM's own limit."""


CPU_CACHE_BYTES = 2 << 30


GPU_SHARE = 0.45


def require_vllm() -> None:
    """Nothing, where vLLM is installed.

    Raises:
        UsageError: it is not; the message says how to get it.
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
            rows: most requests in one step.

        Raises:
            UsageError: vLLM is not installed.
        """
        require_vllm()
        # Its workers would be processes of their own; tensors are handed over in this one.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import EngineArgs, LLMEngine

        cuda = torch.cuda.is_available()
        place: dict[str, Any] = (
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
                **place,
            )
        )
        # On a CPU it replaces this function in the whole process; training sets its own threads.
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
            (said,) = output.outputs
            spans = [] if said.logprobs is None else _spans(said.logprobs)
            pieces.append(
                Piece(
                    output.request_id,
                    tuple(said.token_ids),
                    [span[0] for span in spans],
                    [entropy_of(span[1:]) for span in spans],
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
        self._engine.collective_rpc(_take, args=(weights,))
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not reset: requests are under way")

    def sleep(self) -> None:
        """Weights wait in the host's memory; keys and values are dropped. Nothing on a CPU."""
        if self._sleeps:
            self._engine.sleep(level=1)

    def wake(self) -> None:
        """See `learners.sampling.vllm_sampler.Engine`."""
        if self._sleeps:
            self._engine.wake_up()


def _spans(flat: Any) -> list[list[float]]:  # noqa: ANN401 - vLLM's FlatLogprobs
    """Per token: its own log-probability, then those of the likeliest."""
    bounds = zip(flat.start_indices, flat.end_indices, strict=True)
    return [flat.logprobs[start:end] for start, end in bounds]


def _take(worker: Any, weights: Weights) -> None:  # noqa: ANN401 - vLLM's worker
    """Replace the weights of a worker's model; runs where the worker does."""
    if isinstance(weights, Path):
        worker.reload_weights(weights_path=str(weights))
    else:
        worker.reload_weights(weights_iterator=iter(weights))
    if not torch.cuda.is_available():
        _pack_heads_again(worker.model_runner.get_model())


def _pack_heads_again(model: Module) -> None:
    """On a CPU vLLM 0.32 goes on with a packed copy of the old head where it is the embedding's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
