"""The tasks of an environment: loaded on first use, found by id or index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import Benchmark, Split, Task


class TaskTable:
    """Loads tasks on first use. Mutated once; two threads may both load, with equal results."""

    def __init__(
        self, benchmark: Benchmark, split: Split, data_dir: Path | None, level: str | None
    ) -> None:
        """Load nothing yet; see ToolEnv for the arguments."""
        self._benchmark, self._split, self._data_dir = benchmark, split, data_dir
        self._level = level
        self._by_id: dict[str, Task] | None = None
        self._in_order: tuple[Task, ...] = ()

    def by_id(self) -> dict[str, Task]:
        """Tasks by id, in the benchmark's order.

        Raises:
            ValueError: no task has the level, or two have one id.
            benchmarks.DataUnavailable: the rows cannot be had.
        """
        if self._by_id is None:
            tasks = self._benchmark.load(self._split, self._data_dir)
            levels = [dict(task.metadata).get("level") for task in tasks]
            chosen = [
                task
                for task, level in zip(tasks, levels, strict=True)
                if self._level in (None, level)
            ]
            if not chosen:
                raise ValueError(
                    f"{self._benchmark.name} has no {self._split} task of level {self._level!r}; "
                    f"its levels are {sorted({str(level) for level in levels})}"
                )
            by_id = {task.id: task for task in chosen}
            if len(by_id) < len(chosen):
                raise ValueError(f"two {self._split} tasks of {self._benchmark.name} share an id")
            self._in_order, self._by_id = tuple(chosen), by_id
        return self._by_id

    def in_order(self) -> tuple[Task, ...]:
        """All tasks, in the benchmark's order."""
        self.by_id()
        return self._in_order

    def pick(self, choice: Task | str | int | None, draw: Callable[[int], int]) -> Task:
        """Return a task by itself, by its id or index, or a drawn one for None.

        Args:
            choice: a task is taken as it is, without a look-up.
            draw: returns an index below the number of tasks.

        Raises:
            KeyError, IndexError: no such task.
            TypeError: neither a task, an id nor an index.
        """
        if isinstance(choice, Task):
            return choice
        tasks = self.in_order()
        if isinstance(choice, str):
            if choice not in self.by_id():
                raise KeyError(
                    f"no {self._split} task has the id {choice!r}; ids look like {tasks[0].id!r}"
                )
            return self.by_id()[choice]
        index = draw(len(tasks)) if choice is None else choice
        if not 0 <= index < len(tasks):
            raise IndexError(
                f"there is no task {index}: the {len(tasks)} {self._split} tasks have the indices "
                f"0 to {len(tasks) - 1}"
            )
        return tasks[index]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the rows: another process reads them itself."""
        return {**self.__dict__, "_by_id": None, "_in_order": ()}
