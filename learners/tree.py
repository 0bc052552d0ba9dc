"""Rollout trees: what the episodes of one task sampled, shared and earned.

A trajectory is a prompt followed by a response; the response alternates between what the policy
sampled (actions) and what the environment answered (observations). Trajectories of a task share
their common turns as objects. Nothing here samples, trains or talks to an environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from benchmarks import Task
from envs import Call, EnvState

if TYPE_CHECKING:
    from torch import Tensor

StopReason = Literal["tag", "eos", "length"]
"""The end of a turn: a closing tag, an end token, or the limit of tokens."""


@dataclass(frozen=True)
class Completion:
    """The T tokens that the policy sampled in one turn."""

    token_ids: tuple[int, ...] = ()
    """(T,)"""
    logprobs: tuple[float, ...] = ()
    """(T,) nats, under the policy that sampled, at its temperature."""
    entropies: tuple[float, ...] = ()
    """(T,) nats of the distribution each token was drawn from."""
    stop: StopReason = "tag"

    def __add__(self, rest: Completion) -> Completion:
        """Join a prefill and the tokens sampled after it."""
        return Completion(
            self.token_ids + rest.token_ids,
            self.logprobs + rest.logprobs,
            self.entropies + rest.entropies,
            rest.stop,
        )

    def first(self, count: int) -> Completion:
        """Return the first `count` tokens as a prefill."""
        return Completion(
            self.token_ids[:count], self.logprobs[:count], self.entropies[:count], self.stop
        )


@dataclass(frozen=True)
class Turn:
    """One `env.step`."""

    state: EnvState
    """The state before the step: a fork inside this turn restarts from it."""
    action: Completion
    observation_ids: tuple[int, ...]
    call: Call | None = None
    """The call that the step executed, even if no room was left for its result."""

    def __len__(self) -> int:
        return len(self.action.token_ids) + len(self.observation_ids)


class BranchPoint(NamedTuple):
    """The position at which a branch leaves a trajectory."""

    trajectory: Trajectory
    position: int
    """Number of shared response tokens; the token at `position` is sampled anew."""
    score: float = 0.0
    """Branching score by the method's own rule."""


@dataclass
class Diagnostics:
    """Values that an iteration computed for a trajectory's tokens, for rollout files.

    Every tensor is (T,), or None if it was not computed. Mutated by `learners.runs` and by the
    methods.
    """

    logprobs: Tensor | None = None
    """Nats, by the policy's newest pass over the trajectory."""
    entropies: Tensor | None = None
    """Nats, of the same pass."""
    age: int | None = None
    """Optimiser steps between sampling and that pass."""
    future_values: Tensor | None = None
    """Omega; None if it is undefined."""
    scores: Tensor | None = None
    """Branching scores; None if they are undefined."""
    advantages: Tensor | None = None
    """The row's advantages; None if the trajectory is not trained on."""
    weights: Tensor | None = None
    """The weight of each token's loss; 0 on tokens that are not trained on."""


class TrajectoryTensors(NamedTuple):
    """A response as tensors; each (T,)."""

    mask: Tensor
    """bool, True on tokens that the policy sampled."""
    sampler_logprobs: Tensor
    """Nats, as the sampler reported them; 0 on observations."""


@dataclass(eq=False)
class Trajectory:
    """One episode in tokens. Mutated by append only, in `learners.rollouts`; identity equality."""

    prompt_ids: tuple[int, ...]
    state: EnvState
    """The state after the turns below."""
    path: tuple[int, ...]
    """Root index, then (position, child index) per fork: names the draws of this trajectory."""
    turns: list[Turn] = field(default_factory=list)
    prefill: Completion = field(default_factory=Completion)
    """The first tokens of the current turn, shared with the parent."""
    parent: BranchPoint | None = None
    reward: float = 0.0
    reward_terms: dict[str, float] = field(default_factory=dict)
    done: bool = False
    old_logprobs: Tensor | None = None
    """(T,) nats, by the policy's own forward pass before the step's first update."""
    reference_logprobs: Tensor | None = None
    """(T,) nats, by the frozen reference policy; None unless the run has a KL penalty."""
    discarded_tokens: int = 0
    """Tokens sampled in turns that a tool's fault discarded; they are in no turn."""
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    _tensors: TrajectoryTensors | None = field(default=None, init=False, repr=False)

    @property
    def tensors(self) -> TrajectoryTensors:
        """The response as read-only tensors, built once the trajectory is complete."""
        import torch  # not at the top: commands that train nothing read trees too

        # Turns are only ever appended, so equal length means equal content.
        if self._tensors is None or len(self._tensors.mask) != len(self):
            self._tensors = TrajectoryTensors(
                torch.tensor(self.response_mask, dtype=torch.bool),
                torch.tensor(self.sampler_logprobs, dtype=torch.float32),
            )
        return self._tensors

    @property
    def response_ids(self) -> tuple[int, ...]:
        """(T,) sampled and observed tokens, the prefill of an open turn included."""
        return tuple(chain.from_iterable(ids for ids, _ in self._segments()))

    @property
    def response_mask(self) -> tuple[bool, ...]:
        """(T,) True where the policy sampled the token."""
        return tuple(chain.from_iterable([flag] * len(ids) for ids, flag in self._segments()))

    @property
    def sampler_logprobs(self) -> tuple[float, ...]:
        """(T,) nats, as the sampler reported them; 0 on observations."""
        parts = [t.action.logprobs + (0.0,) * len(t.observation_ids) for t in self.turns]
        return tuple(chain(*parts, self.prefill.logprobs))

    @property
    def sampler_entropies(self) -> tuple[float, ...]:
        """(T,) nats, as the sampler reported them; 0 on observations."""
        parts = [t.action.entropies + (0.0,) * len(t.observation_ids) for t in self.turns]
        return tuple(chain(*parts, self.prefill.entropies))

    def __len__(self) -> int:
        return sum(len(turn) for turn in self.turns) + len(self.prefill.token_ids)

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that the policy sampled for this trajectory, shared ones included."""
        return sum(len(t.action.token_ids) for t in self.turns) + len(self.prefill.token_ids)

    def _segments(self) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Yield consecutive token ids, with True if the policy sampled them."""
        for turn in self.turns:
            yield turn.action.token_ids, True
            yield turn.observation_ids, False
        yield self.prefill.token_ids, True


@dataclass(eq=False)
class RolloutTree:
    """All trajectories of one task, the group of every method. Mutated by `root` and `fork`."""

    task: Task
    prompt_ids: tuple[int, ...]
    start: EnvState
    trajectories: list[Trajectory] = field(default_factory=list)
    copy: int = 0
    """Number of the tree among those of its task in an iteration; each has its own draws."""
    initial_roots: int = 0
    """Number of roots, the first ones, that were made before the iteration sampled anything."""
    unavailable: str | None = None
    """The fault of a tool that stayed unavailable; such a tree is never trained on."""

    @property
    def name(self) -> str:
        """Name of the tree's random draws."""
        return f"{self.task.id}#{self.copy}" if self.copy else self.task.id

    @property
    def roots(self) -> list[Trajectory]:
        """Trajectories sampled from the prompt."""
        return [t for t in self.trajectories if t.parent is None]

    @property
    def branches(self) -> list[Trajectory]:
        """Trajectories that left another one."""
        return [t for t in self.trajectories if t.parent is not None]

    def root(self) -> Trajectory:
        """Start a trajectory from the prompt."""
        root = Trajectory(self.prompt_ids, self.start, path=(len(self.roots),))
        self.trajectories.append(root)
        return root

    def fork(self, point: BranchPoint) -> Trajectory:
        """Start a trajectory that shares `point.position` response tokens with another one.

        Raises:
            ValueError: the position is neither a sampled token nor the end of an unfinished
                trajectory.
        """
        source, position = point.trajectory, point.position
        turns, left = [], position
        for turn in source.turns:
            # Position 0 is before the first turn even if that turn sampled nothing.
            if left < len(turn) or position == 0:
                break
            turns.append(turn)
            left -= len(turn)
        if len(turns) == len(source.turns):
            fits = not source.done and left == len(source.prefill.token_ids)
            state, prefill = source.state, source.prefill
        else:
            turn = source.turns[len(turns)]
            fits = left < len(turn.action.token_ids) or position == 0
            state, prefill = turn.state, turn.action.first(left)
        if position < 0 or not fits:
            raise ValueError(
                f"position {position} is not a sampled token of this trajectory of {len(source)} "
                "response tokens; fork where response_mask is True"
            )
        twins = sum(
            t.path[: len(source.path) + 1] == (*source.path, position)
            and len(t.path) == len(source.path) + 2
            for t in self.trajectories
        )
        branch = Trajectory(
            self.prompt_ids,
            state,
            path=(*source.path, position, twins),
            turns=turns,
            prefill=prefill,
            parent=point,
        )
        self.trajectories.append(branch)
        return branch


def usable(trees: Sequence[RolloutTree]) -> list[RolloutTree]:
    """Return the trees whose tools were always available: those that may be trained on."""
    return [tree for tree in trees if tree.unavailable is None]


class Row(NamedTuple):
    """A trajectory to train on; trajectories without a row are not trained on."""

    trajectory: Trajectory
    advantages: Tensor
    """(T,), one per response token."""
