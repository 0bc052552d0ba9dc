"""Stand-ins for learners: a tiny policy that knows the tags, scripted and recording samplers."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import torch

from benchmarks import Demonstration, Score, Step
from envs import ToolEnv
from learners.policy.loading import load_model, save_model
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.sampling.sampler import SamplerStats
from learners.sft.transcripts import play
from learners.tree import Completion, Row
from tests.fakes import TOY, EchoTool, SayTool
from tools import ToolUnavailable

TAUGHT_TURNS = (
    ("search", "Milo"),
    ("search", "the founder"),
    ("calculator", "2 + 3"),
)


def teach(folder, updates=30, model="tiny", learning_rate=5e-3):
    """Save a model in a folder that writes well-formed turns most of the time; tiny, in seconds.

    It has learned three tool calls and two answers by heart: rewards differ between rollouts, which
    is all that tests of training need.
    """
    env = ToolEnv(
        "SyntheticQA", split="train", tools=(SayTool("found", "search"), EchoTool("calculator"))
    )
    draw = random.Random(0)
    demonstrations = []
    for task in env.tasks[:24]:
        calls = [Step("so", *turn) for turn in draw.sample(TAUGHT_TURNS, draw.choice((0, 1, 2)))]
        answers = [Step("so", "answer", text) for text in ("5", "Deep Gate")]
        # Both after the same: nothing tells which.
        demonstrations += [Demonstration(task, (*calls, answer)) for answer in answers]
    loaded = load_model(model)
    policy = Policy(loaded, learning_rate=learning_rate, autocast=model != "tiny")
    trajectories = play(Rollouts(env, None, loaded.tokenizer, 200), demonstrations).trajectories
    for _ in range(updates):
        rows = [Row(t, torch.zeros(len(t))) for t in trajectories]
        masks = [torch.tensor(t.response_mask) for t in trajectories]
        total = sum(int(mask.sum()) for mask in masks)
        policy.update(rows, [mask / total for mask in masks], likelihood)
    save_model(loaded, folder)


def like_five(answer, task):
    """Right when it is 5, whatever was asked."""
    return Score(float(answer.strip() == "5"), "exact", answer)


UNEVEN = replace(TOY, score=like_five, training_score=like_five)
"""The toy benchmark, where what the taught model answers is right now and then."""


def likelihood(logprobs, batch):
    """Minus the weighted log-likelihood."""
    return -(logprobs * batch.weights).sum()


class Hidden(NamedTuple):
    """What a model without a head returns."""

    last_hidden_state: torch.Tensor


class Parrot(torch.nn.Module):
    """Says at every position what the script has there; keeps the shape of every forward pass."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.base_model = self.recite
        self.config = SimpleNamespace()
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.shapes = []
        self._script = torch.tensor(script)
        self._vocabulary = vocabulary

    def recite(self, input_ids, attention_mask, position_ids, past_key_values, use_cache):
        self.shapes.append(tuple(input_ids.shape))
        coming = self._script[(position_ids + 1).clamp_max(len(self._script) - 1)]
        return Hidden(torch.nn.functional.one_hot(coming, self._vocabulary).double() * 1000)

    def get_output_embeddings(self):
        return torch.nn.Identity()


class RecordingSampler:
    """Keeps what went to a sampler and what came back."""

    keep = None

    def __init__(self, sampler):
        self._sampler = sampler
        self.exchanges = []

    def submit(self, request):
        self._sampler.submit(request)

    def completed(self):
        for request, completion in self._sampler.completed():
            self.exchanges.append((request, completion))
            yield request, completion

    def stats(self):
        return SamplerStats()

    def sync(self):
        self._sampler.sync()

    def rest(self):
        self._sampler.rest()


class ScriptedSampler:
    """Says, for every path of a trajectory, the next of its turns of text; a turn may be ids."""

    keep = None

    def __init__(self, tokenizer, turns):
        self._tokenizer = tokenizer
        self._turns = {path: list(said) for path, said in turns.items()}
        self._waiting = []
        self.syncs = self.rests = 0

    def submit(self, request):
        self._waiting.append(request)

    def completed(self):
        for request in reversed(self._waiting):  # whoever came last ends first
            said = self._turns[request.key.split("/", 3)[3]].pop(0)
            yield request, self.completion(request, said)
        self._waiting = []

    def completion(self, request, said):
        ids = said
        if isinstance(said, str):
            ids = self._tokenizer.encode(said, add_special_tokens=False)
        stop = "tag" if len(ids) < request.max_tokens else "length"
        ids = tuple(ids[: request.max_tokens])
        return Completion(ids, (-0.5,) * len(ids), (0.25,) * len(ids), stop)

    def stats(self):
        return SamplerStats()

    def sync(self):
        self.syncs += 1

    def rest(self):
        self.rests += 1


class FlakyTool(EchoTool):
    """Its machinery fails a number of times, then works."""

    def __init__(self, failures):
        super().__init__("search")
        self.failures = failures
        self.states = []

    def run(self, state, argument):
        self.states.append(state)
        if len(self.states) <= self.failures:
            raise ToolUnavailable("the plug is out")
        return super().run(state, argument)


class UnluckyTool(EchoTool):
    """Its machinery fails from states that it is told of."""

    def __init__(self, name, unlucky):
        super().__init__(name)
        self.unlucky = unlucky

    def run(self, state, argument):
        if self.unlucky(state):
            raise ToolUnavailable("the plug is out")
        return super().run(state, argument)
