"""The Tool protocol: to an environment, a function from (state, argument) to (state, result).

States are values. A state can be run any number of times and in any order, which is what makes an
episode forkable. A tool may cache live resources, but only as a cache of such a value.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class ToolUnavailable(RuntimeError):
    """The tool's own machinery failed (sandbox, container, network).

    Never shown to the model and never trained on. The trajectory is retried from its last state,
    then dropped and counted.
    """


@dataclass(frozen=True)
class ToolContext:
    """Values that an episode passes to its tools when it begins."""

    seed: int = 0
    """Seed of every random choice of a tool, so that a replay is exact."""
    attachments: tuple[str, ...] = ()
    """Paths of files that belong to the task; tools may read but not write them."""


@dataclass(frozen=True)
class ToolResult:
    """The result of one call."""

    text: str
    """The text for the model, including errors that its argument caused."""
    ok: bool
    """False if the argument failed: a syntax error, no hit, a limit reached."""
    seconds: float
    """Wall-clock time of the call."""
    free: bool = False
    """True if the call used no service: a recording answered it, or it asked for nothing."""


class Tool(Protocol[S]):
    """A named, forkable tool. Thread-safe; it opens nothing before the first `run`.

    A state is made of None, bool, int, float, str and tuples of these, so that it is hashable, can
    be pickled, and survives a round trip through JSON (lists read back as tuples).
    """

    name: str
    """Name of the tag that calls it: `<python> ... </python>`."""
    description: str
    """One sentence for the model's instructions."""

    def initial_state(self, context: ToolContext) -> S:
        """Return the state before the first call of an episode."""
        ...

    def run(self, state: S, argument: str) -> tuple[S, ToolResult]:
        """Call the tool from `state`; `state` itself stays valid.

        Raises:
            ToolUnavailable: the tool's machinery failed; this says nothing about `argument`.
        """
        ...

    def close(self) -> None:
        """Release what the tool opened. A later `run` opens it again."""
        ...
