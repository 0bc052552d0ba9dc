"""The tasks of an iteration: epochs, weights of a mixture, levels of a curriculum."""

from collections import Counter

import pytest

from benchmarks import Task
from envs import ToolEnv
from learners.config import RunConfig
from learners.errors import UsageError
from learners.rollouts.rollout import Rollouts
from learners.rollouts.storage import read_rows
from learners.runs.environments import TaskMixture
from learners.runs.task_order import check_tasks, select_tasks
from learners.runs.training import main
from tests.fakes import TOY, EchoTool, answer, toy_score
from tests.learner_fakes import ScriptedSampler
from tests.learners.test_commands import refused


def tasks(count, name="", levels=("1",)):
    prefix = f"{name}:" if name else ""
    return [
        Task(f"{prefix}{n}", "?", ("!",), metadata=(("level", levels[n % len(levels)]),))
        for n in range(count)
    ]


def ids(found):
    return [task.id for task in found]


def test_an_epoch_serves_every_task_once_and_the_next_in_another_order():
    config, all_tasks = RunConfig.of(prompts=4), tasks(12)
    first = [i for step in range(3) for i in ids(select_tasks(config, all_tasks, step))]
    second = [i for step in range(3, 6) for i in ids(select_tasks(config, all_tasks, step))]
    assert sorted(first) == sorted(second) == sorted(ids(all_tasks))
    assert first != second


MIXED = tasks(6, "A") + tasks(40, "B")


def mixture(**options):
    return RunConfig.of(env=("appo/A-v0", "appo/B-v0"), prompts=10, **options)


def test_a_mixture_draws_environments_by_weight_however_many_tasks_they_have():
    """400 draws at 3 to 1: 300 expected, deviation below 9."""
    config = mixture(env_weights=(3.0, 1.0))
    found = Counter(i[0] for step in range(40) for i in ids(select_tasks(config, MIXED, step)))
    assert sum(found.values()) == 400
    assert 260 < found["A"] < 340


def test_within_a_mixture_each_environment_goes_through_its_own_epochs():
    config = mixture()
    found = [i for step in range(12) for i in ids(select_tasks(config, MIXED, step))]
    own = [i for i in found if i.startswith("A")]
    for epoch in range(len(own) // 6):
        assert len(set(own[epoch * 6 : epoch * 6 + 6])) == 6


def test_the_tasks_of_a_mixture_depend_on_the_iteration_alone():
    config = mixture()
    assert ids(select_tasks(config, MIXED, 7)) == ids(select_tasks(config, MIXED, 7))
    assert ids(select_tasks(config, MIXED, 7)) != ids(select_tasks(config, MIXED, 8))


def levels_of(found):
    return {dict(task.metadata)["level"] for task in found}


@pytest.mark.parametrize("names", [("2", "10", "1"), ("medium", "hard", "easy")])
def test_a_curriculum_lets_harder_levels_in_one_after_the_other(names):
    """Three levels over half of twelve iterations: two each, then all."""
    config = RunConfig.of(prompts=30, iterations=12, curriculum=0.5)
    all_tasks = tasks(60, levels=names)
    easiest, middle, hardest = sorted(names, key=lambda n: (len(n), n)) if "1" in names else (
        "easy", "medium", "hard",
    )  # fmt: skip
    seen = [levels_of(select_tasks(config, all_tasks, step)) for step in range(12)]
    assert seen[0] == seen[1] == {easiest}
    assert seen[2] == seen[3] == {easiest, middle}
    assert all(levels == {easiest, middle, hardest} for levels in seen[4:])


def test_a_level_with_few_tasks_serves_them_again():
    config = RunConfig.of(prompts=5, iterations=10, curriculum=1.0)
    found = ids(select_tasks(config, tasks(4, levels=("1", "2")), 0))
    assert sorted(Counter(found).values()) == [2, 3]


def test_a_curriculum_without_levels_is_refused():
    with pytest.raises(UsageError, match="tasks of appo/X-v0 have no levels of difficulty"):
        check_tasks(RunConfig.of(env="appo/X-v0", curriculum=0.5), tasks(4))
    with pytest.raises(UsageError, match="no order of the levels north, south is known"):
        check_tasks(RunConfig.of(curriculum=0.5), tasks(4, levels=("north", "south")))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_weights_that_fit_no_environment_are_refused(weights):
    with pytest.raises(UsageError, match="expected one above 0 for each of appo/A-v0 appo/B-v0"):
        check_tasks(mixture(env_weights=weights), MIXED)


def other(answer, task):
    return toy_score(answer, task)._replace(value=0.25)


def mixed_env():
    from dataclasses import replace

    odd = replace(TOY, name="Odd", score=other, training_score=other)
    tools = (EchoTool("search"), EchoTool("python"))
    parts = [ToolEnv(one, tools=tools, split="train") for one in (TOY, odd)]
    return TaskMixture(parts)


def test_a_mixture_plays_each_task_in_its_own_environment():
    from learners.policy.loading import tiny_tokenizer

    env, tokenizer = mixed_env(), tiny_tokenizer()
    assert ids(env.tasks) == ["Toy:a", "Odd:a", "Toy:b", "Odd:b", "Toy:c", "Odd:c"]
    turns = {"0": [answer("2")] * 2}
    rollouts = Rollouts(env, ScriptedSampler(tokenizer, turns), tokenizer, 300, pause_s=0.0)
    trees = [rollouts.tree(env.tasks[index]) for index in (0, 1)]
    for tree in trees:
        tree.root()
    rollouts.run(trees, "0")
    assert [tree.trajectories[0].reward for tree in trees] == [1.0, 0.25]
    assert [tree.start.benchmark for tree in trees] == ["Toy", "Odd"]
    scores = [env.benchmark.score("2", tree.task).value for tree in trees]
    assert scores == [1.0, 0.25]
    assert env.benchmark.name == "Toy+Odd"


def test_a_mixture_of_the_same_environment_twice_is_refused(capsys, tmp_path):
    said = refused(
        capsys,
        f"--env appo/SyntheticQA-v0 appo/SyntheticQA-v0 --tools search --out {tmp_path}/run",
    )
    assert "a mixture needs environments of different benchmarks" in said


@pytest.mark.slow
def test_a_run_on_two_environments_trains_and_evaluates_on_both(taught, tmp_path, data_dir, capsys):
    import json

    main(
        "learners.grpo",
        f"--env appo/SyntheticQA-v0 appo/GSM8K-v0 --env-weights 1 3 --data-dir {data_dir} "
        f"--model {taught} --tools search calculator --prompts 4 --minibatch-prompts 2 "
        f"--rollouts 2 --iterations 1 --max-response-tokens 60 --eval-tasks 2 --threads 1 "
        f"--out {tmp_path}".split(),
    )
    rollouts = read_rows(tmp_path, 0)
    evaluated = json.loads((tmp_path / "evaluation-after.json").read_text())["tasks"]
    assert [row["task"].partition(":")[0] for row in evaluated] == ["SyntheticQA", "GSM8K"]
    names = Counter(row["task"].partition(":")[0] for row in rollouts)
    assert names.keys() <= {"SyntheticQA", "GSM8K"}
    assert names["GSM8K"] > 0
    assert "on appo/SyntheticQA-v0 appo/GSM8K-v0" in capsys.readouterr().out.replace("\n", " ")
