"""The records that a benchmark is made of: tasks, scores, passages, demonstrations, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

AnswerType = Literal["number", "latex", "span", "choice", "free"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Task:
    """One row of a benchmark. Only `question` is ever shown to the model."""

    id: str
    """Stable across releases of the data set."""
    question: str
    answers: tuple[str, ...]
    """Any of them is correct; never empty."""
    answer_type: AnswerType = "span"
    language: str = "en"
    attachments: tuple[str, ...] = ()
    """Paths of files that the tools may read."""
    restricted: bool = False
    """True if the set's owners ask that its text is not published in the clear."""
    metadata: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs such as level and source."""


class Score(NamedTuple):
    """A benchmark's judgement of one answer."""

    value: float
    """In [0, 1]."""
    method: str
    """The test that decided: exact, f1, math, judge, ..."""
    extracted: str
    """The part of the answer that was compared."""
    judged: bool = True
    """False if only a judge could have decided and there was none."""


Scorer = Callable[[str, Task], Score]
"""(text between the answer tags, task) -> score. Bounded in time, thread-safe."""


class Passage(NamedTuple):
    """A short document that the search tool can find."""

    id: str
    title: str
    text: str


class Step(NamedTuple):
    """One turn of a scripted episode: a thought, then one action."""

    thought: str
    act: str
    """A tool's name, or "answer"."""
    argument: str


class Demonstration(NamedTuple):
    """A scripted episode for a cold start; playing it in an environment adds the tools' results."""

    task: Task
    steps: tuple[Step, ...]


class Load(Protocol):
    """Loads the tasks of a split; called once per environment, at its first reset."""

    def __call__(self, split: Split, data_dir: Path | None) -> Sequence[Task]:
        """Return the tasks in a fixed order.

        Args:
            split: train, validation or test.
            data_dir: a folder in the layout of the README; None reads the public data set.

        Raises:
            benchmarks.DataUnavailable: the rows cannot be read; the message says what to do.
        """
        ...


@dataclass(frozen=True)
class Benchmark:
    """A named set of tasks with its scorers and the limits of an episode over it."""

    name: str
    """The name in `appo/<name>-v0`."""
    load: Load
    score: Scorer
    """The official metric."""
    training_score: Scorer
    """The reward of training, in [0, 1]; often token F1."""
    train_source: str
    """A description of the rows of `load("train")`."""
    tools: tuple[str, ...] = ("search", "python")
    max_tool_calls: int = 5
    max_response_tokens: int = 4096
    search_results: int = 5
    """Passages that one search returns."""
    revision: str = "0"
    """Raised when the rows change; part of every stored state."""
    demonstrations: Callable[[Path | None], Sequence[Demonstration]] | None = None
    """Scripted episodes over training rows, if the benchmark can make them."""
    corpus: Callable[[Split, Path | None], Sequence[Passage]] | None = None
    """Passages with the evidence, if the benchmark has its own."""
    instructions: str = ""
    """Rules for writing an answer, for the prompt: the official scorer is unfair without them."""
