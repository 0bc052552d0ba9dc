"""SyntheticQA: one world on every machine, answerable from its corpus, with demonstrations."""

import hashlib
import random
import re

import pytest

from benchmarks.benchmark import Passage, Task
from benchmarks.synthetic import (
    NUMBER,
    RELATIONS,
    SPLITS,
    SYNTHETIC_QA,
    corpus,
    demonstrations,
    load,
    questions,
    score,
    world,
    write_good_script,
)
from benchmarks.synthetic_words import ASKED, SENTENCES, vocabulary
from envs import ToolEnv
from envs.tags import render
from tests.fakes import EchoTool
from tools import MemoryRetriever, SearchTool

DIGESTS = {
    "train": "938c7ee55f8b",
    "validation": "8a974c1dfbeb",
    "test": "b76530e1aaac",
    "demonstrations": "1593e4f7f308",
}
"""First 12 hex digits of the sha256 of a split's questions, answers and passages, or of turns."""

SAMPLE = 30


def texts_of(part):
    if part == "demonstrations":
        return [render(step) for one in demonstrations() for step in one.steps]
    tasks = [f"{task.id} {task.question} {task.answers}" for task in load(part)]
    return tasks + [f"{passage.title} {passage.text}" for passage in corpus(part)]


@pytest.mark.parametrize("part", DIGESTS)
def test_the_world_is_the_same_on_every_machine(part):
    digest = hashlib.sha256("\n".join(texts_of(part)).encode()).hexdigest()[:12]
    assert digest == DIGESTS[part], (
        f"SyntheticQA changed ({part}): if that is intended, raise its revision and the version of "
        f"its id, say why in the changelog, and write {digest} here"
    )


def test_no_name_of_one_world_occurs_in_another():
    names = {split: {entity.name for entity in world(split).entities} for split in SPLITS}
    texts = {split: " ".join(passage.text for passage in corpus(split)) for split in SPLITS}
    for split in SPLITS:
        for other in set(SPLITS) - {split}:
            assert not names[split] & names[other]
            assert not [name for name in names[split] if name in texts[other]]


def test_every_entity_has_one_passage_and_names_are_distinct():
    for split in SPLITS:
        names = [entity.name for entity in world(split).entities]
        assert len(set(names)) == len(names)
        assert [passage.title for passage in corpus(split)] == names


def test_questions_are_distinct_and_levels_have_equal_shares():
    for split in SPLITS:
        tasks = load(split)
        assert (
            len({task.question for task in tasks}) == len({task.id for task in tasks}) == len(tasks)
        )
        levels = [dict(task.metadata)["level"] for task in tasks]
        assert {level: levels.count(level) for level in "1234"} == dict.fromkeys(
            "1234", len(tasks) // 4
        )


WORDINGS = [
    (
        name,
        re.compile(re.escape(text).replace(r"\{s\}", "(?P<s>.+)").replace(r"\{o\}", "(?P<o>.+)")),
    )
    for name, texts in SENTENCES.items()
    for text in texts
]


def read_facts(passages):
    """The facts of a corpus, parsed sentence by sentence: {(subject, relation): object}."""
    facts = {}
    for passage in passages:
        for sentence in re.findall(r"[^.]+\.", passage.text):
            matches = [(n, m) for n, w in WORDINGS if (m := w.fullmatch(sentence.strip()))]
            assert len(matches) == 1, f"{sentence!r} reads as {matches}"
            name, match = matches[0]
            assert match["s"] == passage.title
            assert facts.setdefault((match["s"], name), match["o"]) == match["o"]
    return facts


def solve(question, facts):
    """The answer to a question, from the facts alone, and the number of facts that it takes."""
    relations = {asked: name for name, asked in ASKED.items()}
    lookups, values = 0, []
    parts = re.split(r" (plus|minus) ", question.removeprefix("What is ").removesuffix("?"))
    for phrase in parts[::2]:
        *links, entity = phrase.split(" of ")
        for link in reversed(links):
            entity = facts[entity, relations[link.removeprefix("the ")]]
            lookups += 1
        values.append(entity)
    if len(parts) == 1:
        return values[0], lookups
    sign = {"plus": 1, "minus": -1}[parts[1]]
    return str(int(values[0]) + sign * int(values[1])), lookups


@pytest.mark.parametrize("split", SPLITS)
def test_every_gold_answer_follows_from_the_corpus(split):
    facts = read_facts(corpus(split))
    for task in load(split):
        assert solve(task.question, facts) == (task.answers[0], int(dict(task.metadata)["level"]))


def test_some_questions_need_arithmetic_and_some_do_not():
    kinds = [question.operator for question in questions("test")]
    assert set(kinds) == {"", "+", "-"}
    assert 0.2 < kinds.count("") / len(kinds) < 0.8


def test_a_fact_is_worded_in_several_ways():
    texts = " ".join(passage.text for passage in corpus("test"))
    for wordings in SENTENCES.values():
        for wording in wordings:
            assert wording.split("{s}")[-1].split("{o}")[0] in texts


def test_a_search_for_an_entity_finds_its_passage_first():
    for split in ("validation", "test"):
        retriever = MemoryRetriever(corpus(split))
        for entity in world(split).entities:
            assert retriever.search(entity.name, 1)[0].title == entity.name


def test_an_answer_is_correct_up_to_case_and_spacing():
    task = Task("x", "Who?", ("North Bay",))
    assert score("  north  BAY ", task).value == 1.0
    assert score("North", task).value == 0.0
    assert score("", task).value == 0.0


def test_demonstrations_are_of_training_tasks_only_and_the_same_each_time():
    scripted = demonstrations()
    assert [one.task for one in scripted] == load("train")
    assert demonstrations()[:50] == scripted[:50]
    assert SYNTHETIC_QA.demonstrations is not None
    assert SYNTHETIC_QA.demonstrations(None)[:50] == scripted[:50]


@pytest.fixture(scope="module")
def training_env():
    """The real environment over the training world; its Python is a fake."""
    passages = corpus("train")
    search = SearchTool(MemoryRetriever(passages), results=SYNTHETIC_QA.search_results)
    return ToolEnv(SYNTHETIC_QA, split="train", tools=(search, EchoTool("python")))


def play(env, task, steps):
    """Play a scripted episode; return its reward and the observation of each turn."""
    env.reset(options={"task": task.id})
    observations = []
    for step in steps:
        observation, reward, terminated, truncated, _ = env.step(render(step))
        observations.append(observation)
    assert terminated
    assert not truncated
    return reward, observations


def sample_indices(count):
    """Indices of training questions, from all over the split."""
    return random.Random(1).sample(range(len(questions("train"))), count)


def test_good_demonstrations_earn_the_full_reward_and_find_what_they_claim(training_env):
    entities = world("train").by_name()
    for index in sample_indices(SAMPLE):
        question, task = questions("train")[index], load("train")[index]
        steps = write_good_script(question, entities, random.Random(0))
        reward, observations = play(training_env, task, steps)
        computed = bool(question.operator)
        assert reward == 1.0 + 0.1 * computed
        values = [value for walk in question.walks for value in walk.path[1:]]
        for value, observation in zip(values, observations, strict=False):
            assert value in observation
        assert len(steps) == question.level + computed + 1


def test_good_demonstrations_compute_in_the_real_python(python_env):
    training = ToolEnv(SYNTHETIC_QA, split="train", tools=python_env.tools)
    entities = world("train").by_name()
    indices = [index for index in sample_indices(SAMPLE) if questions("train")[index].operator]
    for index in indices[:5]:
        question = questions("train")[index]
        steps = write_good_script(question, entities, random.Random(0))
        reward, observations = play(training, load("train")[index], steps)
        assert reward == 1.1
        assert observations[-2] == f" <result>\n{question.answer}\n\n</result>"


def test_demonstrations_are_a_mixture_that_leaves_something_to_learn(training_env):
    scripted = demonstrations()
    entities = world("train").by_name()
    rewards, flawed_rewards, detours = [], [], []
    for index in sample_indices(10 * SAMPLE):
        task, steps = scripted[index]
        reward, _ = play(training_env, task, steps)
        rewards.append(reward)
        best = write_good_script(questions("train")[index], entities, random.Random(0))
        if list(steps) != best:
            flawed_rewards.append(reward)
            detours.append(len(steps) - len(best))
    assert 0.3 < len(flawed_rewards) / len(rewards) < 0.7
    assert sum(flawed_rewards) / len(flawed_rewards) < 0.5
    assert 0.6 < sum(rewards) / len(rewards) < 0.9
    assert max(detours) >= 1
    assert min(rewards) == 0.0


def test_all_words_of_the_world_are_in_its_vocabulary():
    words = set(vocabulary())
    for split in SPLITS:
        texts = [task.question for task in load(split)]
        texts += [passage.text for passage in corpus(split)]
        assert set(re.findall(r"[^\W\d_]+", " ".join(texts))) <= words
    turns = [f"{step.thought} {step.argument}" for one in demonstrations() for step in one.steps]
    assert set(re.findall(r"[^\W\d_]+", " ".join(turns))) <= words
    result = SearchTool(MemoryRetriever([Passage("a", "North Bay", "")])).run(None, "Bay")[1].text
    assert set(re.findall(r"[^\W\d_]+", result)) <= words


def test_relations_lead_from_every_kind_to_facts_that_passages_state():
    assert {relation.name for relation in RELATIONS} | set(NUMBER.values()) == set(SENTENCES)
    assert set(ASKED) == set(SENTENCES)
