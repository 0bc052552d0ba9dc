"""Who plays an evaluation: a model in this process, or one behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from benchmarks import Endpoint
from envs import ToolEnv
from learners.errors import ModelNotFound, UsageError
from learners.evaluate.config import Config
from learners.evaluate.endpoint import Client, EndpointPlayer
from learners.evaluate.episodes import Episode, Job, ended
from learners.policy import LoadedModel, load_model
from learners.rollouts import Rollouts
from learners.run_folder import newest_model
from learners.sampling import TransformersSampler
from learners.tree import RolloutTree

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
        """Play the jobs and keep their episodes; see `learners.evaluate.players`."""
        ...


def player_of(config: Config) -> Player:
    """The player that a config names; a local model is loaded.

    Raises:
        UsageError: fields that do not go together.
        learners.errors.ModelNotFound: there is no such model.
    """
    if config.samples > 1 and config.temperature <= 0:
        raise UsageError(
            f"--samples {config.samples} of a greedy model are all alike; give --temperature"
        )
    return _local(config) if config.api_base is None else _remote(config, config.api_base)


def _local(config: Config) -> Player:
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    loaded = load_model(newest_model(config.model))
    if config.dtype == "bfloat16":  # not while loading: packed weights would stay packed
        loaded.model.to(torch.bfloat16)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return LocalPlayer(loaded, config.temperature, config.seed, config.rows)


def _remote(config: Config, base: str) -> Player:
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


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if name in ("tiny", "smollm2"):
        return load_model(name).tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"--tokenizer {name}: {str(error).splitlines()[0]}") from error
    if tokenizer.chat_template is None:
        raise ModelNotFound(f"--tokenizer {name}: it has no chat template")
    return tokenizer


CHUNK = 256
"""Episodes under way together; many more would fill the memory with trees."""


class Group(NamedTuple):
    """Jobs that are under way together."""

    rows: int
    """Most of them in one forward pass."""
    jobs: list[Job]


def grouped(jobs: Sequence[Job], lengths: Sequence[int], rows: int) -> Iterator[Group]:
    """Jobs of like length together, the longest first: what memory must hold shows at once.

    A group whose longest job is up to twice the usual length has all rows. Beyond that a row's
    attention costs the square of its length, and the rows are halved until all rows of the group
    together cost no more than `rows` of twice the usual length.

    Args:
        jobs: in any order; those of equal length keep theirs.
        lengths: of each job, the prompt and all that an episode may add, in tokens.
        rows: in one forward pass, at the usual length.
    """
    if not jobs:
        return
    usual = 2 * median_low(lengths)

    def fitting(length: int) -> int:
        room = rows
        while room > 1 and room * length**2 > rows * usual**2:
            room //= 2
        return room

    order = sorted(range(len(jobs)), key=lambda index: -lengths[index])
    for room, like in groupby(order, key=lambda index: fitting(lengths[index])):
        together = [jobs[index] for index in like]
        for start in range(0, len(together), CHUNK):
            yield Group(room, together[start : start + CHUNK])


@dataclass(frozen=True)
class LocalPlayer:
    """Plays with a model of `transformers`; prompt and response are one row of token ids."""

    loaded: LoadedModel
    temperature: float
    seed: int
    rows: int
    """Most episodes of the usual length in one forward pass."""

    left_out: frozenset[str] = frozenset()

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], most_tokens: int, keep: Callable[[Episode], None]
    ) -> None:
        """Play the jobs; every episode is kept after the round of turns that ended it.

        Args:
            env: forked for every turn.
            jobs: what to play; the draws of a job do not depend on the others.
            most_tokens: sampled and observed tokens of one episode.
            keep: takes each episode.
        """
        model, tokenizer = self.loaded
        sampler = TransformersSampler(model, tokenizer, env.stop_tags, rows=self.rows)
        rollouts = Rollouts(env, sampler, tokenizer, most_tokens, self.temperature, self.seed)
        questions = {job.task.id: job.task.question for job in jobs}
        prompts = {
            t: len(rollouts.encode_question(env.instructions, q)) for t, q in questions.items()
        }
        lengths = [prompts[job.task.id] + most_tokens for job in jobs]
        for group in grouped(jobs, lengths, self.rows):
            sampler = TransformersSampler(
                model, tokenizer, env.stop_tags, rows=group.rows, dtype=model.dtype
            )
            _play(replace(rollouts, sampler=sampler), group.jobs, keep)


def _play(rollouts: Rollouts, jobs: Sequence[Job], keep: Callable[[Episode], None]) -> None:
    trees = []
    for job in jobs:
        tree = rollouts.tree(job.task)
        tree.copy = job.sample
        tree.root()
        trees.append(tree)
    kept: set[int] = set()

    def keep_ended(trees: Sequence[RolloutTree]) -> None:
        for index, (job, tree) in enumerate(zip(jobs, trees, strict=True)):
            (episode,) = tree.trajectories
            if index in kept or not (episode.done or tree.unavailable is not None):
                continue
            kept.add(index)
            if tree.unavailable is not None:
                keep(Episode(job.task.id, job.sample, error=tree.unavailable))
            else:
                keep(ended(job, episode.state, episode.sampled_tokens))

    rollouts.run(trees, key="evaluation", after_turn=keep_ended)
