"""What it takes to branch: continuations from points inside a finished trunk, beside re-prefill.

    python -m tests.perf.branching --model smollm2 --threads 2

Five ways, in turn, round after round; the median counts:

* a prefix at a time: what every branch needs is read for it alone, one branch after the other;
* an unshared batch: the same for all branches at once, in rows without padding;
* ours, new weights: nothing is known (the policy moved), what branches share is read once;
* ours, trunk scored: the moved policy has scored the trunk, as APPO does before it branches, and
  left keys and values; the scoring pass itself is not counted, as the method needs it anyway;
* ours, trunk known: the trunk was sampled by the same weights, its keys and values are there.

Every branch samples `--tokens` tokens. A perfect cache computes one token per branch before the
first is drawn where the trunk is known, and the trunk up to the deepest branch where it is not.
A script, not a test: times are printed and never asserted.
"""

import argparse
import io
import random
import statistics
from contextlib import nullcontext, redirect_stderr
from functools import partial
from unittest.mock import patch

import torch

from envs import EnvState
from learners.policy.loading import LoadedModel, load_model
from learners.policy.policy import Policy
from learners.sampling.sampler import Request
from learners.sampling.transformers_sampler import TransformersSampler
from learners.tree import Completion, Trajectory, Turn
from tests.perf.clocks import in_turn, measuring_parser, seconds_of, spread


def branch_requests(arguments: argparse.Namespace, vocabulary: int) -> list[Request]:
    """The trunk, then branches at uniform positions of it."""
    draw = random.Random(arguments.seed)
    trunk = tuple(draw.randrange(vocabulary) for _ in range(arguments.trunk))
    places = [draw.randrange(1, arguments.trunk + 1) for _ in range(arguments.branches)]
    branches = [
        Request(trunk[:place], (), arguments.tokens, f"branch {index}", place)
        for index, place in enumerate(places)
    ]
    return [Request(trunk, (), 1, "trunk", len(trunk)), *branches]


def served(sampler: TransformersSampler, requests: list[Request]) -> None:
    """Sample them to their ends."""
    for request in requests:
        sampler.submit(request)
    for _ in sampler.completed():
        pass


def once(
    loaded: LoadedModel, requests: list[Request], clock: str, tokens: dict[str, int], way: str
) -> float:
    """Seconds of all branches; their prefix tokens go into `tokens`."""
    # No tag ends a turn: all ways sample equally many tokens.
    rows = 1 if way == "a prefix at a time" else len(requests)
    sampler = TransformersSampler(*loaded, ("\0",), rows=rows)
    trunk, *branches = requests
    if way == "ours, trunk known":
        served(sampler, [trunk])
    if way == "ours, trunk scored":
        score(loaded, sampler, trunk.prefix_ids)
    apart = way in ("a prefix at a time", "an unshared batch")
    read = sampler.stats().prefilled_tokens
    with (
        patch("learners.sampling.transformers_sampler.prefill_shared", lambda *_: None)
        if apart
        else nullcontext()
    ):
        taken = seconds_of(lambda: branch_out(sampler, branches, way), clock)
    tokens[way] = sampler.stats().prefilled_tokens - read
    return taken


def score(loaded: LoadedModel, sampler: TransformersSampler, ids: tuple[int, ...]) -> None:
    """The policy's own pass over the trunk: its first token is the prompt."""
    state, zeros = EnvState("Toy", "1", "train", "a"), (0.0,) * (len(ids) - 1)
    trunk = Trajectory(ids[:1], state, path=(0,))
    trunk.turns.append(Turn(state, Completion(ids[1:], zeros, zeros), ()))
    Policy(loaded, learning_rate=0.0, packs="always").token_stats([trunk], sampler.keep)


def branch_out(sampler: TransformersSampler, branches: list[Request], way: str) -> None:
    if way != "a prefix at a time":
        served(sampler, branches)
        return
    for branch in branches:
        sampler.sync()  # what the branch before left behind is forgotten
        served(sampler, [branch])


WAYS = (
    "a prefix at a time",
    "an unshared batch",
    "ours, new weights",
    "ours, trunk scored",
    "ours, trunk known",
)


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--model", default="tiny", help="what --model of a run takes")
    parser.add_argument("--trunk", type=int, default=512, help="tokens")
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1, help="sampled by each branch")
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with redirect_stderr(io.StringIO()):  # a bar of progress
        loaded = load_model(arguments.model)
    if arguments.bfloat16:
        loaded.model.to(torch.bfloat16)
    requests = branch_requests(arguments, loaded.model.config.vocab_size)
    tokens: dict[str, int] = {}
    measured = partial(once, loaded, requests, arguments.clock, tokens)
    seconds = in_turn({way: partial(measured, way) for way in WAYS}, arguments.rounds)
    lengths = [len(branch.prefix_ids) for branch in requests[1:]]
    perfect = {
        "ours, new weights": max(lengths) - 1 + len(lengths),
        "ours, trunk scored": len(lengths),
        "ours, trunk known": len(lengths),
    }
    kind = "bfloat16" if arguments.bfloat16 else "float32"
    print(
        f"{arguments.model}, {kind}, {arguments.threads} threads, {arguments.clock} time: "
        f"{len(lengths)} branches of {sum(lengths)} prefix tokens, {arguments.tokens} sampled each"
    )
    print(
        f"{'':20}{'prefix tokens':>14}{'perfect':>9}{'saved':>7}{'seconds':>9}"
        f"{'spread':>16}{'faster':>8}"
    )
    first = statistics.median(seconds[WAYS[0]])
    for way in WAYS:
        best = perfect.get(way)
        of = "" if best is None else f"{(sum(lengths) - tokens[way]) / (sum(lengths) - best):.0%}"
        median = statistics.median(seconds[way])
        print(
            f"{way:20}{tokens[way]:14}{best or '':>9}{of:>7}{median:9.3f}"
            f"{spread(seconds[way]):>16}{first / median:8.1f}"
        )


if __name__ == "__main__":
    main()
