"""EnvState, everything the next step of an episode depends on, as a value; and a step's info."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict, get_args

Stop = Literal["answered", "malformed", "tool_limit", "length", "turn_limit"]
"""Why an episode ended; the first two terminate it, the others truncate it."""


@dataclass(frozen=True)
class Call:
    """A tool call that was executed."""

    tool: str
    argument: str
    ok: bool
    """False if the tool could not use its argument."""
    seconds: float = field(compare=False)
    """Wall clock."""
    free: bool
    """True if a recording answered."""


class StepInfo(TypedDict, total=False):
    """Details of `reset` and `step` next to the observation. No gold answer before the end."""

    task: str
    instructions: str
    """The system prompt; `reset` only."""
    tool: str
    """The tool that ran, if one did."""
    ok: bool
    """False if the tool could not use its argument."""
    call: Call
    """The executed call, if there was one."""
    stop: Stop
    """Why the episode ended; the following three come with it."""
    answer: str | None
    reward_terms: Mapping[str, float]
    gold_answers: tuple[str, ...]


@dataclass(frozen=True)
class EnvState:
    """A snapshot of an episode. It can be stored and restored anywhere, any number of times.

    A state names its task but does not hold it: answers of restricted sets must not leak into
    files. Store it as JSON; unpickling runs code, so never unpickle a stranger's state.
    """

    benchmark: str
    revision: str
    """Revision of the benchmark's rows; a state of another one is refused."""
    split: str
    task_id: str
    transcript: tuple[str, ...] = ()
    """action, observation, action, ...; observations as the environment gave them."""
    tool_states: tuple[Hashable, ...] = ()
    """Aligned with `tools`."""
    tools: tuple[str, ...] = ()
    """Names of the environment's tools, in its order; a state of other tools is refused."""
    calls: tuple[str, ...] = ()
    """Names of the tools executed so far."""
    limit_noticed: bool = False
    """True once an observation said that no call is left."""
    stop: Stop | None = None
    """None while the episode runs."""

    def to_json(self) -> str:
        """The state as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> EnvState:
        """Read a state that `to_json` wrote.

        Raises:
            ValueError: the text is not a stored state.
        """
        try:
            fields = {name: _frozen(value) for name, value in dict(json.loads(text)).items()}
            state = cls(**fields)
            hash(state)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a stored state: {error}; expected EnvState.to_json()") from error
        wrong = [name for name, value in asdict(state).items() if not _fits(name, value)]
        if wrong:
            raise ValueError(
                f"not a stored state: {', '.join(wrong)} of another type; expected "
                "EnvState.to_json()"
            )
        if len(state.tools) != len(state.tool_states):
            raise ValueError(
                f"{len(state.tools)} tools and {len(state.tool_states)} states of them"
            )
        if state.stop is not None and state.stop not in get_args(Stop):
            raise ValueError(f"stop is {state.stop!r}; expected one of {get_args(Stop)} or null")
        return state


def _frozen(value: Any) -> Any:  # noqa: ANN401 - JSON
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _fits(name: str, value: object) -> bool:
    """True if a field's value has its type; `stop` is checked by its value."""
    if name in ("transcript", "calls", "tools"):
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if name == "tool_states":
        return isinstance(value, tuple)
    return name == "stop" or isinstance(value, bool if name == "limit_noticed" else str)
