"""SyntheticQA: a generated world, its corpus, and multi-hop questions over it. Needs no download.

A world has people, companies and cities, with relations between them and a number each. Every
entity has one passage. A question walks one to four relations ("hops"), and may add or subtract
the ends of two walks, so that searching, combining and computing all matter. Train, validation and
test are disjoint worlds: no full name of one occurs in another. Demonstrations are scripted
episodes over the same worlds.

Example (level 2): "What is the age of the founder of Amber Mills?"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
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

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ENTITIES = {"train": 1280, "validation": 60, "test": 60}
"""Entities per kind; enough in training that copying from passages is easier than memorising."""
QUESTIONS = {"train": 8000, "validation": 400, "test": 800}
SHARES = {"train": 8, "validation": 1, "test": 1}
"""Names of a split, out of every ten."""
NUMBER = {"person": "age", "company": "employees", "city": "bridges"}
"""The numeric attribute of each kind."""
NUMBER_RANGE = (10, 49)
"""Smallest and largest number; sums stay below 100, and differences are never negative."""
OPERATOR_WORDS = {"+": "plus", "-": "minus"}
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
    """A person, company or city of the world."""

    name: str
    kind: str
    number: int
    links: tuple[tuple[str, str], ...]
    """(relation, name of the object) pairs."""


@dataclass(frozen=True)
class World:
    """Everything that is true in one split."""

    entities: tuple[Entity, ...]

    def by_name(self) -> dict[str, Entity]:
        """Return the entities by their names."""
        return {entity.name: entity for entity in self.entities}


class Walk(NamedTuple):
    """A chain of relations and the entities on it."""

    start: str
    relations: tuple[str, ...]
    """Names of the links followed; the last may be a numeric attribute."""
    path: tuple[str, ...]
    """start, first object, ..., answer: one longer than `relations`."""

    def phrase(self) -> str:
        """Put the walk into words, its start last."""
        return " of ".join([f"the {ASKED[r]}" for r in reversed(self.relations)] + [self.start])


class Question(NamedTuple):
    """A question and its solution, from which demonstrations are scripted."""

    text: str
    answer: str
    level: int
    walks: tuple[Walk, ...]
    operator: str
    """"+" or "-" between the answers of two walks; "" for a single walk."""


@cache
def world(split: Split) -> World:
    """Generate the world of a split, the same on any machine."""
    rng = random.Random(f"synthetic-world/1/{split}")
    names = {kind: _draw_names(kind, split, rng) for kind in KINDS}
    entities = []
    for kind in KINDS:
        for name in names[kind]:
            links = tuple(
                (r.name, rng.choice(names[r.object])) for r in RELATIONS if r.subject == kind
            )
            entities.append(Entity(name, kind, rng.randint(*NUMBER_RANGE), links))
    return World(tuple(entities))


def _draw_names(kind: str, split: Split, rng: random.Random) -> list[str]:
    """Draw full names of one kind; each combination of words belongs to exactly one split."""
    heads, tails = {
        "person": (FIRST, LAST),
        "company": (TRADE, SUFFIX),
        "city": (PLACE, TERRAIN),
    }[kind]
    combinations = [f"{head} {tail}" for head in heads for tail in tails]
    random.Random(f"synthetic-names/1/{kind}").shuffle(combinations)
    begin = {"train": 0, "validation": 8, "test": 9}[split]
    end = begin + SHARES[split]
    names = [name for i, name in enumerate(combinations) if begin <= i % 10 < end]
    return rng.sample(names, ENTITIES[split])


def corpus(split: Split, data_dir: Path | None = None) -> Sequence[Passage]:
    """Write one passage per entity of the split's world, its facts in varied order and wording."""
    del data_dir
    rng = random.Random(f"synthetic-corpus/1/{split}")
    return [_write_passage(entity, rng) for entity in world(split).entities]


def _write_passage(entity: Entity, rng: random.Random) -> Passage:
    facts = [*entity.links, (NUMBER[entity.kind], str(entity.number))]
    rng.shuffle(facts)
    sentences = [
        rng.choice(SENTENCES[name]).format(s=entity.name, o=value) for name, value in facts
    ]
    return Passage(id=entity.name, title=entity.name, text=" ".join(sentences))


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """Generate the questions of a split; levels 1 to 4 in equal shares, texts distinct."""
    rng = random.Random(f"synthetic-questions/1/{split}")
    entities = world(split).by_name()
    by_text: dict[str, Question] = {}
    while len(by_text) < QUESTIONS[split]:
        level = len(by_text) % 4 + 1
        question = _draw_question(level, entities, rng)
        if question is not None:
            by_text.setdefault(question.text, question)
    return tuple(by_text.values())


def _draw_question(level: int, entities: dict[str, Entity], rng: random.Random) -> Question | None:
    """Draw a question that takes `level` look-ups; None if the walks drawn are unusable."""
    starts = list(entities)
    if level >= 2 and rng.random() < 0.5:
        hops = rng.randint(1, level - 1)
        left = _draw_walk(rng.choice(starts), hops, entities, rng, numeric=True)
        right = _draw_walk(rng.choice(starts), level - hops, entities, rng, numeric=True)
        if left is None or right is None or left.start == right.start:
            return None
        operator = rng.choice("+-")
        if operator == "-" and int(left.path[-1]) < int(right.path[-1]):
            left, right = right, left
        a, b = int(left.path[-1]), int(right.path[-1])
        answer = a + b if operator == "+" else a - b
        text = f"What is {left.phrase()} {OPERATOR_WORDS[operator]} {right.phrase()}?"
        return Question(text, str(answer), level, (left, right), operator)
    walk = _draw_walk(rng.choice(starts), level, entities, rng, numeric=rng.random() < 0.5)
    if walk is None:
        return None
    return Question(f"What is {walk.phrase()}?", walk.path[-1], level, (walk,), "")


def _draw_walk(
    start: str, hops: int, entities: dict[str, Entity], rng: random.Random, *, numeric: bool
) -> Walk | None:
    """Draw a chain of `hops` look-ups from `start`; None if it visits an entity twice."""
    path, relations = [start], []
    for hop in range(hops):
        entity = entities[path[-1]]
        if numeric and hop == hops - 1:
            relations.append(NUMBER[entity.kind])
            path.append(str(entity.number))
        else:
            name, value = rng.choice(entity.links)
            relations.append(name)
            path.append(value)
    return Walk(start, tuple(relations), tuple(path)) if len(set(path)) == len(path) else None


def load(split: Split, data_dir: Path | None = None) -> Sequence[Task]:
    """Generate the tasks of a split."""
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
    """Score an exact match up to case and spacing: the world has one spelling of everything."""
    extracted = " ".join(answer.split())
    right = extracted.casefold() in {gold.casefold() for gold in task.answers}
    return Score(float(right), "exact", extracted)


WriteScript = Callable[[Question, dict[str, Entity], random.Random], list[Step]]
"""(question, entities by name, rng) -> the steps of an episode."""


def demonstrations(data_dir: Path | None = None) -> Sequence[Demonstration]:
    """Script one episode per training question, two of five with a flaw."""
    del data_dir
    rng = random.Random("synthetic-demonstrations/1")
    entities = world("train").by_name()
    return [
        Demonstration(task, tuple(_draw_style(rng)(question, entities, rng)))
        for task, question in zip(load("train"), questions("train"), strict=True)
    ]


def _draw_style(rng: random.Random) -> WriteScript:
    styles: tuple[WriteScript, ...] = (
        write_good_script,
        _repeat_searches,
        _take_wrong_hop,
        _guess_result,
        _answer_early,
    )
    return rng.choices(styles, weights=(60, 16, 8, 8, 8))[0]


def write_good_script(
    question: Question, entities: dict[str, Entity], rng: random.Random
) -> list[Step]:
    """Search every entity once, compute with Python, answer."""
    del entities, rng
    return [
        *_look_up(question),
        *_conclude(question, [walk.path[-1] for walk in question.walks]),
    ]


def _repeat_searches(
    question: Question, entities: dict[str, Entity], rng: random.Random
) -> list[Step]:
    """Make one or two searches twice."""
    steps = write_good_script(question, entities, rng)
    searches = [index for index, step in enumerate(steps) if step.act == "search"]
    repeated = rng.sample(searches, min(len(searches), rng.randint(1, 2)))
    for index in sorted(repeated, reverse=True):
        steps.insert(index, steps[index])
    return steps


def _take_wrong_hop(
    question: Question, entities: dict[str, Entity], rng: random.Random
) -> list[Step]:
    """Follow a link or number that was not asked for, and answer with its value."""
    walk = question.walks[0]
    hop = rng.randrange(len(walk.relations))
    entity = entities[walk.path[hop]]
    facts = [(name, value) for name, value in entity.links if name != walk.relations[hop]]
    if walk.relations[hop] not in NUMBER.values():
        facts.append((NUMBER[entity.kind], str(entity.number)))
    name, value = rng.choice(facts)
    wrong = Walk(walk.start, (*walk.relations[:hop], name), (*walk.path[: hop + 1], value))
    return [*_look_up(question, (wrong,)), _answer(f"the {ASKED[name]} is {value}", value)]


def _guess_result(
    question: Question, entities: dict[str, Entity], rng: random.Random
) -> list[Step]:
    """Guess the result of the arithmetic instead of computing it."""
    if not question.operator:
        return _answer_early(question, entities, rng)
    steps = write_good_script(question, entities, rng)
    searches = [step for step in steps if step.act == "search"]
    expression = _arithmetic(question, [walk.path[-1] for walk in question.walks])
    guess = str(abs(int(question.answer) + rng.choice((-11, -10, -9, -2, -1, 1, 2, 9, 10, 11))))
    return [*searches, _answer(f"{expression} is {guess}", guess)]


def _answer_early(
    question: Question, entities: dict[str, Entity], rng: random.Random
) -> list[Step]:
    """Answer with the value of an earlier look-up."""
    walk = question.walks[0]
    if len(walk.relations) == 1 and not question.operator:
        return _take_wrong_hop(question, entities, rng)
    hops = len(walk.relations) if question.operator else len(walk.relations) - 1
    name, value = walk.relations[hops - 1], walk.path[hops]
    return [*_look_up(question)[:hops], _answer(f"the {ASKED[name]} is {value}", value)]


def _look_up(question: Question, walks: Sequence[Walk] | None = None) -> list[Step]:
    """Search once per entity of the walks; a thought says what is known and what to find next."""
    steps, known, goal = [], "", question.text.removeprefix("What is ").rstrip("?")
    for walk in question.walks if walks is None else walks:
        for hop, relation in enumerate(walk.relations):
            if hop:
                goal = f"the {ASKED[relation]} of {walk.path[hop]}"
            steps.append(Step(f"{known}find {goal}", "search", walk.path[hop]))
            known = f"the {ASKED[relation]} is {walk.path[hop + 1]}. "
        if question.operator:  # the rest of the question, the first walk replaced by its value
            operator = OPERATOR_WORDS[question.operator]
            goal = f"{walk.path[-1]} {operator} {question.walks[-1].phrase()}"
    return steps


def _conclude(question: Question, values: list[str]) -> list[Step]:
    """Compute with the values of the walks, if need be, and answer."""
    last = question.walks[-1].relations[-1]
    thought = f"the {ASKED[last]} is {values[-1]}"
    if not question.operator:
        return [_answer(thought, values[0])]
    expression = f" {question.operator} ".join(values)
    return [
        Step(f"{thought}. find {_arithmetic(question, values)}", "python", expression),
        _answer(f"the answer is {question.answer}", question.answer),
    ]


def _arithmetic(question: Question, values: list[str]) -> str:
    """Write the arithmetic in the words of the question."""
    return f" {OPERATOR_WORDS[question.operator]} ".join(values)


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
