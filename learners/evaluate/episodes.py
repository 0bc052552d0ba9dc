"""Stored episodes, one JSON line each: all that grading needs, so that it needs no model.

A line is on the disk before the next is written; reading drops a line that a kill cut off. What a
model wrote about a restricted task is masked, because it may repeat what the owners of the data ask
not to publish in clear text. The mask is not a secret: it only keeps the text from being indexed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import Task
from envs import EnvState, final_answer

VERSION = 1


class Job(NamedTuple):
    """One episode to play."""

    task: Task
    sample: int
    """Index among the episodes of the task; decides the draws."""


@dataclass(frozen=True)
class Episode:
    """The outcome of a job."""

    task: str
    sample: int
    answer: str | None = None
    """The final answer; None if the episode ended without one."""
    stop: str = ""
    """See `envs.state.Stop`; empty after an error."""
    calls: tuple[str, ...] = ()
    """Names of the tools executed."""
    tokens: int = 0
    """Tokens that the model sampled."""
    transcript: tuple[str, ...] = ()
    """action, observation, action, ..."""
    error: str | None = None
    """Fault of a tool or an endpoint; such an episode is neither right nor wrong, and the next run
    plays it again."""


def to_episode(job: Job, state: EnvState, tokens: int) -> Episode:
    """Make the episode of a job whose environment has ended.

    Args:
        job: what was played.
        state: final state of the environment.
        tokens: sampled by the model.
    """
    return Episode(
        job.task.id,
        job.sample,
        final_answer(state),
        state.stop or "",
        state.calls,
        tokens,
        state.transcript,
    )


class EpisodeFile:
    """A file of episodes; of two lines of one job the later counts. Thread-safe.

    Mutated by `append`.
    """

    def __init__(self, path: Path, restricted: frozenset[str]) -> None:
        """Open the file, and drop a line that was cut off.

        Args:
            path: of the file; created with the first episode.
            restricted: ids of the tasks whose texts are masked.
        """
        self._path, self._restricted = path, restricted
        self._lock = threading.Lock()
        if path.exists():
            content = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def read(self) -> dict[tuple[str, int], Episode]:
        """Read all episodes by task and sample, in the order of the file."""
        if not self._path.exists():
            return {}
        lines = self._path.read_text("utf-8").split("\n")[:-1]
        episodes = [_from_row(json.loads(line)) for line in lines]
        return {(episode.task, episode.sample): episode for episode in episodes}

    def append(self, episode: Episode) -> None:
        """Write an episode to the disk."""
        row = _to_row(episode, episode.task in self._restricted)
        line = json.dumps(row, ensure_ascii=False)
        with self._lock, self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def missing_jobs(jobs: Sequence[Job], played: dict[tuple[str, int], Episode]) -> list[Job]:
    """Return the jobs that have no episode yet, or one that ended with an error."""
    done = {key for key, episode in played.items() if episode.error is None}
    return [job for job in jobs if (job.task.id, job.sample) not in done]


def mask(text: str, task_id: str) -> str:
    """XOR a text with a stream made of the task's id, and encode it in base64."""
    return base64.b64encode(_xor(text.encode("utf-8", "surrogatepass"), task_id)).decode()


def unmask(text: str, task_id: str) -> str:
    """Undo `mask`."""
    return _xor(base64.b64decode(text), task_id).decode("utf-8", "surrogatepass")


def _xor(data: bytes, task_id: str) -> bytes:
    stream = hashlib.shake_256(task_id.encode()).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _to_row(episode: Episode, restricted: bool) -> dict[str, Any]:
    def write(text: str) -> str:
        return mask(text, episode.task) if restricted else text

    return {
        "version": VERSION,
        "task": episode.task,
        "sample": episode.sample,
        "stop": episode.stop,
        "calls": episode.calls,
        "tokens": episode.tokens,
        "error": episode.error,
        "masked": restricted,
        "answer": None if episode.answer is None else write(episode.answer),
        "transcript": [write(text) for text in episode.transcript],
    }


def _from_row(row: dict[str, Any]) -> Episode:
    def read(text: str) -> str:
        return unmask(text, row["task"]) if row["masked"] else text

    answer = row["answer"]
    return Episode(
        row["task"],
        row["sample"],
        None if answer is None else read(answer),
        row["stop"],
        tuple(row["calls"]),
        row["tokens"],
        tuple(read(text) for text in row["transcript"]),
        row["error"],
    )
