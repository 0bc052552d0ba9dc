"""The fields of an evaluation: what is evaluated, on what, how it is sampled and graded."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from envs import CacheMode, ToolEnv
from learners.config import JudgeOptions
from learners.errors import RunFolderError, UsageError
from learners.evaluate.grading import REQUEST
from learners.run_folder import write_text


@dataclass(frozen=True)
class Config:
    """See `learners.evaluate`."""

    model: str = "smollm2"
    """smollm2, tiny, a folder of a run or a model, a hub id; with --api-base its name there."""
    env: tuple[str, ...] = ()
    """Environment ids."""
    all: bool = False
    """All thirteen benchmarks."""
    split: Literal["test", "validation"] = "test"
    """Split to evaluate on."""
    level: str | None = None
    """Keep only tasks of this difficulty, where the benchmark has levels."""
    tasks: int | None = None
    """Tasks per environment, drawn the same way for every model; None: all of them."""
    samples: int = 1
    """Episodes per task; from 2 on pass@k is reported too."""
    temperature: float = 0.0
    """Of sampling; 0 is greedy."""
    seed: int = 0
    """Decides the draws."""
    confidence: bool = False
    """Ask for a stated confidence, as the authors of HLE do, and report the calibration error."""
    max_response_tokens: int | None = None
    """Sampled and observed tokens of one episode; None: the benchmark's."""
    max_tool_calls: int | None = None
    """Per episode; None: the benchmark's."""
    data_dir: str | None = None
    """Folder of rows instead of the public data sets."""
    tools: tuple[str, ...] | None = None
    """Tools of the environments; None: the benchmark's."""
    search: str = "auto"
    """auto (the corpus at hand, else the web), local, remote or web."""
    corpus: str | None = None
    """An index folder or a file of passages; the URL of a service; an engine of ddgs."""
    cache: str | None = None
    """A file that records what the outside said."""
    cache_mode: CacheMode = "record"
    """record: ask what the cache lacks; live, replay, frozen: see tools/cache.py."""
    sandbox: str = "auto"
    """Where Python runs: auto, local or docker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a local model's weights."""
    rows: int = 64
    """Most episodes of a local model in one forward pass."""
    threads: int | None = None
    """CPU threads of a local model; None: all cores."""
    api_base: str | None = None
    """An OpenAI-compatible endpoint, up to and with /v1, that plays instead of a local model."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never stored."""
    protocol: Literal["chat", "completions"] = "chat"
    """chat: turns and results are messages; completions: one message, as in training."""
    tokenizer: str | None = None
    """For completions: whose chat template writes the prompt; as --model without an endpoint."""
    api_concurrency: int = 8
    """Requests to an endpoint at a time."""
    api_timeout: float = 600.0
    """Seconds of one request."""
    judge_base: str | None = None
    """An OpenAI-compatible endpoint that grades what no rule can; without it: not judged."""
    judge_model: str | None = None
    """The judge's name there."""
    judge_key_variable: str = "JUDGE_API_KEY"
    """Environment variable that holds the judge's key."""
    judge_price: float = 0.0
    """What a verdict costs that the judge had not given before."""
    out: str | None = None
    """Folder of the evaluation; runs/evaluate-<model> by default. Run again to resume."""
    regrade: bool = False
    """Grade the stored episodes of --out again, without the model."""

    @property
    def judge(self) -> JudgeOptions:
        """The options that name a judge."""
        return JudgeOptions(self.judge_base, self.judge_model, self.judge_key_variable)


FREE_TO_CHANGE = frozenset(
    {"env", "all", "tasks", "samples", "rows", "threads", "cache", "cache_mode", "sandbox"}
    | {"api_key_variable", "api_concurrency", "api_timeout", "judge_base", "judge_model"}
    | {"judge_key_variable", "judge_price", "out", "regrade", "data_dir"}
)
"""Fields that may change when an evaluation goes on: they alter no episode that was played."""


OF_GRADING = (
    "judge_base",
    "judge_model",
    "judge_key_variable",
    "judge_price",
    "out",
    "regrade",
)
"""Fields that --regrade takes from the command line; the others are the stored ones."""


WHERE_GIVEN = ("data_dir", "tasks")
"""Fields that --regrade takes from the command line where given; so are --env and --all."""


def make_environment(name: str, config: Config) -> ToolEnv:
    """The environment of an id; opens nothing.

    Raises:
        gymnasium.error.Error: no such id; the message names the nearest.
        UsageError: it is no environment of ours.
    """
    if not isinstance(gym.make(name).unwrapped, ToolEnv):
        raise UsageError(f"--env {name} is not one of ours; expected appo/<Benchmark>-v0")
    options = ("split", "data_dir", "tools", "search", "corpus", "cache", "cache_mode", "sandbox")
    given = {option: getattr(config, option) for option in (*options, "max_tool_calls", "level")}
    env = gym.make(name, **given).unwrapped
    assert isinstance(env, ToolEnv)
    if config.confidence:
        asked = f"{env.benchmark.instructions}\n\n{REQUEST}".strip()
        env.benchmark = replace(env.benchmark, instructions=asked)
    return env


@contextmanager
def opened(folder: Path, config: Config) -> Iterator[Config]:
    """Work in a folder that no other process works in; the config to work by.

    Raises:
        RunFolderError: it is in use, holds another evaluation, or none to grade again.
    """
    path = folder / "config.json"
    stored = json.loads(path.read_text()) if path.exists() else None
    if config.regrade:
        if stored is None:
            raise RunFolderError(f"{folder} holds no evaluation to grade again; give its --out")
        config = _regraded(stored, config)
    elif stored is not None:
        _check_same(folder, stored, _stored(config))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is evaluating into {folder}") from error
        if not config.regrade:
            write_text(path, json.dumps(_stored(config), indent=1))
        yield config


def _stored(config: Config) -> dict[str, Any]:
    """The config as JSON gives it back."""
    return dict(json.loads(json.dumps(asdict(config))))


def _regraded(stored: dict[str, Any], config: Config) -> Config:
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    given = asdict(config)
    taken = {name: given[name] for name in OF_GRADING}
    taken |= {name: given[name] for name in WHERE_GIVEN if given[name] is not None}
    if config.all or config.env:
        taken |= {"all": config.all, "env": config.env}
    return replace(Config(**fields), **taken)


def _check_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = (stored.keys() | wanted.keys()) - FREE_TO_CHANGE
    other = [n for n in sorted(names) if stored.get(n) != wanted.get(n)]
    if other:
        listed = ", ".join(f"{n} was {stored.get(n)!r}, now {wanted.get(n)!r}" for n in other)
        raise RunFolderError(
            f"{folder} holds another evaluation: {listed}. Give --out another folder, or the "
            "arguments of that evaluation to go on with it."
        )
