"""SyntheticQA: a generated world, its corpus, and multi-hop questions over it. Needs no download.

A world is people, companies and cities with relations between them and a number each. Every entity
has one passage. A question walks one to four relations ("hops"), and may add or subtract what two
walks found, so that searching, combining and computing all matter. Train, validation and test are
disjoint worlds: no full name of one occurs in another. `synthetic_demonstrations.py` scripts
episodes over the same worlds.

Example (level 2): "What is the age of the founder of Amber Mills?"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.benchmark import Benchmark, Demonstration, Passage, Score, Split, Step, Task
from benchmarks.synthetic_words import (
    ASKED,
    FIRST,
    KINDS,
    LAST,
    PLACE,
    SENTENCES,
    SUFFIX,
    TERRAIN,
    TRADE,
)

ENTITIES = {"train": 1280, "validation": 60, "test": 60}
"""Per kind, by split; so many in training that copying what was read beats remembering it."""


QUESTIONS = {"train": 8000, "validation": 400, "test": 800}


SHARES = {"train": 8, "validation": 1, "test": 1}
"""Of every ten names, how many belong to a split."""


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


NUMBER = {"person": "age", "company": "employees", "city": "bridges"}
"""The numeric attribute of each kind."""


NUMBERS = (10, 49)
"""Smallest and largest; sums stay below 100, and differences are never negative."""


WORDS = {"+": "plus", "-": "minus"}
"""How a question says an operator."""


MAX_TOOL_CALLS = 6


class Relation(NamedTuple):
    """A link between two kinds, as the passages state it and the questions ask for it."""

    name: str
    subject: str
    object: str


RELATIONS = (
    Relation("birthplace", "person", "city"),
    Relation("employer", "person", "company"),
    Relation("founder", "company", "person"),
    Relation("headquarters", "company", "city"),
    Relation("mayor", "city", "person"),
)


@dataclass(frozen=True)
class Entity:
    """One subject of the world."""

    name: str
    kind: str
    number: int
    links: tuple[tuple[str, str], ...]
    """(relation, name of the object)."""


class Walk(NamedTuple):
    """Where a chain of relations leads: what each hop looked up and what it found."""

    start: str
    relations: tuple[str, ...]
    """Names of the links followed; the last may be a numeric attribute."""
    path: tuple[str, ...]
    """start, first object, ..., answer: one longer than `relations`."""

    def phrase(self) -> str:
        """The walk in words, innermost entity last."""
        return " of ".join([f"the {ASKED[r]}" for r in reversed(self.relations)] + [self.start])


class Question(NamedTuple):
    """A question with what it takes to answer it; the demonstrations read `walks`."""

    text: str
    answer: str
    level: int
    walks: tuple[Walk, ...]
    operator: str
    """"+" or "-" between the answers of two walks; "" for a single walk."""


@dataclass(frozen=True)
class World:
    """Everything that is true in one split."""

    entities: tuple[Entity, ...]

    def by_name(self) -> dict[str, Entity]:
        """Entity of every name."""
        return {entity.name: entity for entity in self.entities}


@cache
def world(split: Split) -> World:
    """The world of a split, the same on any machine."""
    draw = random.Random(f"synthetic-world/1/{split}")
    names = {kind: _names(kind, split, draw) for kind in KINDS}
    entities = []
    for kind in KINDS:
        for name in names[kind]:
            links = tuple(
                (r.name, draw.choice(names[r.object])) for r in RELATIONS if r.subject == kind
            )
            entities.append(Entity(name, kind, draw.randint(*NUMBERS), links))
    return World(tuple(entities))


def _names(kind: str, split: Split, draw: random.Random) -> list[str]:
    """Full names of one kind; each combination of words belongs to exactly one split."""
    heads, tails = {
        "person": (FIRST, LAST),
        "company": (TRADE, SUFFIX),
        "city": (PLACE, TERRAIN),
    }[kind]
    combinations = [f"{head} {tail}" for head in heads for tail in tails]
    random.Random(f"synthetic-names/1/{kind}").shuffle(combinations)
    begin = {"train": 0, "validation": 8, "test": 9}[split]
    own = [name for i, name in enumerate(combinations) if begin <= i % 10 < begin + SHARES[split]]
    return draw.sample(own, ENTITIES[split])


def corpus(split: Split, data_dir: Path | None = None) -> Sequence[Passage]:
    """One passage per entity of the split's world, its facts in varied order and wording."""
    del data_dir
    draw = random.Random(f"synthetic-corpus/1/{split}")
    return [_passage(entity, draw) for entity in world(split).entities]


def _passage(entity: Entity, draw: random.Random) -> Passage:
    facts = [*entity.links, (NUMBER[entity.kind], str(entity.number))]
    draw.shuffle(facts)
    sentences = [
        draw.choice(SENTENCES[name]).format(s=entity.name, o=value) for name, value in facts
    ]
    return Passage(id=entity.name, title=entity.name, text=" ".join(sentences))


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """The questions of a split, in their order; levels 1 to 4 in equal shares, texts distinct."""
    draw = random.Random(f"synthetic-questions/1/{split}")
    named = world(split).by_name()
    found: dict[str, Question] = {}
    while len(found) < QUESTIONS[split]:
        level = len(found) % 4 + 1
        question = _question(level, named, draw)
        if question is not None:
            found.setdefault(question.text, question)
    return tuple(found.values())


def _question(level: int, named: dict[str, Entity], draw: random.Random) -> Question | None:
    """One question of a level, or None when the draw led nowhere. Level = entities to look up."""
    starts = list(named)
    if level >= 2 and draw.random() < 0.5:
        hops = draw.randint(1, level - 1)
        left = _walk(draw.choice(starts), hops, named, draw, numeric=True)
        right = _walk(draw.choice(starts), level - hops, named, draw, numeric=True)
        if left is None or right is None or left.start == right.start:
            return None
        operator = draw.choice("+-")
        if operator == "-" and int(left.path[-1]) < int(right.path[-1]):
            left, right = right, left
        a, b = int(left.path[-1]), int(right.path[-1])
        answer = a + b if operator == "+" else a - b
        text = f"What is {left.phrase()} {WORDS[operator]} {right.phrase()}?"
        return Question(text, str(answer), level, (left, right), operator)
    walk = _walk(draw.choice(starts), level, named, draw, numeric=draw.random() < 0.5)
    if walk is None:
        return None
    return Question(f"What is {walk.phrase()}?", walk.path[-1], level, (walk,), "")


def _walk(
    start: str, hops: int, named: dict[str, Entity], draw: random.Random, *, numeric: bool
) -> Walk | None:
    """A chain of `hops` look-ups from `start`; None when it would visit an entity twice."""
    path, relations = [start], []
    for hop in range(hops):
        entity = named[path[-1]]
        if numeric and hop == hops - 1:
            relations.append(NUMBER[entity.kind])
            path.append(str(entity.number))
        else:
            name, value = draw.choice(entity.links)
            relations.append(name)
            path.append(value)
    return Walk(start, tuple(relations), tuple(path)) if len(set(path)) == len(path) else None


def load(split: Split, data_dir: Path | None = None) -> Sequence[Task]:
    """The tasks of a split; nothing is read from anywhere."""
    del data_dir
    return [
        Task(
            id=f"{split}-{index:05d}",
            question=question.text,
            answers=(question.answer,),
            answer_type="number" if question.answer.lstrip("-").isdigit() else "span",
            metadata=(("level", str(question.level)),),
        )
        for index, question in enumerate(questions(split))
    ]


def score(answer: str, task: Task) -> Score:
    """Exact match up to case and spacing: the world has one spelling of everything."""
    extracted = " ".join(answer.split())
    right = extracted.casefold() in {gold.casefold() for gold in task.answers}
    return Score(float(right), "exact", extracted)


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


SYNTHETIC_QA = Benchmark(
    name="SyntheticQA",
    load=load,
    score=score,
    training_score=score,
    train_source="its own generated training world",
    max_tool_calls=MAX_TOOL_CALLS,
    max_response_tokens=384,
    search_results=1,
    revision="1",
    corpus=corpus,
    demonstrations=demonstrations,
)
