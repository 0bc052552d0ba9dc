"""Options of an evaluation, the environments they make, and the folder they are stored in."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from benchmarks import BENCHMARKS
from envs import CacheMode, ToolEnv
from learners.config import JudgeOptions
from learners.errors import RunFolderError, UsageError
from learners.evaluate.grading import REQUEST
from learners.run_folder import write_text

EndpointProtocol = Literal["chat", "completions"]


@dataclass(frozen=True)
class Config:
    """Options of `learners.evaluate`."""

    model: str = "smollm2"
    """smollm2, tiny, the folder of a run or a model, or a hub id; with --api-base its name at the
    endpoint."""
    env: tuple[str, ...] = ()
    """Environment ids."""
    all: bool = False
    """All thirteen benchmarks."""
    split: Literal["test", "validation"] = "test"
    """Split to evaluate on."""
    level: str | None = None
    """Keep only tasks of this difficulty, for benchmarks with levels."""
    tasks: int | None = None
    """Tasks per environment, the same for every model; None: all of them."""
    samples: int = 1
    """Episodes per task; with 2 or more, pass@k is reported too."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Seed of sampling."""
    confidence: bool = False
    """Ask for a stated confidence, as the authors of HLE do, and report the calibration error."""
    max_response_tokens: int | None = None
    """Sampled and observed tokens of one episode; None: the benchmark's."""
    max_tool_calls: int | None = None
    """Tool calls per episode; None: the benchmark's."""
    data_dir: str | None = None
    """Folder of rows, in place of the public data sets."""
    tools: tuple[str, ...] | None = None
    """Tools of the environments; None: the benchmark's."""
    search: str = "auto"
    """Source of search results: local, remote or web; auto: the benchmark's corpus if it has one,
    else the web."""
    corpus: str | None = None
    """local: an index folder or a file of passages; remote: the service's URL; web: an engine of
    ddgs."""
    cache: str | None = None
    """File that records the answers of remote, web and browse."""
    cache_mode: CacheMode = "record"
    """record: ask for what the cache lacks; live, replay, frozen: see tools/cache.py."""
    sandbox: str = "auto"
    """Sandbox of Python: auto, local or docker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of a local model's weights."""
    rows: int = 64
    """Episodes of a local model in one forward pass, at most."""
    threads: int | None = None
    """CPU threads of a local model; None: all cores."""
    api_base: str | None = None
    """URL of an OpenAI-compatible endpoint, up to and with /v1, in place of a local model."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never stored."""
    protocol: EndpointProtocol = "chat"
    """chat: turns and results are messages; completions: one message, as in training."""
    tokenizer: str | None = None
    """For completions: model whose chat template writes the prompt; a folder, a hub id, smollm2 or
    tiny."""
    api_concurrency: int = 8
    """Requests to the endpoint at the same time."""
    api_timeout: float = 600.0
    """Timeout of a request, in seconds."""
    judge_base: str | None = None
    """URL of an OpenAI-compatible endpoint that grades answers no rule can grade; None: such
    answers are not judged."""
    judge_model: str | None = None
    """The judge's name at the endpoint."""
    judge_key_variable: str = "JUDGE_API_KEY"
    """Environment variable that holds the judge's key."""
    judge_price: float = 0.0
    """Price of a verdict; repeated verdicts are free."""
    out: str | None = None
    """Folder of the evaluation; runs/evaluate-<model> by default. Run the same command to
    resume."""
    regrade: bool = False
    """Grade the stored episodes of --out again, without the model."""

    @property
    def judge(self) -> JudgeOptions:
        """The options that name a judge."""
        return JudgeOptions(self.judge_base, self.judge_model, self.judge_key_variable)

    @property
    def environments(self) -> list[str]:
        """Ids of the environments to evaluate on, each once."""
        if self.all:
            return [f"appo/{name}-v0" for name in BENCHMARKS if name != "SyntheticQA"]
        return list(dict.fromkeys(self.env))

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range or lacks another."""
        if self.samples < 1 or (self.tasks is not None and self.tasks < 1):
            raise UsageError("--tasks and --samples count from 1")
        if not self.environments:
            raise UsageError("name environments with --env, or all thirteen benchmarks with --all")
        self.judge.validate()
        if not self.regrade:  # which plays nothing
            self._validate_play()

    def _validate_play(self) -> None:
        if self.samples > 1 and self.temperature <= 0:
            raise UsageError(
                f"--samples {self.samples} of a greedy model are all alike; give --temperature"
            )
        is_remote = self.api_base is not None
        if is_remote and self.protocol == "completions" and self.tokenizer is None:
            raise UsageError(
                "--protocol completions needs --tokenizer: the folder or hub id whose chat "
                "template writes the prompt; --protocol chat needs none"
            )


FREE_TO_CHANGE = frozenset(
    {"env", "all", "tasks", "samples", "rows", "threads", "cache", "cache_mode", "sandbox"}
    | {"api_key_variable", "api_concurrency", "api_timeout", "judge_base", "judge_model"}
    | {"judge_key_variable", "judge_price", "out", "regrade", "data_dir"}
)
"""Options that a resumed evaluation may change: they alter no episode that was played."""

REGRADE_OPTIONS = (
    "judge_base",
    "judge_model",
    "judge_key_variable",
    "judge_price",
    "out",
    "regrade",
)
"""Options that --regrade takes from the command line; the others are the stored ones."""

REGRADE_OPTIONS_IF_GIVEN = ("data_dir", "tasks")
"""Options that --regrade takes from the command line if they are given; --env and --all, too."""


def make_environment(name: str, config: Config) -> ToolEnv:
    """Make the environment of an id; opens nothing.

    Raises:
        gymnasium.error.Error: there is no such id; the message names the nearest.
        UsageError: it is not one of ours.
    """
    if not isinstance(gym.make(name).unwrapped, ToolEnv):
        raise UsageError(f"--env {name} is not one of ours; expected appo/<Benchmark>-v0")
    names = ("split", "data_dir", "tools", "search", "corpus", "cache", "cache_mode", "sandbox")
    options = {option: getattr(config, option) for option in (*names, "max_tool_calls", "level")}
    env = gym.make(name, **options).unwrapped
    assert isinstance(env, ToolEnv)
    if config.confidence:
        instructions = f"{env.benchmark.instructions}\n\n{REQUEST}".strip()
        env.benchmark = replace(env.benchmark, instructions=instructions)
    return env


@contextmanager
def open_folder(folder: Path, config: Config) -> Iterator[Config]:
    """Lock the folder of an evaluation and yield the config to evaluate by.

    That is the given config, or with --regrade the stored one with some options of the given.

    Raises:
        UsageError: the config is not valid; nothing is written.
        RunFolderError: another process uses the folder, it holds another evaluation, or it holds
            none to grade again.
    """
    path = folder / "config.json"
    stored = json.loads(path.read_text()) if path.exists() else None
    if config.regrade:
        if stored is None:
            raise RunFolderError(f"{folder} holds no evaluation to grade again; give its --out")
        config = _regrade_config(stored, config)
    config.validate()
    if not config.regrade and stored is not None:
        _check_same(folder, stored, _to_json(config))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is evaluating into {folder}") from error
        if not config.regrade:
            write_text(path, json.dumps(_to_json(config), indent=1))
        yield config


def _to_json(config: Config) -> dict[str, Any]:
    """Return the options as they are read from JSON: tuples are lists."""
    return dict(json.loads(json.dumps(asdict(config))))


def _regrade_config(stored: dict[str, Any], config: Config) -> Config:
    overrides = asdict(config)
    options: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    options |= {name: overrides[name] for name in REGRADE_OPTIONS}
    options |= {n: overrides[n] for n in REGRADE_OPTIONS_IF_GIVEN if overrides[n] is not None}
    if config.all or config.env:
        options |= {"all": config.all, "env": config.env}
    return Config(**options)


def _check_same(folder: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    names = (stored.keys() | given.keys()) - FREE_TO_CHANGE
    other = [n for n in sorted(names) if stored.get(n) != given.get(n)]
    if other:
        changes = ", ".join(f"{n} was {stored.get(n)!r}, now {given.get(n)!r}" for n in other)
        raise RunFolderError(
            f"{folder} holds another evaluation: {changes}. Give --out another folder, or the "
            "arguments of that evaluation to resume it."
        )
