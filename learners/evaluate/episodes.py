"""Episodes that were played, one JSON line each: all that grading needs, so that no model is.

A line is on the disk before the next is played; a line that a kill cut off is passed over. What a
model wrote about a restricted task is masked, because it may repeat what the set's owners ask not
to be written in the clear; the mask is no secret, it keeps the text from being found.
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
    """Counts the episodes of one task from 0; names their draws."""


@dataclass(frozen=True)
class Episode:
    """How one job ended."""

    task: str
    sample: int
    answer: str | None = None
    """What is graded; None where the episode ended without an answer."""
    stop: str = ""
    """See `envs.state.Stop`; empty where the machinery failed."""
    calls: tuple[str, ...] = ()
    """Names of the tools executed."""
    tokens: int = 0
    """Sampled by the model."""
    transcript: tuple[str, ...] = ()
    """action, observation, action, ..."""
    error: str | None = None
    """What of the machinery failed: such an episode is neither right nor wrong, and is played again
    by the next run."""


def ended(job: Job, state: EnvState, tokens: int) -> Episode:
    """The episode of a job whose environment came to its end."""
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
    """Appended to by `keep`, thread-safe; the later of two lines of one job counts."""

    def __init__(self, path: Path, restricted: frozenset[str]) -> None:
        """Open for appending.

        Args:
            path: of the file; made with the first episode.
            restricted: ids of tasks whose text is masked.
        """
        self._path, self._restricted = path, restricted
        self._lock = threading.Lock()
        if path.exists():
            whole = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)

    def read(self) -> dict[tuple[str, int], Episode]:
        """Every episode by task and sample, in the order of the file."""
        if not self._path.exists():
            return {}
        lines = self._path.read_text("utf-8").split("\n")[:-1]
        found = [_episode(json.loads(line)) for line in lines]
        return {(episode.task, episode.sample): episode for episode in found}

    def keep(self, episode: Episode) -> None:
        """Write an episode to the disk."""
        line = json.dumps(_row(episode, episode.task in self._restricted), ensure_ascii=False)
        with self._lock, self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _row(episode: Episode, restricted: bool) -> dict[str, Any]:
    def shown(text: str) -> str:
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
        "answer": None if episode.answer is None else shown(episode.answer),
        "transcript": [shown(text) for text in episode.transcript],
    }


def _episode(row: dict[str, Any]) -> Episode:
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


def mask(text: str, task_id: str) -> str:
    """Text XOR a stream made of the task's id, in base64."""
    return base64.b64encode(_mixed(text.encode("utf-8", "surrogatepass"), task_id)).decode()


def unmask(text: str, task_id: str) -> str:
    """What `mask` hid."""
    return _mixed(base64.b64decode(text), task_id).decode("utf-8", "surrogatepass")


def _mixed(data: bytes, task_id: str) -> bytes:
    stream = hashlib.shake_256(task_id.encode()).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def missing(jobs: Sequence[Job], played: dict[tuple[str, int], Episode]) -> list[Job]:
    """Jobs that have no episode yet, or one that the machinery ended."""
    done = {key for key, episode in played.items() if episode.error is None}
    return [job for job in jobs if (job.task.id, job.sample) not in done]
