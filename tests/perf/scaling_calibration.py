"""The model of an iteration's time, fitted to this machine and then tried on what it has not seen.

    python -m tests.perf.scaling_calibration --threads 2

SmolLM2 in bfloat16. Measured alone: the peak of multiplying and the bandwidth of memory. Fitted: to
decoding steps of 1, 16 and 64 rows the launch and the shares of both that decoding reaches, to an
update the share that training reaches. Predicted: a decoding step of 4 and of 32 rows, reading
prefixes, scoring, and what a GRPO iteration with search and a calculator takes, whose lengths the
model is given and whose times it is not. The model takes every token that is scored or trained for
one that pays for the head. A script, not a test: nothing is asserted of times.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from learners import grpo
from learners.config import RunConfig
from learners.policy.loading import LoadedModel, load_model
from learners.policy.policy import Policy
from learners.runs.session import Session, run_iteration
from learners.sampling.opening import open_sampler
from learners.sampling.sampler import Request
from learners.tree import Row, Trajectory
from tests.learner_fakes import likelihood, teach
from tests.perf.clocks import seconds_of, spread
from tests.perf.iteration import environment, session
from tests.perf.sampling import without_ends
from tests.perf.scaling_model import Lengths, Machine, Model, engine, forward_seconds, step_seconds
from tests.perf.update import tree_rows

PREFIX, LENGTH = 192, 24
"""Tokens of a prefix that is decoded from, and of what is sampled after it."""
FITTED, UNSEEN = (1, 16, 64), (4, 32)
"""Rows of decoding steps."""
PREFIXES = 64
"""That are read at once, unseen."""
MIDDLE = PREFIX + LENGTH / 2


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    return [seconds_of(work, "wall") for _ in range(rounds)]


def model_of(loaded: LoadedModel) -> Model:
    """Its head is counted once where it is the embedding, too."""
    config = loaded.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    head = loaded.model.get_output_embeddings().weight.numel()
    return Model(loaded.model.num_parameters(), 2 * keys, head)


def bare() -> Machine:
    """What this machine multiplies and reads, by products and sums alone; the best of nine."""
    square, line = torch.randn(1536, 1536).bfloat16(), torch.ones(1 << 26)
    flops = 2 * 1536**3 / min(timed(lambda: square @ square, 9))
    bandwidth = 4 * len(line) / min(timed(line.sum, 9))
    print(f"{flops / 1e9:.0f} GFLOP/s and {bandwidth / 1e9:.1f} GB/s in bfloat16")
    return Machine(flops, bandwidth, 24e9, 1, 1)


def fitted(bare: Machine, model: Model, steps: dict[int, float]) -> Machine:
    """With the launch and the shares under which the model's steps are nearest to those measured.

    One row is bound by reading, which takes what the launch leaves, and at least what bare reading
    would; more rows are bound by multiplying, and their steps grow by as much with each. The launch
    is the one of a hundred under which the sum of squares of relative errors is least.
    """
    read = (2 * model.parameters + MIDDLE * model.kv_bytes) / bare.bandwidth
    one = steps[FITTED[0]]
    rows = np.array(FITTED[1:], float)
    times = np.array([steps[n] for n in FITTED[1:]])

    def each(launch: float) -> float:
        left = times - launch
        return float((rows * left / times**2).sum() / (rows**2 / times**2).sum())

    def error(launch: float) -> float:
        return float((((launch + rows * each(launch)) / times - 1) ** 2).sum())

    launch = min(np.linspace(0, max(0.0, one - read), 101), key=error)
    return replace(
        bare,
        launch=float(launch),
        multiply_share=2 * model.parameters / (bare.flops * each(launch)),
        decode_share=read / (one - launch),
    )


def decoded(loaded: LoadedModel, rounds: int) -> tuple[dict[int, list[float]], list[float]]:
    """Seconds of a step by its rows, and of reading 64 prefixes."""
    sampler = open_sampler(RunConfig.of(sampler_rows=64, autocast=True), loaded, ())

    def sample(rows: int, length: int, name: str) -> None:
        for n in range(rows):
            prefix = (100 + n, *range(100, 99 + PREFIX))  # rows share no beginning
            sampler.submit(Request(prefix, (), length, f"{name}{n}", 0))
        for _, said in sampler.completed():
            assert len(said.token_ids) == length

    steps: dict[int, list[float]] = {rows: [] for rows in sorted((*FITTED, *UNSEEN))}
    reading = []
    for number in range(rounds + 1):
        for rows, found in steps.items():
            sampler.sync()  # what was read before is forgotten
            first = seconds_of(lambda: sample(rows, 1, "read"), "wall")  # noqa: B023
            whole = seconds_of(lambda: sample(rows, LENGTH, "timed"), "wall")  # noqa: B023
            if number:
                found.append(whole / LENGTH)
            if number and rows == PREFIXES:
                reading.append(first - whole / LENGTH)
    return steps, reading


def rows_of(vocabulary: int) -> list[Row]:
    """Four of 512 tokens that share nothing but a prompt of one token."""
    shape = argparse.Namespace(seed=0, prompt=1, response=511, shortest=0, roots=4, branches=0)
    return tree_rows(shape, vocabulary)


def trained(policy: Policy, rows: Sequence[Row], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of an update and of scoring."""
    weights = [torch.full((len(row.trajectory),), 1e-4) for row in rows]
    policy.update(rows, weights, likelihood)
    return (
        timed(lambda: policy.update(rows, weights, likelihood), rounds),
        timed(lambda: policy.token_stats([row.trajectory for row in rows]), rounds),
    )


def lengths_of(trajectories: Sequence[Trajectory]) -> Lengths:
    """Of trajectories that were sampled."""
    most = max(len(one.turns) for one in trajectories)
    tokens = np.ones((len(trajectories), most))
    observed, tools = np.zeros((2, len(trajectories), most - 1))
    for number, one in enumerate(trajectories):
        for place, turn in enumerate(one.turns):
            tokens[number, place] = max(1, len(turn.action.token_ids))
            if place < len(one.turns) - 1:
                observed[number, place] = len(turn.observation_ids)
                tools[number, place] = turn.call.seconds if turn.call else 0.0
    return Lengths(tokens, np.array([len(one.turns) for one in trajectories]), observed, tools)


def played(machine: Machine, model: Model, one: Session) -> dict[str, tuple[float, float]]:
    """Predicted and measured seconds of an iteration, by phase."""
    found = run_iteration(one, grpo.iteration)
    one.iteration += 1
    trajectories = [t for tree in one.run.trees for t in tree.trajectories]
    prompt = statistics.mean(len(t.prompt_ids) for t in trajectories)
    lengths, prompts = lengths_of(trajectories), len(one.run.trees)
    sampling, *_ = engine(machine, model, lengths, prompt, prompts, lockstep=True)
    # One mini-batch: what the policy has read last is the update, if any row had credit.
    updated = one.policy.work.computed_tokens if "ledger/updated_tokens" in found else 0
    scored = found["ledger/computed_tokens"] - updated
    each = forward_seconds(machine, model.parameters)
    said = {
        "sample, tools": (sampling, found["seconds/sample"] + found.get("seconds/tools", 0)),
        "score": (scored * each, found["seconds/score"]),
        "update": (3 * updated * each, found.get("seconds/update", 0.0)),
    }
    said["all of these"] = tuple(map(sum, zip(*said.values(), strict=True)))  # type: ignore[assignment]
    print(
        f"iteration: {len(trajectories)} trajectories, {found['ledger/sampled_tokens']:.0f} tokens "
        f"sampled, {scored:.0f} read to score and {updated:.0f} to update"
    )
    return said


def report(name: str, predicted: Sequence[float], measured: Sequence[float]) -> None:
    """A line of the table; both in seconds."""
    pairs = [a / b for a, b in zip(predicted, measured, strict=True) if b]
    if not pairs:
        return print(f"| {name} | | | not measured |")
    print(
        f"| {name} | {1e3 * statistics.median(predicted):.1f} | "
        f"{1e3 * statistics.median(measured):.1f} ({spread([1e3 * s for s in measured], 1)}) | "
        f"{statistics.median(pairs):.2f} ({spread(pairs, 2)}) |"
    )


def iterations(machine: Machine, model: Model, given: argparse.Namespace) -> None:
    """Predict iterations of a policy that knows the tags."""
    config = grpo.Config.at("laptop").override(
        **{"prompts": 8, "minibatch_prompts": 8, "rollouts": 8},
        max_response_tokens=256,
        learning_rate=1e-9,  # iterations stay alike
        autocast=True,
        seed=given.seed,
    )
    seen: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate = 5e-3 if given.model == "tiny" else 2e-4
        teach(folder / "model", given.lessons, given.model, learning_rate=rate)
        one = session(folder / "run", str(folder / "model"), config, environment())
        played(machine, model, one)  # builds the search index and warms up
        for _ in range(given.rounds):
            for phase, (predicted, measured) in played(machine, model, one).items():
                both = seen.setdefault(phase, ([], []))
                both[0].append(predicted)
                both[1].append(measured)
    for phase, (predicted, measured) in seen.items():
        report(f"iteration: {phase}", predicted, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="or tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lessons", type=int, default=5, help="updates that teach it the tags")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_model(given.model)
    without_ends(loaded)
    model, machine = model_of(loaded), bare()
    steps, reading = decoded(loaded, given.rounds)
    machine = fitted(machine, model, {n: statistics.median(each) for n, each in steps.items()})
    policy = Policy(loaded, learning_rate=0.0, autocast=True)
    updates, scoring = trained(policy, rows_of(len(loaded.tokenizer)), given.rounds)
    tokens = policy.work.computed_tokens
    at_peak = forward_seconds(replace(machine, train_share=1.0), model.parameters)
    machine = replace(machine, train_share=3 * at_peak * tokens / statistics.median(updates))
    print(
        f"launch {1e3 * machine.launch:.1f} ms; shares: decoding {machine.decode_share:.2f} of the "
        f"bandwidth, {machine.multiply_share:.2f} of the peak, training {machine.train_share:.2f}"
    )
    print("| | model, ms | measured, ms | model over measured |\n|---|---:|---:|---:|")
    for n, each in steps.items():
        kind = "fitted" if n in FITTED else "unseen"
        said = step_seconds(machine, model, n, MIDDLE, 1)
        report(f"decoding, {n} rows ({kind})", [said] * given.rounds, each)
    said = forward_seconds(machine, model.parameters - model.head) * PREFIXES * PREFIX
    report(f"reading {PREFIXES} prefixes of {PREFIX} (unseen)", [said] * given.rounds, reading)
    said = forward_seconds(machine, model.parameters) * tokens
    report(f"scoring {tokens} tokens (unseen)", [said] * given.rounds, scoring)
    report(f"update of {tokens} tokens (fitted)", [3 * said] * given.rounds, updates)
    iterations(machine, model, given)


if __name__ == "__main__":
    main()
