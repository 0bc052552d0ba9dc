"""What an update on a tree of rollouts costs: ours beside padded rows and rows without padding.

    python -m tests.perf.update --model smollm2 --threads 2

One prompt, some roots, branches of every root at uniform positions. All ways run in turn, round
after round, so that a busy machine slows all alike; seconds are those of the median round, ratios
are of one round each, and the median one counts. The bound is the number of tokens of all rows over
that of different ones, which no exact way of reading each row can beat where attention is small;
that of products counts the head, too, which only tokens of responses have, and they share less than
prompts do. A script, not a test: times are printed and never asserted.
"""

import argparse
import io
import random
import statistics
from contextlib import nullcontext, redirect_stderr
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch

from envs import EnvState
from learners.policy.loading import LoadedModel, load_model
from learners.policy.policy import Policy
from learners.tree import Completion, Row, Trajectory, Turn
from tests.learner_fakes import likelihood
from tests.perf.clocks import in_turn, measuring_parser, ratio, ratios, seconds_of, spread

STATE = EnvState("Toy", "1", "train", "a")
PACKED = "packed, nothing shared"
WAYS = {"padded rows": "never", PACKED: "always", "ours: tree": "auto"}


def tree_rows(arguments: argparse.Namespace, vocabulary: int) -> list[Row]:
    """Roots and branches that begin as they do."""
    draw = random.Random(arguments.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(count))

    def length() -> int:
        return draw.randint(arguments.shortest or arguments.response, arguments.response)

    prompt, responses = ids(arguments.prompt), []
    for _ in range(arguments.roots):
        root = ids(length())
        responses.append(root)
        for _ in range(arguments.branches):
            at = draw.randrange(len(root))
            responses.append(root[:at] + ids(max(1, length() - at)))
    rows = []
    for response in responses:
        made = Trajectory(prompt, STATE, path=(len(rows),))
        zeros = (0.0,) * len(response)
        made.turns.append(Turn(STATE, Completion(response, zeros, zeros), ()))
        rows.append(Row(made, torch.ones(len(response))))
    return rows


def once(policy: Policy, rows: list[Row], clock: str, *, shared: bool) -> float:
    """Seconds of an update."""
    weights = [torch.full((len(row.trajectory),), 1 / len(rows)) for row in rows]
    nothing = patch("learners.policy.batch.common_prefix_length", lambda one, other: 0)
    with nullcontext() if shared else nothing:
        return seconds_of(lambda: policy.update(rows, weights, likelihood), clock)


def policies(loaded: LoadedModel, arguments: argparse.Namespace) -> dict[str, Policy]:
    """One per way, over the same weights; a rate of 0 leaves them as they are."""
    return {
        way: Policy(
            loaded,
            learning_rate=0.0,
            microbatch_tokens=arguments.microbatch_tokens,
            autocast=arguments.autocast,
            packs=packs,
        )
        for way, packs in WAYS.items()
    }


class Bounds(NamedTuple):
    """What all rows take over what their different tokens take."""

    tokens: float
    products: float


def bounds_of(rows: list[Row], loaded: LoadedModel, prompt: int) -> Bounds:
    """Products: three passes over the layers, four over the head, whose first is repeated."""
    whole = [(*row.trajectory.prompt_ids, *row.trajectory.response_ids) for row in rows]
    different = {ids[: end + 1] for ids in whole for end in range(len(ids))}
    head = loaded.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in loaded.model.base_model.parameters()) - head

    def products(lengths: list[int]) -> int:
        return 3 * body * len(lengths) + 4 * head * sum(length > prompt for length in lengths)

    every = [end + 1 for ids in whole for end in range(len(ids))]
    least = products(list(map(len, different)))
    return Bounds(len(every) / len(different), products(every) / least)


def add_tree_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, and the tree that it is updated on."""
    parser.add_argument("--model", default="tiny", help="what --model of a run takes")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens, at most")
    parser.add_argument("--shortest", type=int, help="response; as long as the longest by default")
    parser.add_argument("--roots", type=int, default=4)
    parser.add_argument("--branches", type=int, default=3, help="of each root")
    parser.add_argument("--microbatch-tokens", type=int, default=4096)


def main() -> None:
    parser = measuring_parser(__doc__)
    add_tree_arguments(parser)
    parser.add_argument("--autocast", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with redirect_stderr(io.StringIO()):  # a bar of progress
        loaded = load_model(arguments.model)
    rows = tree_rows(arguments, loaded.model.config.vocab_size)
    ways = policies(loaded, arguments)
    measured = {
        way: partial(once, policy, rows, arguments.clock, shared=way != PACKED)
        for way, policy in ways.items()
    }
    seconds = in_turn(measured, arguments.rounds)
    ours = ways["ours: tree"].work
    bound, of_products = bounds_of(rows, loaded, arguments.prompt)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    kind = "bfloat16" if arguments.autocast else "float32"
    print(
        f"{arguments.model}, {kind}, {arguments.threads} threads, {arguments.clock} time: "
        f"{len(rows)} rows of {ours.row_tokens} tokens, bound {bound:.2f}, of products "
        f"{of_products:.2f}, "
        f"{'read as a tree' if ours.trees else 'trees do not pay'}"
    )
    print(f"{'':24}{'tokens':>8}{'seconds':>9}{'spread':>16}")
    for way, median in medians.items():
        tokens = ways[way].work.computed_tokens if way != PACKED else ours.row_tokens
        print(f"{way:24}{tokens:8}{median:9.3f}{spread(seconds[way]):>16}")
    for way in ("padded rows", PACKED):
        middle = statistics.median(ratios(seconds[way], seconds["ours: tree"]))
        print(
            f"{way} over ours: {ratio(seconds[way], seconds['ours: tree'])}, {middle / bound:.0%}"
            f" of the bound, {middle / of_products:.0%} of that of products"
        )


if __name__ == "__main__":
    main()
