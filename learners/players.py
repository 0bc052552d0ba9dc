"""Who plays an evaluation: a model in this process, or one behind an endpoint."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.judge import Endpoint
from envs import ToolEnv
from learners.episodes import Episode, Job
from learners.evaluate_config import Config
from learners.run_config import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Player(Protocol):
    """Plays episodes."""

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters of a request that the endpoint did not take."""
        ...

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], most_tokens: int, keep: Callable[[Episode], None]
    ) -> None:
        """Play the jobs and keep their episodes; see `learners.local_player`."""
        ...


def player_of(config: Config) -> Player:
    """The player that a config names; a local model is loaded.

    Raises:
        UsageError: fields that do not go together.
        learners.models.ModelNotFound: there is no such model.
    """
    if config.samples > 1 and config.temperature <= 0:
        raise UsageError(
            f"--samples {config.samples} of a greedy model are all alike; give --temperature"
        )
    return _local(config) if config.api_base is None else _remote(config, config.api_base)


def _local(config: Config) -> Player:
    import torch

    from learners.local_player import LocalPlayer
    from learners.models import load_model

    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    loaded = load_model(newest_model(config.model))
    if config.dtype == "bfloat16":  # not while loading: packed weights would stay packed
        loaded.model.to(torch.bfloat16)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return LocalPlayer(loaded, config.temperature, config.seed, config.rows)


def newest_model(name: str) -> str:
    """The folder of the newest checkpoint where `name` is a run's folder; else the name itself."""
    from learners.checkpoint import checkpoint_folder, list_checkpoints

    folder = Path(name)
    found = list_checkpoints(folder)
    return str(checkpoint_folder(folder, found[-1])) if found else name


def _remote(config: Config, base: str) -> Player:
    from learners.endpoint import Client
    from learners.endpoint_player import EndpointPlayer

    if config.protocol == "completions" and config.tokenizer is None:
        raise UsageError(
            "--protocol completions needs --tokenizer: the folder or hub id whose chat template "
            "writes the prompt; --protocol chat needs none"
        )
    endpoint = Endpoint(
        base,
        config.model,
        os.environ.get(config.api_key_variable, ""),
        tries=6,  # half a minute: what limits requests a minute lets go
        concurrency=config.api_concurrency,
        timeout=config.api_timeout,
    )
    tokenizer = None
    if config.protocol == "completions" and config.tokenizer is not None:
        tokenizer = _tokenizer(config.tokenizer)
    client = Client(endpoint, config.protocol)
    return EndpointPlayer(
        client, config.temperature, config.seed, config.api_concurrency, tokenizer
    )


def _tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    from learners.models import ModelNotFound, load_model

    if name in ("tiny", "smollm2"):
        return load_model(name).tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"--tokenizer {name}: {str(error).splitlines()[0]}") from error
    if tokenizer.chat_template is None:
        raise ModelNotFound(f"--tokenizer {name}: it has no chat template")
    return tokenizer
