"""How long an iteration takes on how many GPUs: the model behind `tests.perf.scaling`.

Sampling is simulated trajectory by trajectory: turns of tokens, tools, observations. A step of
decoding costs what reading the weights and its rows' keys and values costs, or what multiplying
does, whichever is more, and a launch. Scoring and updates cost operations at a share of the peak,
and the gradient's way between GPUs. Every number that is assumed is a field below.
"""

import statistics
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Machine:
    """One accelerator and its links."""

    flops: float
    """Peak operations per second in bfloat16."""
    bandwidth: float
    """Bytes per second between memory and cores."""
    memory: float
    """Bytes."""
    node_link: float
    """Bytes per second between GPUs of one node, one way."""
    net_link: float
    """Bytes per second per GPU between nodes."""
    train_share: float = 0.35
    """Of the peak that training, scoring and reading prefixes reach. [large-model training: 0.3 to
    0.45]"""
    decode_share: float = 0.6
    """Of the bandwidth that decoding reaches."""
    multiply_share: float = 0.35
    """Of the peak that decoding many rows reaches."""
    launch: float = 0.004
    """Seconds that a decoding step takes beside its work."""
    node: int = 8
    """GPUs of a node."""
    hidden: float = 0.7
    """Of an update's time, how much can hide what goes between GPUs."""
    weights_share: float = 0.4
    """Of the memory, what an engine's weights may take; larger models take several GPUs."""


A100 = Machine(312e12, 2.0e12, 80e9, 300e9, 25e9)
H100 = Machine(990e12, 3.35e12, 80e9, 450e9, 50e9)


@dataclass(frozen=True)
class Model:
    """A policy."""

    parameters: float
    kv_bytes: float
    """Keys and values of one token."""
    head: float = 0.0
    """Of the parameters, what only tokens pay that are sampled: prefixes are read without it."""


QWEN_7B = Model(7.6e9, 57_344)  # 28 layers, 4 key heads of 128, two of two bytes
QWEN_14B = Model(14.8e9, 196_608)  # 48 layers, 8 key heads of 128
LLAMA_8B = Model(8.0e9, 131_072)  # 32 layers, 8 key heads of 128


@dataclass(frozen=True)
class Work:
    """One iteration."""

    prompts: int = 128
    rollouts: int = 16
    prompt_tokens: int = 400
    turns: int = 4
    """Sampled turns of a trajectory; all but the last call a tool."""
    turn_tokens: float = 250.0
    """Mean of a turn's sampled tokens."""
    spread: float = 0.6
    """Standard deviation of the logarithm of a turn's tokens, and of a tool's seconds."""
    observed_tokens: int = 350
    """Of one tool result."""
    tool_seconds: float = 1.0
    """Mean."""
    minibatches: int = 8
    """Optimiser steps."""
    passes: int = 2
    """Forward passes for scoring: the old policy's and the branching score's."""
    shared: float = 1.0
    """Tokens trained over unique tokens trained."""
    most_tokens: int = 4096
    branches: int = 0
    """Of a prompt's trajectories, graded and not trained on: sampled from within the others once
    the mini-batches before have been trained on, with the weights as they are then."""
    branch_turns: int = 2
    """Of a branch: it begins in the middle of its parent, in the mean."""

    @property
    def trajectories(self) -> int:
        return self.prompts * self.rollouts

    def rounds(self) -> "list[Work]":
        """What is sampled at a time: initial rollouts, then the branches of each mini-batch."""
        first = replace(self, rollouts=self.rollouts - self.branches, branches=0)
        if not self.branches:
            return [first]
        behind = self.turns - self.branch_turns
        branches = replace(
            self,
            prompts=-(-self.prompts // self.minibatches) * first.rollouts,
            rollouts=self.branches // first.rollouts,
            prompt_tokens=int(
                self.prompt_tokens + behind * (self.turn_tokens + self.observed_tokens)
            ),
            turns=self.branch_turns,
            branches=0,
        )
        return [first, *[branches] * self.minibatches]


@dataclass(frozen=True)
class Times:
    """Of one iteration, in seconds."""

    sample: float
    """Until the last trajectory ends."""
    idle: float
    """Of these, how long an engine has no row to decode, mean over engines."""
    score: float
    update: float
    exchange: float
    """Gradients and weights on their way in updates, not hidden behind anything."""
    push: float
    """New weights to the engines."""
    rows: float
    """Rows of a decoding step, mean."""
    calls: float
    """Tool calls per second while sampling."""

    @property
    def all(self) -> float:
        return self.sample + self.score + self.update + self.exchange + self.push


def step_seconds(machine: Machine, model: Model, rows: float, context: float, gpus: int) -> float:
    """One token for each of some rows, each with so many tokens of context, on `gpus` together."""
    read = 2 * model.parameters + rows * context * model.kv_bytes
    memory = read / (machine.bandwidth * machine.decode_share * gpus)
    multiply = 2 * model.parameters * rows / (machine.flops * machine.multiply_share * gpus)
    return max(memory, multiply) + machine.launch


def forward_seconds(machine: Machine, parameters: float, gpus: int = 1) -> float:
    """One of many tokens through so many parameters, forward."""
    return 2 * parameters / (machine.flops * machine.train_share * gpus)


class Lengths(NamedTuple):
    """Of some trajectories, whose turns are at most so many."""

    tokens: np.ndarray
    """(trajectories, turns) sampled, at least one; what is behind a trajectory's last is not looked
    at."""
    turns: np.ndarray
    """(trajectories,) how many each has."""
    observed: np.ndarray
    """(trajectories, turns - 1) tokens of a tool's result."""
    tools: np.ndarray
    """(trajectories, turns - 1) seconds."""


def drawn(work: Work, rows: int, draw: np.random.Generator) -> Lengths:
    """Tokens and tool seconds, log-normal with the means given."""
    shift = work.spread**2 / 2

    def around(mean: float, shape: tuple[int, int]) -> np.ndarray:
        return draw.lognormal(np.log(mean) - shift, work.spread, shape)

    tokens = np.maximum(1, around(work.turn_tokens, (rows, work.turns))).round()
    observed = work.observed_tokens * np.arange(work.turns)
    room = np.maximum(1, work.most_tokens - observed - np.cumsum(tokens, 1) + tokens)
    calls = (rows, work.turns - 1)
    return Lengths(
        np.minimum(tokens, room),
        np.full(rows, work.turns),
        np.full(calls, float(work.observed_tokens)),
        around(work.tool_seconds, calls),
    )


def engine(
    machine: Machine,
    model: Model,
    lengths: Lengths,
    prompt_tokens: float,
    prompts: float,
    gpus: int = 1,
    lockstep: bool = False,
) -> tuple[float, float, float]:
    """Seconds, idle seconds and mean rows of one engine that samples trajectories of prompts."""
    tokens, turns, observed, tools = lengths
    rows = len(tokens)
    turn, left = np.zeros(rows, int), tokens[:, 0].copy()
    context, ready = np.full(rows, float(prompt_tokens)), np.zeros(rows)
    done, owed = np.zeros(rows, bool), np.zeros(rows)
    prefill = forward_seconds(machine, model.parameters - model.head, gpus)
    now = idle = 0.0
    sampled = steps = 0.0
    now += prefill * prompt_tokens * max(1, prompts)
    while not done.all():
        members = ~done
        if lockstep:  # a round begins when the last tool of the one before has answered
            members = members & (turn == turn[members].min())
        waits = ready[members].max() if lockstep else ready[members].min()
        if waits > now:
            idle, now = idle + waits - now, waits
        active = members & (ready <= now)
        now += prefill * owed[active].sum()
        owed[active] = 0
        # Rows stay the same until the next one ends its turn or comes back from its tool.
        ends = left[active].min()
        each = step_seconds(machine, model, active.sum(), context[active].mean(), gpus)
        coming = ready[members & ~active]
        if len(coming):
            ends = min(ends, max(1.0, np.ceil((coming.min() - now) / each)))
        now += ends * each
        sampled, steps = sampled + ends * active.sum(), steps + ends
        left[active] -= ends
        context[active] += ends
        over = active & (left <= 0)
        turn[over] += 1
        done |= over & (turn >= turns)
        calling = np.flatnonzero(over & ~done)
        ready[calling] = now + tools[calling, turn[calling] - 1]
        owed[calling] = observed[calling, turn[calling] - 1]
        context[calling] += owed[calling]
        left[calling] = tokens[calling, turn[calling]]
    return now, idle, sampled / max(steps, 1)


def iteration(
    machine: Machine, model: Model, work: Work, gpus: int, lockstep: bool = False, seed: int = 0
) -> Times:
    """An iteration in which the same GPUs sample, score and train, one after the other."""
    planned = work.rounds()
    rounds = [sampled(machine, model, one, gpus, lockstep, seed) for one in planned]
    sample = sum(one.seconds for one in rounds)
    trained = work.turns * work.turn_tokens + (work.turns - 1) * work.observed_tokens
    tokens = work.trajectories * (trained + work.prompt_tokens) / work.shared
    forward = tokens * forward_seconds(machine, model.parameters, gpus)
    weights = 2 * model.parameters
    across = machine.node_link if gpus <= machine.node else machine.net_link
    # FSDP: weights gathered twice, gradients scattered once, per optimiser step.
    moved = 3 * weights * work.minibatches / across
    # forward, recomputed forward, and a backward pass that is two
    update = 4 * forward * (1 - work.branches / work.rollouts)
    calls = sum(one.trajectories * (one.turns - 1) for one in planned)
    return Times(
        sample=sample,
        idle=sum(one.idle for one in rounds),
        score=forward * work.passes,
        update=update,
        exchange=max(0.0, moved - machine.hidden * update),
        push=weights / across * len(rounds),
        rows=sum(one.rows * one.seconds for one in rounds) / sample,
        calls=calls / sample,
    )


class Sampled(NamedTuple):
    """A round of sampling on all engines."""

    seconds: float
    """Until the last trajectory ends."""
    idle: float
    """Without a row to decode, mean over engines."""
    rows: float
    """Of a decoding step, mean."""


def sampled(
    machine: Machine, model: Model, work: Work, gpus: int, lockstep: bool, seed: int
) -> Sampled:
    """Trajectories of a round, spread over engines of as few GPUs as hold the weights."""
    together = max(1, int(np.ceil(2 * model.parameters / (machine.weights_share * machine.memory))))
    engines = min(max(1, gpus // together), work.trajectories)
    rows = int(np.ceil(work.trajectories / engines))
    # Engines differ by what they draw only; a few stand for all, the slowest decides.
    prompts = rows / work.rollouts
    runs = [
        engine(
            *(machine, model, drawn(work, rows, np.random.default_rng(seed + n))),
            *(work.prompt_tokens, prompts, together, lockstep),
        )
        for n in range(min(engines, 16))
    ]
    return Sampled(
        max(run[0] for run in runs),
        statistics.mean(run[1] for run in runs),
        statistics.mean(run[2] for run in runs),
    )
