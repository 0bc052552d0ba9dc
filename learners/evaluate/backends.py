"""Model backends that play an evaluation: a model in this process, or one behind an endpoint."""

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
from learners.errors import ModelNotFound
from learners.evaluate.config import Config
from learners.evaluate.endpoint import EndpointBackend, EndpointClient
from learners.evaluate.episodes import Episode, Job, to_episode
from learners.policy import LoadedModel, load_model
from learners.rollouts import Rollouts
from learners.run_folder import newest_model
from learners.sampling import TransformersSampler
from learners.tree import RolloutTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256
"""Episodes that are played together, at most; many more trees would fill the memory."""


class Backend(Protocol):
    """Plays episodes."""

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters of a request that the endpoint refused."""
        ...

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], max_tokens: int, store: Callable[[Episode], None]
    ) -> None:
        """Play the jobs and store each episode as soon as it has ended.

        Args:
            env: its state does not change.
            jobs: to play; the draws of one do not depend on the others.
            max_tokens: sampled and observed tokens of one episode.
            store: takes each episode.
        """
        ...


def open_backend(config: Config) -> Backend:
    """Open the backend that a config names; loads a local model.

    Raises:
        learners.errors.ModelNotFound: there is no such model or tokenizer.
    """
    return _open_local(config) if config.api_base is None else _open_remote(config, config.api_base)


def _open_local(config: Config) -> Backend:
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    loaded = load_model(newest_model(config.model))
    if config.dtype == "bfloat16":  # not while loading: packed weights would stay packed
        loaded.model.to(torch.bfloat16)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return LocalBackend(loaded, config.temperature, config.seed, config.rows)


def _open_remote(config: Config, base: str) -> Backend:
    endpoint = Endpoint(
        base,
        config.model,
        os.environ.get(config.api_key_variable, ""),
        tries=6,  # half a minute: long enough for a limit of requests per minute
        concurrency=config.api_concurrency,
        timeout=config.api_timeout,
    )
    tokenizer = None
    if config.protocol == "completions" and config.tokenizer is not None:
        tokenizer = _load_tokenizer(config.tokenizer)
    client = EndpointClient(endpoint, config.protocol)
    return EndpointBackend(
        client, config.temperature, config.seed, config.api_concurrency, tokenizer
    )


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
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


@dataclass(frozen=True)
class LocalBackend:
    """Plays with a model of `transformers`; prompt and response are one row of token ids."""

    loaded: LoadedModel
    temperature: float
    seed: int
    rows: int
    """Episodes of usual length in one forward pass, at most."""

    left_out: frozenset[str] = frozenset()

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], max_tokens: int, store: Callable[[Episode], None]
    ) -> None:
        """Play the jobs; see `Backend`. An episode is stored after the turn that ended it."""
        model, tokenizer = self.loaded
        sampler = TransformersSampler(model, tokenizer, env.stop_tags, rows=self.rows)
        rollouts = Rollouts(env, sampler, tokenizer, max_tokens, self.temperature, self.seed)
        questions = {job.task.id: job.task.question for job in jobs}
        prompts = {
            t: len(rollouts.encode_question(env.instructions, q)) for t, q in questions.items()
        }
        lengths = [prompts[job.task.id] + max_tokens for job in jobs]
        for group in group_by_length(jobs, lengths, self.rows):
            sampler = TransformersSampler(
                model, tokenizer, env.stop_tags, rows=group.rows, dtype=model.dtype
            )
            _play_group(replace(rollouts, sampler=sampler), group.jobs, store)


class Group(NamedTuple):
    """Jobs that are played together."""

    rows: int
    """Episodes in one forward pass, at most."""
    jobs: list[Job]


def group_by_length(jobs: Sequence[Job], lengths: Sequence[int], rows: int) -> Iterator[Group]:
    """Group jobs of similar length, the longest first: if memory is short, that shows at once.

    A group whose longest job is up to twice the usual length has all rows. Beyond that, attention
    costs the square of a row's length, so rows are halved until a group costs no more than `rows`
    rows of twice the usual length.

    Args:
        jobs: in any order; those of equal length keep it.
        lengths: of each job, in tokens: the prompt and all that an episode may add.
        rows: in one forward pass, at the usual length.
    """
    if not jobs:
        return
    usual = 2 * median_low(lengths)

    def rows_at(length: int) -> int:
        fitting = rows
        while fitting > 1 and fitting * length**2 > rows * usual**2:
            fitting //= 2
        return fitting

    order = sorted(range(len(jobs)), key=lambda index: -lengths[index])
    for count, indices in groupby(order, key=lambda index: rows_at(lengths[index])):
        group = [jobs[index] for index in indices]
        for start in range(0, len(group), CHUNK):
            yield Group(count, group[start : start + CHUNK])


def _play_group(rollouts: Rollouts, jobs: Sequence[Job], store: Callable[[Episode], None]) -> None:
    trees = []
    for job in jobs:
        tree = rollouts.tree(job.task)
        tree.copy = job.sample
        tree.root()
        trees.append(tree)
    stored: set[int] = set()

    def store_ended(trees: Sequence[RolloutTree]) -> None:
        for index, (job, tree) in enumerate(zip(jobs, trees, strict=True)):
            (trajectory,) = tree.trajectories
            if index in stored or not (trajectory.done or tree.unavailable is not None):
                continue
            stored.add(index)
            if tree.unavailable is not None:
                store(Episode(job.task.id, job.sample, error=tree.unavailable))
            else:
                store(to_episode(job, trajectory.state, trajectory.sampled_tokens))

    rollouts.run(trees, key="evaluation", after_turn=store_ended)
