"""What it takes to branch: continuations from points inside a finished trunk, beside re-prefill.

    python -m tests.perf.branching --model smollm2 --threads 2

Four ways, in turn, round after round; the median counts:

* a prefix at a time: what every branch needs is read for it alone, one branch after the other;
* a padded batch: the same for all branches at once, as a batched `generate` does;
* ours, new weights: nothing is known (the policy moved), what branches share is read once;
* ours, trunk known: the trunk was sampled by the same weights, its keys and values are there.

Every branch samples `--tokens` tokens. A perfect cache computes one token per branch before the
first is drawn where the trunk is known, and the trunk up to the deepest branch where it is not.
A script, not a test: times are printed and never asserted.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from unittest.mock import patch

import torch

from learners.models import LoadedModel, load_model
from learners.sampler import Request, TransformersSampler

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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
    loaded: LoadedModel, requests: list[Request], way: str, clock: Callable[[], float]
) -> tuple[float, int]:
    """Seconds and prefix tokens of all branches."""
    # No tag ends a turn: all ways sample equally many tokens.
    rows = 1 if way == "a prefix at a time" else len(requests)
    sampler = TransformersSampler(*loaded, ("\0",), rows=rows)
    trunk, *branches = requests
    if way == "ours, trunk known":
        served(sampler, [trunk])
    apart = way in ("a prefix at a time", "a padded batch")
    read = sampler.prefilled_tokens
    with patch("learners.sampler.read_together", lambda *_: None) if apart else nullcontext():
        begun = clock()
        if way == "a prefix at a time":
            for branch in branches:
                sampler.sync()  # what the branch before left behind is forgotten
                served(sampler, [branch])
        else:
            served(sampler, branches)
    return clock() - begun, sampler.prefilled_tokens - read


WAYS = ("a prefix at a time", "a padded batch", "ours, new weights", "ours, trunk known")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="what --model of a run takes")
    parser.add_argument("--trunk", type=int, default=512, help="tokens")
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1, help="sampled by each branch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: where others use the machine too"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with redirect_stderr(io.StringIO()):  # a bar of progress
        loaded = load_model(arguments.model)
    if arguments.bfloat16:
        loaded.model.to(torch.bfloat16)
    requests = branch_requests(arguments, loaded.model.config.vocab_size)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens: dict[str, int] = {}
    for number in range(arguments.rounds + 1):
        for way in WAYS:
            taken, tokens[way] = once(loaded, requests, way, CLOCKS[arguments.clock])
            if number:  # the first round warms up
                seconds[way].append(taken)
    lengths = [len(branch.prefix_ids) for branch in requests[1:]]
    perfect = {
        "ours, new weights": max(lengths) - 1 + len(lengths),
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
        spread = f"{min(seconds[way]):.3f}-{max(seconds[way]):.3f}"
        median = statistics.median(seconds[way])
        print(
            f"{way:20}{tokens[way]:14}{best or '':>9}{of:>7}{median:9.3f}{spread:>16}"
            f"{first / median:8.1f}"
        )


if __name__ == "__main__":
    main()
