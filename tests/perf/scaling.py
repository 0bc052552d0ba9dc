"""How long an iteration takes on how many GPUs: a model on paper, and what breaks first.

    python -m tests.perf.scaling             tables of docs/scaling.md, and published figures
    python -m tests.perf.scaling calibrate   the formulas against this machine's measured times

Sampling is simulated trajectory by trajectory: turns of tokens, tools, observations. A step of
decoding costs what reading the weights and its rows' keys and values costs, or what multiplying
does, whichever is more, and a launch. Scoring and updates cost operations at a share of the peak,
and the gradient's way between GPUs. Every number that is no measurement is a field below.
"""

import argparse
import statistics
import time
from collections.abc import Callable
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
    """Of the peak that training reaches. [large-model training: 0.3 to 0.45]"""
    decode_share: float = 0.6
    """Of the bandwidth that decoding reaches."""
    launch: float = 0.004
    """Seconds that a decoding step takes beside its work."""
    node: int = 8
    """GPUs of a node."""


A100 = Machine(312e12, 2.0e12, 80e9, 300e9, 25e9)
H100 = Machine(990e12, 3.35e12, 80e9, 450e9, 50e9)


@dataclass(frozen=True)
class Model:
    """A policy."""

    parameters: float
    kv_bytes: float
    """Keys and values of one token."""


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
    multiply = 2 * model.parameters * rows / (machine.flops * machine.train_share * gpus)
    return max(memory, multiply) + machine.launch


def drawn(work: Work, rows: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (rows, turns) and tool seconds (rows, turns - 1), log-normal with the means given."""
    shift = work.spread**2 / 2

    def around(mean: float, shape: tuple[int, int]) -> np.ndarray:
        return draw.lognormal(np.log(mean) - shift, work.spread, shape)

    tokens = np.maximum(1, around(work.turn_tokens, (rows, work.turns))).round()
    observed = work.observed_tokens * np.arange(work.turns)
    room = np.maximum(0, work.most_tokens - observed - np.cumsum(tokens, 1) + tokens)
    return np.minimum(tokens, room), around(work.tool_seconds, (rows, work.turns - 1))


def engine(
    machine: Machine, model: Model, work: Work, rows: int, gpus: int, seed: int, lockstep: bool
) -> tuple[float, float, float]:
    """Seconds, idle seconds and mean rows of one engine that samples so many trajectories."""
    tokens, tools = drawn(work, rows, np.random.default_rng(seed))
    turn, left = np.zeros(rows, int), tokens[:, 0].copy()
    context, ready = np.full(rows, float(work.prompt_tokens)), np.zeros(rows)
    done, owed = np.zeros(rows, bool), np.zeros(rows)
    prefill = 2 * model.parameters / (machine.flops * machine.train_share * gpus)
    now = idle = 0.0
    sampled = steps = 0.0
    now += prefill * work.prompt_tokens * max(1, rows / work.rollouts)
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
        done |= over & (turn >= work.turns)
        calling = np.flatnonzero(over & ~done)
        ready[calling] = now + tools[calling, turn[calling] - 1]
        context[calling] += work.observed_tokens
        owed[calling] = work.observed_tokens
        left[calling] = np.maximum(1, tokens[calling, turn[calling]])
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
    rate = machine.flops * machine.train_share * gpus
    weights = 2 * model.parameters
    across = machine.node_link if gpus <= machine.node else machine.net_link
    # FSDP: weights gathered twice, gradients scattered once, per optimiser step.
    moved = 3 * weights * work.minibatches / across
    # forward, recomputed forward, backward
    update = 8 * model.parameters * tokens / rate * (1 - work.branches / work.rollouts)
    calls = sum(one.trajectories * (one.turns - 1) for one in planned)
    return Times(
        sample=sample,
        idle=sum(one.idle for one in rounds),
        score=2 * model.parameters * tokens * work.passes / rate,
        update=update,
        exchange=max(0.0, moved - 0.7 * update),
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
    together = max(1, int(np.ceil(2 * model.parameters / (0.4 * machine.memory))))
    engines = min(max(1, gpus // together), work.trajectories)
    rows = int(np.ceil(work.trajectories / engines))
    # Engines differ by what they draw only; a few stand for all, the slowest decides.
    runs = [
        engine(machine, model, work, rows, together, seed + n, lockstep)
        for n in range(min(engines, 16))
    ]
    return Sampled(
        max(run[0] for run in runs),
        statistics.mean(run[1] for run in runs),
        statistics.mean(run[2] for run in runs),
    )


def row(name: str, times: Times) -> str:
    parts = (times.sample, times.idle, times.score, times.update, times.exchange, times.push)
    return (
        f"| {name} | {times.all:.0f} | "
        + " | ".join(f"{part:.0f}" if part >= 10 else f"{part:.1f}" for part in parts)
        + f" | {times.rows:.0f} | {times.calls:.0f} |"
    )


HEAD = """\
| GPUs | iteration s | sample | of it idle | score | update | exchange | push | rows | calls/s |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def tables() -> None:
    """What docs/scaling.md shows."""
    work = Work()
    print("7.6B parameters, 128 prompts x 16, H100, tools of 1 s, overlap\n" + HEAD)
    for gpus in (8, 64, 512):
        print(row(str(gpus), iteration(H100, QWEN_7B, work, gpus)))
    appo = replace(work, branches=12)
    print("\nAPPO: 4 initial rollouts, 12 branches in 8 mini-batches\n" + HEAD)
    for gpus in (8, 64, 512):
        print(row(str(gpus), iteration(H100, QWEN_7B, appo, gpus)))
    name = "8 times the prompts, 64"
    print(row(name, iteration(H100, QWEN_7B, replace(appo, prompts=1024), 64)))
    print(row("1 mini-batch, 64", iteration(H100, QWEN_7B, replace(appo, minibatches=1), 64)))
    print("\n64 GPUs, what each part does\n" + HEAD.replace("GPUs", "change", 1))
    for name, changed, lockstep in (
        ("as above", work, False),
        ("lockstep", work, True),
        ("tools of 5 s", replace(work, tool_seconds=5.0), False),
        ("tools of 5 s, lockstep", replace(work, tool_seconds=5.0), True),
        ("half of the tokens shared", replace(work, shared=2.0), False),
        ("8 times the prompts", replace(work, prompts=1024), False),
    ):
        print(row(name, iteration(H100, QWEN_7B, changed, 64, lockstep)))
    print(
        "\ntrajectories per second and GPU\n| prompts | 8 GPUs | 64 | 512 |\n|---|---:|---:|---:|"
    )
    for prompts in (128, 1024, 8192):
        changed = replace(work, prompts=prompts)
        runs = [(gpus, iteration(H100, QWEN_7B, changed, gpus)) for gpus in (8, 64, 512)]
        rates = [changed.trajectories / times.all / gpus for gpus, times in runs]
        print(f"| {prompts} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")
    print("\npublished for a step on 8 GPUs; A100 and lockstep assumed where the source is silent")
    for name, model, changed, said in PUBLISHED:
        times = iteration(A100, model, changed, 8, lockstep=True)
        print(f"{name}: {said}; {times.all / 60:.1f} min by the model")


PUBLISHED = (
    ("Tool-Star issue 15: 8B, 128 x 16", LLAMA_8B, Work(tool_seconds=3.0), "about 15 min"),
    ("ARPO: 14B, 128 x 16", QWEN_14B, Work(tool_seconds=3.0), "about 10 min"),
    ("verl issue 1885: 7B, 512 x 5, search", QWEN_7B, Work(512, 5, turns=3), "25 min, 3.3 with 4"),
    ("rllm issue 29: 7B, 128 x 8", QWEN_7B, Work(128, 8), "6.6 min, on A100"),
    ("R-Search issue 2: 7B, 256 x 5", QWEN_7B, Work(256, 5, turns=3), "5 to 9 min"),
)
"""Seconds of a step are the sources'; batch and lengths ours where they do not say."""


def calibrate(rounds: int) -> None:
    """Rates of this machine, then decoding and training by the formulas and as measured."""
    import torch

    from learners.models import load_model
    from learners.run_config import RunConfig
    from learners.sampler import Request
    from learners.samplers import open_sampler

    loaded = load_model("smollm2")
    loaded.model.to(torch.bfloat16)
    size, length = loaded.model.num_parameters(), 24
    square, line = torch.randn(1536, 1536).bfloat16(), torch.ones(1 << 26)
    flops = 2 * 1536**3 / min(timed(lambda: square @ square, 9))
    bandwidth = 4 * len(line) / min(timed(line.sum, 9))
    machine = Machine(flops, bandwidth, 0, 0, 0, train_share=1, decode_share=1, launch=0)
    model = Model(size, 30 * 3 * 64 * 2 * 2)
    print(f"{flops / 1e9:.0f} GFLOP/s and {bandwidth / 1e9:.1f} GB/s, bfloat16")
    sampler = open_sampler(RunConfig(sampler_rows=64), loaded, ())

    def sample(rows: int) -> None:
        for n in range(rows):
            sampler.submit(Request(tuple(range(100, 292)), (), length, str(n), 0))
        list(sampler.completed())

    for rows in (1, 16, 64):
        sample(rows)  # from here on the prefixes are known, and only new tokens count
        report(
            f"decoding, {rows} rows, ms a step",
            [1e3 * seconds / length for seconds in timed(lambda: sample(rows), rounds)],  # noqa: B023
            1e3 * step_seconds(machine, model, rows, 204, 1),
        )
    ids = torch.randint(100, 20_000, (4, 256), generator=torch.Generator().manual_seed(0))
    loaded.model.train()
    report(
        "forward and backward, 1,024 tokens, ms",
        [1e3 * t for t in timed(lambda: loaded.model(ids, labels=ids).loss.backward(), rounds)],
        1e3 * 6 * size * ids.numel() / flops,
    )


def report(name: str, measured: list[float], limit: float) -> None:
    middle = statistics.median(measured)
    spread = f"{min(measured):.1f} to {max(measured):.1f}"
    print(
        f"{name}: {middle:.1f} ({spread}) measured, {limit:.1f} at the limit, {limit / middle:.2f}"
    )


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="tables", choices=("tables", "calibrate"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.what == "tables":
        tables()
    else:
        calibrate(given.rounds)


if __name__ == "__main__":
    main()
