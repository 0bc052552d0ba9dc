"""Tokens per second of sampling with tools: the usual loop over `model.generate`, ours, vLLM.

    python -m tests.perf.sampling                      the usual loop and ours
    .venv-vllm/bin/python -m tests.perf.sampling       vLLM too, where it is installed

Episodes of several turns; after each turn so many tokens of a tool's answer follow. Every turn has
a length of its own, drawn once and the same for all, and no other end. The usual loop pads the
prefixes of a round on the left, generates until its longest turn is over, and reads everything
again in the next. All sample SmolLM2 at temperature 1 in one process, in turn. The targets: ours at
least 3 times the usual loop, and at least 0.8 of vLLM.
"""

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from learners.models import LoadedModel, load_model
from learners.run_config import RunConfig
from learners.sampler import Request, Sampler, TransformersSampler
from learners.samplers import open_sampler


class Workload(NamedTuple):
    """Episodes by their lengths alone."""

    prompts: list[tuple[int, ...]]
    lengths: list[list[int]]
    """Per episode, per turn: tokens to sample."""
    observed: tuple[int, ...]
    """What every tool answers."""

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.lengths))


def workload(given: argparse.Namespace) -> Workload:
    draw = random.Random(given.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100, 40_000) for _ in range(count))

    low, high = given.tokens // 2, given.tokens * 3 // 2
    return Workload(
        [ids(given.prompt)] * given.episodes,
        [[draw.randint(low, high) for _ in range(given.turns)] for _ in range(given.episodes)],
        ids(given.observed),
    )


def play(sampler: Sampler, work: Workload) -> None:
    """Every episode goes on as soon as its turn is over."""
    sampler.sync()
    after = list(work.prompts)
    turn = [0] * len(after)

    def submit(episode: int) -> None:
        most = work.lengths[episode][turn[episode]]
        sampler.submit(Request(after[episode], (), most, f"{episode}/{turn[episode]}", 0))

    for episode in range(len(after)):
        submit(episode)
    for request, said in sampler.completed():
        episode = int(request.key.split("/")[0])
        assert len(said.token_ids) == work.lengths[episode][turn[episode]]
        after[episode] += said.token_ids + work.observed
        turn[episode] += 1
        if turn[episode] < len(work.lengths[episode]):
            submit(episode)


@torch.inference_mode()
def usual(loaded: LoadedModel, work: Workload) -> None:
    """Left-padded prefixes, one `generate` a round."""
    after = list(work.prompts)
    for turn in range(len(work.lengths[0])):
        width = max(map(len, after))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in after])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in after])
        most = [lengths[turn] for lengths in work.lengths]
        said = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(most),
            min_new_tokens=max(most),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            pad_token_id=0,
        )[:, width:].tolist()
        after = [
            row + tuple(new[:length]) + work.observed
            for row, new, length in zip(after, said, most, strict=True)
        ]


def without_ends(loaded: LoadedModel) -> None:
    """Only its length ends a turn."""
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40, help="of a turn, in the mean")
    parser.add_argument("--observed", type=int, default=60)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], help="of: usual ours vllm")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work = workload(given)
    plain, loaded = load_model("smollm2"), load_model("smollm2")
    plain.model.set_attn_implementation("sdpa")  # as transformers has it
    for one in (plain, loaded):
        one.model.to(torch.bfloat16)
        without_ends(one)
    ways: dict[str, Callable[[], None]] = {
        "usual": lambda: usual(plain, work),
        "ours": lambda: play(TransformersSampler(*loaded, (), rows=given.episodes), work),
    }
    if importlib.util.find_spec("vllm") is not None and "vllm" not in given.without:
        config = RunConfig(sampler="vllm", autocast=True, sampler_rows=given.episodes)
        engine = open_sampler(config, loaded, ())
        ways["vllm"] = lambda: play(engine, work)
    rates: dict[str, list[float]] = {name: [] for name in ways if name not in given.without}
    print(f"{given.episodes} episodes of {given.turns} turns, {work.tokens} tokens, bfloat16")
    for _ in range(given.rounds):
        for name, found in rates.items():
            start = time.perf_counter()
            ways[name]()
            found.append(work.tokens / (time.perf_counter() - start))
    for name, found in rates.items():
        spread = f"{min(found):.0f} to {max(found):.0f}"
        print(f"{name:6} {statistics.median(found):6.0f} tokens/s ({spread})")
    for over, target in (("usual", 3.0), ("vllm", 0.8)):
        if over in rates and "ours" in rates:
            ratios = [a / b for a, b in zip(rates["ours"], rates[over], strict=True)]
            print(f"ours over {over}: {statistics.median(ratios):.2f}; target {target}")


if __name__ == "__main__":
    main()
