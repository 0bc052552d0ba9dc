"""Several environments as one: a task's id says which of them plays it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

from benchmarks import Benchmark, Score, Task
from envs import EnvState, ToolEnv
from tools import Tool


class TaskMixture:
    """What learners use of a ToolEnv, over several. Mutated like one: fork before playing."""

    def __init__(self, parts: Sequence[ToolEnv]) -> None:
        """Mix environments of different benchmarks."""
        self._parts = {part.benchmark.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError("a mixture needs environments of different benchmarks")
        self._current = parts[0]
        self.run_tool: Callable[..., Any] | None = None
        """Runs tools in place of the environments' own way."""

    @property
    def parts(self) -> Sequence[ToolEnv]:
        """The environments that are mixed."""
        return list(self._parts.values())

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """All tasks, the environments taking turns; ids are <benchmark>:<id>."""
        rounds = zip_longest(*(part.tasks for part in self._parts.values()))
        return [
            replace(task, id=f"{name}:{task.id}")
            for round_ in rounds
            for name, task in zip(self._parts, round_, strict=True)
            if task is not None
        ]

    @property
    def benchmark(self) -> Benchmark:
        """Named after all; scores an answer as the task's own benchmark does."""
        records = [part.benchmark for part in self._parts.values()]
        return replace(
            records[0],
            name="+".join(self._parts),
            train_source=" and ".join(record.train_source for record in records),
            score=self._score,
            demonstrations=None,
        )

    @property
    def tools(self) -> tuple[Tool[Any], ...]:
        """Of all environments."""
        return tuple(tool for part in self._parts.values() for tool in part.tools)

    @property
    def stop_tags(self) -> tuple[str, ...]:
        """Of all environments."""
        return tuple(dict.fromkeys(tag for p in self._parts.values() for tag in p.stop_tags))

    @property
    def instructions(self) -> str:
        """Of the environment under way."""
        return self._current.instructions

    def reset(self, *, options: Mapping[str, str]) -> tuple[str, Any]:
        """Begin a task in its environment."""
        name, _, task = options["task"].partition(":")
        self._current = self._fork(name)
        return self._current.reset(options={"task": task})

    def restore(self, state: EnvState) -> None:
        """Go on where a state of one of the environments is."""
        self._current = self._fork(state.benchmark)
        self._current.restore(state)

    def snapshot(self) -> EnvState:
        """The state of the environment under way."""
        return self._current.snapshot()

    def step(self, action: str) -> Any:  # noqa: ANN401 - as ToolEnv's
        """One turn in the environment under way."""
        return self._current.step(action)

    def truncate(self, reason: str, action: str = "") -> Any:  # noqa: ANN401 - as ToolEnv's
        """End the episode under way."""
        return self._current.truncate(reason, action)  # type: ignore[arg-type]

    def fork(self) -> "TaskMixture":
        """Another mixture over the same environments."""
        return TaskMixture(self.parts)

    def close(self) -> None:
        """Close all environments."""
        for part in self._parts.values():
            part.close()

    def _fork(self, name: str) -> ToolEnv:
        part = self._parts[name].fork()
        if self.run_tool is not None:
            part.run_tool = self.run_tool
        return part

    def _score(self, answer: str, task: Task) -> Score:
        return self._parts[task.id.partition(":")[0]].benchmark.score(answer, task)
