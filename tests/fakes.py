"""Stand-ins that tests play with: a toy benchmark, tools that tell on themselves, turns of text."""

import random

from benchmarks import Benchmark, Score, Task
from envs import ToolEnv
from tools import ToolResult, ToolUnavailable

TOYS = {
    "train": (
        ("a", "What is 1 + 1?", "2"),
        ("b", "What is 2 + 2?", "4"),
        ("c", "Name a fox.", "Reynard"),
    ),
    "validation": (("v", "What is 3 + 3?", "6"),),
    "test": (("t", "What is 4 + 4?", "8"), ("u", "Name a cat.", "Murr")),
}
"""(id, question, answer) by split; questions that have digits are level 1, the others level 2."""


def toy_load(split, data_dir=None):
    return [
        Task(name, question, (answer,), metadata=(("level", "1" if "+" in question else "2"),))
        for name, question, answer in TOYS[split]
    ]


def toy_score(answer, task):
    return Score(float(answer in task.answers), "exact", answer)


TOY = Benchmark(
    name="Toy",
    load=toy_load,
    score=toy_score,
    training_score=toy_score,
    train_source="three lines of a test",
    max_tool_calls=3,
    revision="1",
)


class EchoTool:
    """Says all that this episode ever told it: a leak between forks shows."""

    description = "Repeats everything it was told."

    def __init__(self, name="echo"):
        self.name = name
        self.closed = 0

    def initial_state(self, context):
        return (context.seed, *context.attachments)

    def run(self, state, argument):
        heard = (*state, argument)
        return heard, ToolResult(" ".join(map(str, heard)), argument != "no", 0.0)

    def close(self):
        self.closed += 1


class CountingTool(EchoTool):
    """Broken: counts its calls in itself, where no snapshot reaches."""

    calls = 0

    def run(self, state, argument):
        self.calls += 1
        return state, ToolResult(f"call {self.calls}", True, 0.0)


class ShelfTool(EchoTool):
    """Broken: its state names a place that is overwritten, instead of holding what is there."""

    def __init__(self, name="shelf"):
        super().__init__(name)
        self.shelf = []

    def initial_state(self, context):
        self.shelf.clear()
        return "shelf"

    def run(self, state, argument):
        self.shelf.append(argument)
        return state, ToolResult(" ".join(self.shelf), True, 0.0)


class AliasTool(EchoTool):
    """Broken: its cache of live objects hands the same list to every state that grew from one."""

    def __init__(self, name="alias"):
        super().__init__(name)
        self.live = {}

    def run(self, state, argument):
        bag = self.live.setdefault(state, list(state))
        bag.append(argument)
        following = (*state, argument)
        self.live[following] = bag
        return following, ToolResult(" ".join(map(str, bag)), True, 0.0)


class ListTool(EchoTool):
    """Broken: its state is a list, which is no value."""

    def run(self, state, argument):
        return [*state, argument], ToolResult("", True, 0.0)


class DiceTool(EchoTool):
    """Broken: every call draws anew."""

    def run(self, state, argument):
        return state, ToolResult(str(random.SystemRandom().random()), True, 0.0)


class UnplugTool(EchoTool):
    """Its machinery fails while it is unplugged."""

    plugged = True

    def run(self, state, argument):
        if not self.plugged:
            raise ToolUnavailable("the plug is out")
        return super().run(state, argument)


class SayTool(EchoTool):
    """Says what the test wants said."""

    def __init__(self, text, name="search"):
        super().__init__(name)
        self.text = text

    def run(self, state, argument):
        return state, ToolResult(self.text, True, 0.0)


def toy_env(*tools, **options):
    """An environment over the toy benchmark; by default its search and python only echo."""
    chosen = tools or (EchoTool("search"), EchoTool("python"))
    return ToolEnv(TOY, tools=chosen, **options)


def call(tool, argument):
    return f"<think> hm </think> <{tool}> {argument} </{tool}>"


def answer(text):
    return f"<think> so </think> <answer> \\boxed{{{text}}} </answer>"


def play(env, *turns):
    """Play turns; the last outcome."""
    outcome = None
    for turn in turns:
        outcome = env.step(turn)
    return outcome
