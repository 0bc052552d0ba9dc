"""Tools of 200 ms and a busy policy: does anybody wait for what is not his own?

    python -m tests.perf.overlap

Episodes of a fixed script (thoughts of different lengths, calls, an answer) are sampled by SmolLM2:
every token costs its forward pass, and a turn that is over is replaced by the script's. Measured in
turn, in an order that changes round by round: the policy's time, which is that of overlap with
tools that take none; lockstep; overlap. The target: overlap takes at most 1.1 of the larger of the
policy's time and the longest chain of tools.
"""

import argparse
import random
import statistics
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import replace

from learners.config import RunConfig
from learners.policy.loading import load_model
from learners.rollouts.rollout import Rollouts
from learners.sampling.opening import open_sampler
from learners.sampling.sampler import SamplerStats
from tests.fakes import EchoTool, answer, toy_env
from tests.perf.sampling import without_ends

TARGET = 1.1
WORDS = ("seven", "foxes", "cross", "the", "river", "before", "rain", "falls", "on", "stones")


class ToldSampler:
    """Samples as ever; what comes out are the turns of a script, path by path.

    The prefixes it reads hold what it drew in place of the script: it knows them from before.
    """

    keep = None

    def __init__(self, sampler, scripts):
        self.sampler, self.scripts = sampler, scripts
        self.drawn = defaultdict(list)

    def submit(self, request):
        prefix, drawn = list(request.prefix_ids), self.drawn[request.key]
        for start, ids in drawn:
            prefix[start : start + len(ids)] = ids
        most = len(self.script(request.key))
        self.sampler.submit(request._replace(prefix_ids=tuple(prefix), max_tokens=most))

    def completed(self):
        for request, said in self.sampler.completed():
            script = self.script(request.key)
            assert len(said.token_ids) == len(script)
            self.drawn[request.key].append((len(request.prefix_ids), said.token_ids))
            yield request, replace(said, token_ids=tuple(script), stop="tag")

    def script(self, key):
        """Of the turn that a trajectory is at."""
        return self.scripts[key.split("/", 2)[2]][len(self.drawn[key])]

    def stats(self):
        return SamplerStats()

    def sync(self):
        self.sampler.sync()

    def rest(self):
        self.sampler.rest()


class SleepingTool(EchoTool):
    """Answers after a while; remembers how long each episode waited for it."""

    def __init__(self, seconds, spread, seed=0):
        super().__init__("search")
        self.seconds, self.spread = seconds, spread
        self.draw, self.lock = random.Random(seed), threading.Lock()
        self.chains = Counter()

    def run(self, state, argument):
        with self.lock:
            spread = self.draw.lognormvariate(-(self.spread**2) / 2, self.spread)
        seconds = self.seconds * spread
        time.sleep(seconds)
        with self.lock:
            self.chains[argument] += seconds
        return state, EchoTool.run(self, state, "so")[1]


def scripts(tokenizer, given):
    """By path: the ids of every turn of an episode; its calls name it."""
    draw = random.Random(given.seed)
    found = {}
    for episode in range(given.episodes):
        turns = []
        for turn in range(given.calls + 1):
            length = draw.randint(given.tokens // 2, given.tokens * 3 // 2)
            thought = " ".join(draw.choice(WORDS) for _ in range(length))
            end = answer("2") if turn == given.calls else f"<search>{episode}</search>"
            text = f"<think> {thought} </think>{end}"
            turns.append(tokenizer.encode(text, add_special_tokens=False))
        found[f"a/{episode}"] = turns
    return found


def seconds_of(sampler, tokenizer, given, told, turns, tool):
    env = toy_env(tool, split="train", max_tool_calls=given.calls)
    rollouts = Rollouts(
        env,
        ToldSampler(sampler, told),
        tokenizer,
        8000,
        tool_threads=given.episodes,
        turns=turns,
    )
    sampler.sync()
    tree = rollouts.tree(env.tasks[0])
    for _ in range(given.episodes):
        tree.root()
    start = time.perf_counter()
    rollouts.run([tree], "0")
    passed = time.perf_counter() - start
    assert all(len(t.turns) == given.calls + 1 and t.done for t in tree.roots)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20, help="of a turn's thought, in the mean")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a call, in the mean")
    parser.add_argument("--spread", type=float, default=0.6, help="of their logarithm; 0: fixed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args()
    loaded = load_model(given.model)
    without_ends(loaded)
    config = RunConfig.of(autocast=True, sampler_rows=given.episodes)
    sampler = open_sampler(config, loaded, ())
    told = scripts(loaded.tokenizer, given)
    tokens = sum(len(turn) for turns in told.values() for turn in turns)
    print(f"{given.episodes} episodes, {given.calls} calls each, {tokens} tokens of the policy")
    shares = {"lockstep": [], "overlap": []}
    for number in range(given.rounds):
        passed, chains = {}, {}
        ways = deque(
            [("policy alone", "overlap"), ("lockstep", "lockstep"), ("overlap", "overlap")]
        )
        ways.rotate(number)
        for way, turns in ways:
            slow = way in shares
            tool = SleepingTool(given.seconds * slow, given.spread * slow, number)
            passed[way] = seconds_of(sampler, loaded.tokenizer, given, told, turns, tool)
            chains[way] = max(tool.chains.values())
        line = f"policy alone {passed['policy alone']:.2f} s"
        for way, found in shares.items():
            found.append(passed[way] / max(passed["policy alone"], chains[way]))
            line += f"; {way} {passed[way]:.2f} s, chain {chains[way]:.2f} s"
        print(line)
    for turns, found in shares.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        print(f"{turns}: {statistics.median(found):.3f} of the bound ({spread}); target {TARGET}")


if __name__ == "__main__":
    main()
