"""Where the time of an APPO iteration goes, and what it went to before each token was paid once.

    python -m tests.perf.iteration                      a tiny model that knows the tags
    python -m tests.perf.iteration --model smollm2 --prompts 1 --rollouts 8 --tokens 48

SyntheticQA with its search and a calculator; sampling, scoring, updating, tools, and the rest. The
target: sampling and the policy's passes (scoring and update) take at least 90 % of what is not
spent in tools; what is left is bookkeeping.

Beside it the same iterations by a plain path, in turn: rows padded, not read as trees (a switch of
`Policy`), attention that repeats grouped keys (transformers' own), prompts that rows share read for
each (`prefill_shared` replaced), and no prefix known from an earlier turn, root or branch
(`KVCache.longest_prefix` replaced). What cannot be turned off stays in both: finished rows leave
the batch, and tokens are drawn by inverse CDF; `tests.perf.sampling` has the loop without them.
Draws belong to tokens, so both sample the same until roundings differ: the tokens are printed. A
script, not a test: times are printed and never asserted.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from benchmarks import BENCHMARKS, Score
from envs import ToolEnv
from learners import appo
from learners.config import RunConfig
from learners.policy.batch import Packs
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.runs.session import Session, run_iteration, save_iteration
from learners.sampling.kv_cache import KVCache, PrefixMatch
from learners.sampling.opening import open_sampler
from tests.learner_fakes import teach
from tests.perf.clocks import CLOCKS, measuring_parser, ratio, spread

TARGET = 0.9
PHASES = ("sample", "score", "update", "tools")
TOOLS = ("search", "calculator")


def longer_is_better(answer: str, task: object) -> Score:
    """Rewards that differ within most groups, so that there is something to train on."""
    return Score(float(len(answer.strip()) > 4), "exact", answer)


def environment() -> ToolEnv:
    known = BENCHMARKS["SyntheticQA"]
    judged = replace(known, score=longer_is_better, training_score=longer_is_better)
    return ToolEnv(judged, split="train", tools=TOOLS)


def session(
    folder: Path, model: str, config: RunConfig, env: ToolEnv, *, plain: bool = False
) -> Session:
    """One that runs iterations of any method."""
    with redirect_stderr(StringIO()):  # a bar of progress
        loaded = load_model(model)
    if plain:
        loaded.model.set_attn_implementation("sdpa")
    sampler = open_sampler(config, loaded, env.stop_tags)
    rollouts = Rollouts(env, sampler, loaded.tokenizer, config.sampling.max_response_tokens)
    rate = config.optimisation.learning_rate or 1e-4
    packs: Packs = "never" if plain else "auto"
    policy = Policy(loaded, learning_rate=rate, packs=packs, autocast=config.optimisation.autocast)
    return Session.of(config, policy, rollouts, folder)


@contextmanager
def paid_twice() -> Iterator[None]:
    """Nothing that was read is known, and nothing is shared."""
    with (
        patch("learners.sampling.transformers_sampler.prefill_shared", lambda *_: None),
        patch.object(KVCache, "longest_prefix", lambda *_: PrefixMatch(0, None)),
    ):
        yield


@contextmanager
def counting(clock: str) -> Iterator[None]:
    """An iteration's phases and whole by a clock."""
    counted = SimpleNamespace(**vars(time) | {"perf_counter": CLOCKS[clock]})
    with patch("learners.ledger.time", counted), patch("learners.runs.session.time", counted):
        yield


def shares(total: Counter[str]) -> None:
    """The table of one way."""
    whole = total["iteration"]
    rest = whole - sum(total[name] for name in PHASES)
    print(f"{'':12}{'seconds':>9}{'of all':>9}{'without tools':>15}")
    for name, seconds in [*((n, total[n]) for n in PHASES), ("rest", rest), ("all", whole)]:
        outside = f"{seconds / (whole - total['tools']):15.1%}" if name != "tools" else ""
        print(f"{name:12}{seconds:9.2f}{seconds / whole:9.1%}{outside if name != 'all' else ''}")


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--model", default="taught", help="taught, or what --model of a run takes")
    parser.add_argument("--prompts", type=int, default=8, help="of an iteration, two a mini-batch")
    parser.add_argument("--rollouts", type=int, default=8, help="of a prompt, a quarter initial")
    parser.add_argument("--tokens", type=int, default=384, help="of a response, at most")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = appo.Config.at("laptop").override(
        prompts=given.prompts,
        minibatch_prompts=min(2, given.prompts),
        rollouts=given.rollouts,
        initial_rollouts=max(1, given.rollouts // 4),
        max_response_tokens=given.tokens,
        seed=given.seed,
    )
    totals: dict[str, Counter[str]] = {"before": Counter(), "ours": Counter()}
    seconds: dict[str, list[float]] = {way: [] for way in totals}
    with tempfile.TemporaryDirectory() as name, counting(given.clock):
        folder, model = Path(name), given.model
        if model == "taught":
            teach(folder / "model")
            model = str(folder / "model")
        env = environment()
        both = {
            way: session(folder / way, model, config, env, plain=way == "before") for way in totals
        }
        for number in range(given.rounds + 1):
            for way, one in both.items():
                with paid_twice() if way == "before" else nullcontext():
                    found = iterated(one)
                if number:  # the first builds the search index and warms up
                    totals[way].update(found)
                    seconds[way].append(found["iteration"])
    report(given.clock, given.threads, totals, seconds)


def iterated(one: Session) -> Counter[str]:
    """Seconds and counts of an iteration; what is written after it stands apart."""
    metrics = {"iteration": one.iteration, **run_iteration(one, appo.iteration)}
    with one.ledger.phase("record"):
        save_iteration(one, metrics, last=False)
    found = Counter({name: metrics.get(f"seconds/{name}", 0.0) for name in PHASES})
    return found + Counter(
        iteration=metrics["seconds/iteration"],
        sampled=metrics["ledger/sampled_tokens"],
        prefilled=metrics.get("ledger/prefilled_tokens", 0),
        rows=metrics["ledger/scored_tokens"] + metrics.get("ledger/updated_tokens", 0),
        computed=metrics["ledger/computed_tokens"],
        record=one.ledger.take()["seconds/record"],
    )


def report(
    clock: str, threads: int, totals: dict[str, Counter[str]], seconds: dict[str, list[float]]
) -> None:
    for way, total in totals.items():
        print(
            f"{way}: {len(seconds[way])} iterations, {threads} threads, {clock} time: "
            f"{total['sampled']:.0f} tokens sampled after reading {total['prefilled']:.0f}, "
            f"{total['computed']:.0f} computed to score and update rows of {total['rows']:.0f}; "
            f"an iteration {spread(seconds[way], 2)} s"
        )
        shares(total)
    total = totals["ours"]
    outside = total["iteration"] - total["tools"]
    passes = (total["sample"] + total["score"] + total["update"]) / outside
    print(f"sampling, scoring and update: {passes:.1%} of what is not tools; target {TARGET:.0%}")
    print(f"beside the iteration: {total['record']:.2f} s for rollouts, metrics and checkpoints")
    print(f"an iteration before over one of ours: {ratio(seconds['before'], seconds['ours'])}")
    print(f"bound on scoring and update, by tokens: {total['rows'] / total['computed']:.2f}")


if __name__ == "__main__":
    main()
