"""What a tool is to an environment: a function from (state, argument) to (state, result).

States are values. Whoever holds a state may run it again, any number of times and in any order:
that is what makes an episode forkable. A tool may cache live resources, but only as a cache of
such a value.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class ToolUnavailable(RuntimeError):
    """The tool's own machinery failed (sandbox, container, network).

    Never shown to the model and never trained on: the trajectory is retried from its kept state,
    then dropped and counted.
    """


@dataclass(frozen=True)
class ToolContext:
    """What an episode gives its tools when it begins."""

    seed: int = 0
    """Decides every draw a tool makes on its own, so that a replay is exact."""
    attachments: tuple[str, ...] = ()
    """Paths of files that belong to the task; tools may read them and never write them."""


@dataclass(frozen=True)
class ToolResult:
    """What one call answered."""

    text: str
    """What the model reads, errors that its argument caused included."""
    ok: bool
    """False when the argument failed: a syntax error, no hit, a limit reached."""
    seconds: float
    """Wall clock of the call."""
    free: bool = False
    """True: nothing outside was asked, because a recording answered or there was no question."""


class Tool(Protocol[S]):
    """A named, forkable tool: thread-safe, opens nothing before the first `run`.

    The state is made of None, bool, int, float, str and tuples of these, so that it is hashable,
    can be pickled, and survives a round trip through JSON (lists read back as tuples).
    """

    name: str
    """The tag that calls it: `<python> ... </python>`."""
    description: str
    """One sentence for the instructions that the model reads."""

    def initial_state(self, context: ToolContext) -> S:
        """The state before the first call of an episode."""
        ...

    def run(self, state: S, argument: str) -> tuple[S, ToolResult]:
        """Call the tool from `state`; `state` itself stays valid.

        Raises:
            ToolUnavailable: the tool's machinery failed; nothing about `argument` is known.
        """
        ...

    def close(self) -> None:
        """Release what the tool opened. A later `run` opens it again."""
        ...
