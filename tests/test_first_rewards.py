"""`reward/first`: what prompts' own rollouts earn, whatever a method adds by what it saw."""

import json

import pytest

from learners.first_rewards import FIRST, begun, first_reward, with_first_rewards
from learners.metrics import tree_metrics
from learners.training import main as train
from tests.test_metrics import tree_with


def row(tree, *path, reward, unavailable=None):
    return {"tree": tree, "path": path, "reward": reward, "unavailable": unavailable}


def test_prompts_count_alike_and_only_with_what_they_began_with():
    """Prompt 0 began with 1 and 0, prompt 1 with 1 and 1: 0.75. Left out are a root and a branch
    that came later, a prompt that was drawn later, and one whose tools failed."""
    rows = [row(0, 0, reward=1.0), row(0, 1, reward=0.0), row(0, 2, reward=0.0)]
    rows += [row(1, 0, reward=1.0), row(1, 1, reward=1.0), row(1, 1, 4, 0, reward=0.0)]
    rows += [row(2, 0, reward=0.0, unavailable="gone"), row(3, 0, reward=0.0)]
    assert first_reward(rows, prompts=3, roots=2) == 0.75
    assert first_reward(rows[-2:], prompts=3, roots=2) is None


def test_trees_tell_the_same():
    """Two roots each; prompt 0 was given a third, a prompt drawn later began with none."""
    first, second, later = tree_with([1, 0, 0], []), tree_with([1, 1], [0]), tree_with([0, 0], [])
    first.begun = second.begun = 2
    found = tree_metrics([first, second, later])
    assert found[FIRST] == 0.75
    assert found["reward/mean"] == pytest.approx(3 / 7)
    assert FIRST not in tree_metrics([later])


@pytest.mark.parametrize(
    ("config", "roots"),
    [
        ({"rollouts": 8}, 8),
        ({"rollouts": 8, "initial_rollouts": 2}, 2),
        ({"rollouts": 8, "initial_rollouts": 2, "pre_monitoring": False}, 2),
        ({"rollouts": 8, "initial_rollouts": 2, "pre_monitoring": True}, 1),
    ],
)
def test_a_config_tells_how_many_rollouts_a_prompt_begins_with(config, roots):
    assert begun(config) == roots


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("arpo", "--initial-rollouts 2 --branch-probability 0.1"),
        ("aepo", ""),
        ("dapo", "--generations 3"),
    ],
)
def test_rollout_files_give_what_the_run_noted(taught, tmp_path, method, more):
    """Of methods that add rollouts or prompts by what was sampled."""
    train(
        f"learners.{method}",
        f"--model {taught} --tools search calculator --prompts 2 --minibatch-prompts 2 --rollouts 4"
        f" --iterations 2 --max-response-tokens 60 --eval-tasks 0 --threads 1 --out {tmp_path} "
        f"{more}".split(),
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    noted = [line[FIRST] for line in lines]
    bare = [{k: v for k, v in line.items() if k != FIRST} for line in lines]
    assert [line[FIRST] for line in with_first_rewards(tmp_path, bare)] == noted
    assert with_first_rewards(tmp_path, lines) == lines
