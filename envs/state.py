"""EnvState: everything the next step of an episode depends on, as a value."""

import json
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Stop = Literal["answered", "malformed", "tool_limit", "length", "turn_limit"]
"""Why an episode ended; the first two terminate it, the others truncate it."""


@dataclass(frozen=True)
class EnvState:
    """Keep it, pickle it, restore it anywhere and any number of times.

    It names its task and does not hold it: answers of restricted sets must not leak into files.
    Store it as JSON; unpickling runs code, so never unpickle a state that a stranger made.
    """

    benchmark: str
    revision: str
    """Of the benchmark's rows; a state of other rows is refused."""
    split: str
    task_id: str
    transcript: tuple[str, ...] = ()
    """action, observation, action, ...; observations as the environment gave them."""
    tool_states: tuple[Hashable, ...] = ()
    """Aligned with the environment's tools."""
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
    def from_json(cls, text: str) -> "EnvState":
        """The state that `to_json` wrote.

        Raises:
            ValueError: the text is not a stored state.
        """
        fields = json.loads(text)
        try:
            state = cls(**{name: _frozen(value) for name, value in fields.items()})
        except TypeError as error:
            raise ValueError(f"not a stored state: {error}; expected EnvState.to_json()") from error
        if state.stop is not None and state.stop not in get_args(Stop):
            raise ValueError(f"stop is {state.stop!r}; expected one of {get_args(Stop)} or null")
        return state


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
