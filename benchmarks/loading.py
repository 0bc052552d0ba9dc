"""Turns rows into tasks: skips and counts unusable rows, splits training rows, checks overlaps.

The files of the benchmark families know what the fields of their rows mean; those of the training
mixtures, which several families share, are read here.
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
from benchmarks.catalog import DEEP_SEARCH_TRAIN, EVALUATED, REASONING_TRAIN, EvaluatedSet
from benchmarks.sources import (
    DataUnavailable,
    Fetch,
    HubTable,
    TableRow,
    fetch_file,
    fetch_from_hub,
    get_field,
    local_rows,
    question_id,
    question_key,
)

_CONTROL = re.compile("[\x08\x0b\x0c]")
_DAMAGED_COMMANDS = {
    "\x08": ("b", ("oxed", "egin", "inom", "eta", "ar", "mod", "ig")),
    "\x0b": ("v", ("ec", "ert", "arphi", "arepsilon")),
    "\x0c": ("f", ("rac", "orall")),
}
"""By control character that an unescaped \\b, \\v or \\f became: its letter, and the rest of the
LaTeX commands that begin with it."""


@dataclass(frozen=True)
class TaskList(Sequence[Task]):
    """Tasks, and how many rows did not become one."""

    tasks: tuple[Task, ...]
    counts: tuple[tuple[str, int], ...] = ()
    """(label, rows): read, left out and why, repaired, overlaps removed, sets not compared."""

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self.tasks[index]


class SkipRow(Exception):
    """Raised for a row that cannot become a task; counted under its message."""


ParseRow = Callable[[TableRow, Counter[str]], Task]
"""(row, counts) -> task. May count repairs; raises SkipRow if the row cannot be posed."""


@dataclass(frozen=True)
class TrainingSource:
    """The table of training and validation rows."""

    stem: str
    """`<data_dir>/train/<stem>.*`."""
    hub: HubTable
    parse: ParseRow
    validation: int
    """Number of last rows that are held out of training."""


@dataclass(frozen=True)
class TableLoad:
    """A `Load` that reads tables."""

    evaluated: EvaluatedSet
    parse: ParseRow
    training: TrainingSource
    fetch: Fetch = fetch_from_hub
    fetch_file: Callable[[HubTable, str], Path] = fetch_file

    def __call__(self, split: Split, data_dir: Path | None) -> TaskList:
        """See `benchmarks.benchmark.Load`."""
        if split == "test":
            return self._load_test(data_dir)
        if split not in ("train", "validation"):
            raise ValueError(f"split {split!r}: expected train, validation or test")
        return self._load_training(split, data_dir)

    def _load_test(self, data_dir: Path | None) -> TaskList:
        def parse(row: TableRow, counts: Counter[str]) -> Task:
            return self._resolve_attachments(self.parse(row, counts), data_dir)

        stem = f"benchmarks/{self.evaluated.folder}/test"
        return _collect(self._read_rows(stem, self.evaluated.hub, data_dir), parse, Counter())

    def _load_training(self, split: Split, data_dir: Path | None) -> TaskList:
        counts: Counter[str] = Counter()
        source = self.training
        rows = self._read_rows(f"train/{source.stem}", source.hub, data_dir)
        tasks = _collect(rows, source.parse, counts).tasks
        cut = len(tasks) - source.validation
        if cut <= 0:
            raise DataUnavailable(
                f"train/{source.stem} has {len(tasks)} usable rows, and {source.validation} of "
                "them are kept for validation"
            )
        evaluated = self._evaluated_keys(data_dir, counts)
        held_out = {question_key(task.question) for task in tasks[cut:]}
        chosen = []
        for task in tasks[cut:] if split == "validation" else tasks[:cut]:
            key = question_key(task.question)
            if key in evaluated:
                counts["overlap with an evaluated set, removed"] += 1
            elif split == "train" and key in held_out:
                counts["overlap with validation, removed"] += 1
            else:
                chosen.append(task)
        return TaskList(tuple(chosen), tuple(counts.items()))

    def _resolve_attachments(self, task: Task, data_dir: Path | None) -> Task:
        """Replace the names of attachments by paths of existing files."""
        paths = []
        for name in task.attachments:
            if data_dir is None:
                path = self.fetch_file(self.evaluated.hub, name)
            else:
                folder = (data_dir / "benchmarks" / self.evaluated.folder).resolve()
                path = (folder / name).resolve()
                if not path.is_file() or not path.is_relative_to(folder):
                    raise SkipRow("its attachment is not at hand")
            paths.append(str(path))
        return replace(task, attachments=tuple(paths))

    def _read_rows(self, stem: str, hub: HubTable, data_dir: Path | None) -> Iterable[TableRow]:
        return local_rows(data_dir, stem) if data_dir is not None else self.fetch(hub)

    def _evaluated_keys(self, data_dir: Path | None, counts: Counter[str]) -> set[str]:
        """Return the question keys of all evaluated sets that are available."""
        keys: set[str] = set()
        for name, other in EVALUATED.items():
            try:
                rows = self._read_rows(f"benchmarks/{other.folder}/test", other.hub, data_dir)
                keys.update(question_key(other.question(row)) for row in rows)
            except DataUnavailable:
                counts[f"{name} not at hand, overlap not checked"] += 1
        return keys


def sample_tasks(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """Sample `count` tasks, the same for everyone; a larger sample contains the smaller one."""
    order = list(range(len(tasks)))
    random.Random("evaluation").shuffle(order)
    return [tasks[index] for index in sorted(order[: len(order) if count is None else count])]


def _collect(rows: Iterable[TableRow], parse: ParseRow, counts: Counter[str]) -> TaskList:
    tasks: dict[str, Task] = {}
    for row in _count_rows(rows, counts):
        try:
            task = parse(row, counts)
        except SkipRow as reason:
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


def _count_rows(rows: Iterable[TableRow], counts: Counter[str]) -> Iterator[TableRow]:
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataUnavailable("the table is empty")
    for row in chain([first], rows):
        counts["rows read"] += 1
        yield row


def repair_latex(text: str) -> str:
    r"""Turn control characters back into the LaTeX that they were; drop others of their kind."""

    def repair(match: re.Match[str]) -> str:
        letter, endings = _DAMAGED_COMMANDS[match.group()]
        return f"\\{letter}" if text.startswith(endings, match.end()) else ""

    return _CONTROL.sub(repair, text)


def parse_math_mixture(row: TableRow, counts: Counter[str]) -> Task:
    """Parse a row of train_10k; skip those that are not mathematics."""
    return _parse_training(row, counts, "math")


def parse_qa_mixture(row: TableRow, counts: Counter[str]) -> Task:
    """Parse a row of train_10k; skip those that are not question answering."""
    return _parse_training(row, counts, "qa")


def parse_deep_search(row: TableRow, counts: Counter[str]) -> Task:
    """Parse a row of hard_search_1k."""
    return _parse_training(row, counts, None)


def _parse_training(
    row: TableRow, counts: Counter[str], ability: Literal["math", "qa"] | None
) -> Task:
    if ability is not None and row.get("ability") != ability:
        raise SkipRow(f"not {ability}")
    extra, reward = get_field(row, "extra_info"), get_field(row, "reward_model")
    if not isinstance(extra, Mapping) or not isinstance(reward, Mapping):
        raise DataUnavailable("extra_info and reward_model of a training row are no objects")
    # The stored system prompt is damaged, and is not the one used here; only the question is read.
    raw, gold = str(get_field(extra, "question")), str(get_field(reward, "ground_truth"))
    question = repair_latex(raw).strip()
    if question != raw.strip():
        counts["control characters repaired"] += 1
    answer_type: Literal["latex", "span"] = "latex" if ability == "math" else "span"
    source = (("source", str(row.get("data_source") or "")),)
    answers = (repair_latex(gold).strip(),)
    return Task(question_id(question), question, answers, answer_type, metadata=source)


MATH_ROWS = TrainingSource("train_10k", REASONING_TRAIN, parse_math_mixture, validation=500)
QA_ROWS = TrainingSource("train_10k", REASONING_TRAIN, parse_qa_mixture, validation=500)
DEEP_SEARCH_ROWS = TrainingSource(
    "hard_search_1k", DEEP_SEARCH_TRAIN, parse_deep_search, validation=100
)
