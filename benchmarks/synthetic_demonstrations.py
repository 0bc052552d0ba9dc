"""Scripted episodes over SyntheticQA's training world, good ones and clumsy ones.

The good ones search each entity of the walks once, compute with Python and answer. The clumsy ones
search again what they know, follow a wrong link, do arithmetic in the head, or answer too early. A
policy started on the mixture knows the protocol and has something left to learn.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.benchmark import Demonstration, Step
from benchmarks.synthetic import NUMBER, WORDS, Entity, Question, Walk, load, questions, world
from benchmarks.synthetic_words import ASKED

Script = Callable[[Question, dict[str, Entity], random.Random], list[Step]]


def demonstrations(data_dir: Path | None = None) -> Sequence[Demonstration]:
    """One episode per training question, two of five clumsy."""
    del data_dir
    draw = random.Random("synthetic-demonstrations/1")
    named = world("train").by_name()
    return [
        Demonstration(task, tuple(_style(draw)(question, named, draw)))
        for task, question in zip(load("train"), questions("train"), strict=True)
    ]


def good(question: Question, named: dict[str, Entity], draw: random.Random) -> list[Step]:
    """Search every entity once, compute with Python, answer."""
    del named, draw
    return [
        *_look_ups(question),
        *_conclude(question, [walk.path[-1] for walk in question.walks]),
    ]


def _repetitive(question: Question, named: dict[str, Entity], draw: random.Random) -> list[Step]:
    """As `good`, with one or two searches made twice."""
    steps = good(question, named, draw)
    searches = [index for index, step in enumerate(steps) if step.act == "search"]
    for index in sorted(
        draw.sample(searches, min(len(searches), draw.randint(1, 2))), reverse=True
    ):
        steps.insert(index, steps[index])
    return steps


def _wrong_hop(question: Question, named: dict[str, Entity], draw: random.Random) -> list[Step]:
    """Follow a link or number that was not asked for, and answer what it leads to."""
    walk = question.walks[0]
    hop = draw.randrange(len(walk.relations))
    entity = named[walk.path[hop]]
    others = [(name, value) for name, value in entity.links if name != walk.relations[hop]]
    if walk.relations[hop] not in NUMBER.values():
        others.append((NUMBER[entity.kind], str(entity.number)))
    name, value = draw.choice(others)
    wrong = Walk(walk.start, (*walk.relations[:hop], name), (*walk.path[: hop + 1], value))
    return [*_look_ups(question, (wrong,)), _answer(f"the {ASKED[name]} is {value}", value)]


def _in_the_head(question: Question, named: dict[str, Entity], draw: random.Random) -> list[Step]:
    """Guess the result of the arithmetic instead of computing it."""
    if not question.operator:
        return _early(question, named, draw)
    steps = [step for step in good(question, named, draw) if step.act == "search"]
    expression = _sum(question, [walk.path[-1] for walk in question.walks])
    guess = str(abs(int(question.answer) + draw.choice((-11, -10, -9, -2, -1, 1, 2, 9, 10, 11))))
    return [*steps, _answer(f"{expression} is {guess}", guess)]


def _early(question: Question, named: dict[str, Entity], draw: random.Random) -> list[Step]:
    """Answer with what an earlier look-up found."""
    walk = question.walks[0]
    found = walk.path[-1] if question.operator else walk.path[-2]
    if len(walk.relations) == 1 and not question.operator:
        return _wrong_hop(question, named, draw)
    hops = len(walk.relations) if question.operator else len(walk.relations) - 1
    name = walk.relations[hops - 1]
    return [*_look_ups(question)[:hops], _answer(f"the {ASKED[name]} is {found}", found)]


def _style(draw: random.Random) -> Script:
    styles: tuple[Script, ...] = (good, _repetitive, _wrong_hop, _in_the_head, _early)
    return partial(draw.choices(styles, weights=(60, 16, 8, 8, 8))[0])


def _look_ups(question: Question, walks: Sequence[Walk] | None = None) -> list[Step]:
    """One search per entity of the walks; the thought says what is known and what is wanted."""
    steps, known, wanted = [], "", question.text.removeprefix("What is ").rstrip("?")
    for walk in question.walks if walks is None else walks:
        for hop, relation in enumerate(walk.relations):
            if hop:
                wanted = f"the {ASKED[relation]} of {walk.path[hop]}"
            steps.append(Step(f"{known}find {wanted}", "search", walk.path[hop]))
            known = f"the {ASKED[relation]} is {walk.path[hop + 1]}. "
        if question.operator:  # the rest of the question, with what was found in its place
            wanted = f"{walk.path[-1]} {WORDS[question.operator]} {question.walks[-1].phrase()}"
    return steps


def _conclude(question: Question, found: list[str]) -> list[Step]:
    last = question.walks[-1].relations[-1]
    thought = f"the {ASKED[last]} is {found[-1]}"
    if not question.operator:
        return [_answer(thought, found[0])]
    return [
        Step(
            f"{thought}. find {_sum(question, found)}",
            "python",
            f" {question.operator} ".join(found),
        ),
        _answer(f"the answer is {question.answer}", question.answer),
    ]


def _sum(question: Question, found: list[str]) -> str:
    """The arithmetic in the words of the question."""
    return f" {WORDS[question.operator]} ".join(found)


def _answer(thought: str, text: str) -> Step:
    return Step(thought, "answer", text)
