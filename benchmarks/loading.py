"""Turns rows into tasks: duplicates, training slices, the overlap check.

What the fields of a row mean is said in the families' files.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, overload

from benchmarks.benchmark import Split, Task
from benchmarks.catalog import DEEP_SEARCH_TRAIN, EVALUATED, REASONING_TRAIN, Evaluated
from benchmarks.sources import (
    DataUnavailable,
    Fetch,
    HubTable,
    Row,
    fetch_file,
    fetch_from_hub,
    field,
    local_rows,
    question_id,
    question_key,
)


@dataclass(frozen=True)
class TaskList(Sequence[Task]):
    """Tasks, and what happened to the rows that are not among them."""

    tasks: tuple[Task, ...]
    counts: tuple[tuple[str, int], ...] = ()
    """(what, rows): read, left out and why, repaired, overlaps removed, sets not compared."""

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self.tasks[index]


class LeftOut(Exception):
    """A row mapping raises it for a row that is no task; counted under its text."""


RowToTask = Callable[[Row, Counter[str]], Task]
"""A row -> its task. May count repairs; raises LeftOut for a row that cannot be posed."""


@dataclass(frozen=True)
class Training:
    """Where training and validation rows come from."""

    stem: str
    """`<data_dir>/train/<stem>.*`."""
    hub: HubTable
    to_task: RowToTask
    validation: int
    """So many of the last rows, by order in the file, are held out of training."""


@dataclass(frozen=True)
class TableLoad:
    """A `Load` over tables."""

    evaluated: Evaluated
    to_task: RowToTask
    training: Training
    fetch: Fetch = fetch_from_hub
    fetch_file: Callable[[HubTable, str], Path] = fetch_file

    def __call__(self, split: Split, data_dir: Path | None) -> TaskList:
        """See `benchmarks.benchmark.Load`."""
        if split == "test":
            stem, hub = f"benchmarks/{self.evaluated.folder}/test", self.evaluated.hub
            counts: Counter[str] = Counter()

            def to_task(row: Row, counts: Counter[str]) -> Task:
                return self._with_files(self.to_task(row, counts), data_dir)

            return _collect(self._rows(stem, hub, data_dir), to_task, counts)
        if split not in ("train", "validation"):
            raise ValueError(f"split {split!r}: expected train, validation or test")
        return self._load_training(split, data_dir)

    def _load_training(self, split: Split, data_dir: Path | None) -> TaskList:
        counts: Counter[str] = Counter()
        source = self.training
        rows = self._rows(f"train/{source.stem}", source.hub, data_dir)
        every = _collect(rows, source.to_task, counts).tasks
        cut = len(every) - source.validation
        if cut <= 0:
            raise DataUnavailable(
                f"train/{source.stem} has {len(every)} usable rows, and {source.validation} of "
                "them are kept for validation"
            )
        seen = self._evaluated_keys(data_dir, counts)
        held_out = {question_key(task.question) for task in every[cut:]}
        chosen = []
        for task in every[cut:] if split == "validation" else every[:cut]:
            key = question_key(task.question)
            if key in seen:
                counts["overlap with an evaluated set, removed"] += 1
            elif split == "train" and key in held_out:
                counts["overlap with validation, removed"] += 1
            else:
                chosen.append(task)
        return TaskList(tuple(chosen), tuple(counts.items()))

    def _with_files(self, task: Task, data_dir: Path | None) -> Task:
        """Attachments as paths of files that are there."""
        paths = []
        for name in task.attachments:
            if data_dir is None:
                path = self.fetch_file(self.evaluated.hub, name)
            else:
                folder = (data_dir / "benchmarks" / self.evaluated.folder).resolve()
                path = (folder / name).resolve()
                if not path.is_file() or not path.is_relative_to(folder):
                    raise LeftOut("its attachment is not at hand")
            paths.append(str(path))
        return replace(task, attachments=tuple(paths))

    def _rows(self, stem: str, hub: HubTable, data_dir: Path | None) -> Iterable[Row]:
        return local_rows(data_dir, stem) if data_dir is not None else self.fetch(hub)

    def _evaluated_keys(self, data_dir: Path | None, counts: Counter[str]) -> set[str]:
        keys: set[str] = set()
        for name, other in EVALUATED.items():
            try:
                rows = self._rows(f"benchmarks/{other.folder}/test", other.hub, data_dir)
                keys.update(question_key(other.question(row)) for row in rows)
            except DataUnavailable:
                counts[f"{name} not at hand, overlap not checked"] += 1
        return keys


def _collect(rows: Iterable[Row], to_task: RowToTask, counts: Counter[str]) -> TaskList:
    tasks: dict[str, Task] = {}
    for row in _counted(rows, counts):
        try:
            task = to_task(row, counts)
        except LeftOut as reason:
            counts[f"left out: {reason}"] += 1
            continue
        if not any(task.answers):
            counts["left out: no answer"] += 1
        elif task.id in tasks:
            if tasks[task.id].question != task.question:
                raise DataUnavailable(f"two different questions have the id {task.id}")
            counts["left out: duplicate"] += 1
        else:
            tasks[task.id] = task
    return TaskList(tuple(tasks.values()), tuple(counts.items()))


def _counted(rows: Iterable[Row], counts: Counter[str]) -> Iterator[Row]:
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataUnavailable("the table is empty")
    for row in chain([first], rows):
        counts["rows read"] += 1
        yield row


_ESCAPES = {
    "\x08": ("b", ("oxed", "egin", "inom", "eta", "ar", "mod", "ig")),
    "\x0b": ("v", ("ec", "ert", "arphi", "arepsilon")),
    "\x0c": ("f", ("rac", "orall")),
}
"""Control characters that an unescaped \\b, \\v or \\f left behind, and the commands they began."""


_CONTROL = re.compile("[\x08\x0b\x0c]")


def repaired(text: str) -> str:
    r"""Control characters turned back into the LaTeX they were; others of their kind dropped."""

    def mend(match: re.Match[str]) -> str:
        letter, commands = _ESCAPES[match.group()]
        return f"\\{letter}" if text.startswith(commands, match.end()) else ""

    return _CONTROL.sub(mend, text)


def _task(row: Row, counts: Counter[str], ability: Literal["math", "qa"] | None) -> Task:
    if ability is not None and row.get("ability") != ability:
        raise LeftOut(f"not {ability}")
    extra, reward = field(row, "extra_info"), field(row, "reward_model")
    if not isinstance(extra, Mapping) or not isinstance(reward, Mapping):
        raise DataUnavailable("extra_info and reward_model of a training row are no objects")
    # The stored system prompt is damaged and not ours; only the question is read.
    raw, gold = str(field(extra, "question")), str(field(reward, "ground_truth"))
    question = repaired(raw).strip()
    if question != raw.strip():
        counts["control characters repaired"] += 1
    answer_type: Literal["latex", "span"] = "latex" if ability == "math" else "span"
    source = (("source", str(row.get("data_source") or "")),)
    answers = (repaired(gold).strip(),)
    return Task(question_id(question), question, answers, answer_type, metadata=source)


def math_row(row: Row, counts: Counter[str]) -> Task:
    """A mathematics row of train_10k."""
    return _task(row, counts, "math")


def qa_row(row: Row, counts: Counter[str]) -> Task:
    """A question-answering row of train_10k."""
    return _task(row, counts, "qa")


def deep_search_row(row: Row, counts: Counter[str]) -> Task:
    """A row of hard_search_1k."""
    return _task(row, counts, None)


MATH_ROWS = Training("train_10k", REASONING_TRAIN, math_row, validation=500)


QA_ROWS = Training("train_10k", REASONING_TRAIN, qa_row, validation=500)


DEEP_SEARCH_ROWS = Training("hard_search_1k", DEEP_SEARCH_TRAIN, deep_search_row, validation=100)


def sample_tasks(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """So many tasks, the same for everyone; a larger draw holds the smaller one."""
    order = list(range(len(tasks)))
    random.Random("evaluation").shuffle(order)
    return [tasks[index] for index in sorted(order[: len(order) if count is None else count])]
