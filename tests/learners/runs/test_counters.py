"""Counters other than tokens and calls: prefills, retries, replays."""

import torch

from envs import ToolEnv
from learners.ledger import Ledger
from learners.policy.loading import load_model
from learners.rollouts.rollout import Rollouts
from learners.runs.session import count_since, read_counters
from learners.sampling.transformers_sampler import TransformersSampler
from tests.fakes import toy_env
from tests.learner_fakes import FlakyTool, ScriptedSampler
from tools.tool import ToolContext


def test_every_attempt_but_the_first_is_a_retry(taught):
    tokenizer = load_model(str(taught)).tokenizer
    turns = {"0": ["<search> x</search>", "<answer> 5</answer>"]}
    sampler, ledger = ScriptedSampler(tokenizer, turns), Ledger()
    rollouts = Rollouts(toy_env(FlakyTool(2)), sampler, tokenizer, 200, pause_s=0, ledger=ledger)
    tree = rollouts.tree(rollouts.env.tasks[0])
    tree.root()
    rollouts.run([tree], key="0")
    assert tree.unavailable is None
    metrics = ledger.take()
    assert metrics["ledger/retries"] == 2
    assert metrics["ledger/tool_calls"] == 1


def test_the_prefix_tokens_that_the_sampler_reads_are_counted(taught):
    """Three rollouts of one prompt: it is read once or more, never more than by each."""
    torch.set_num_threads(1)
    loaded = load_model(str(taught))
    env = toy_env()
    sampler = TransformersSampler(loaded.model, loaded.tokenizer, env.stop_tags)
    rollouts = Rollouts(env, sampler, loaded.tokenizer, 8)
    for _ in range(2):  # the second time nothing of the first is counted
        sampler.sync()
        before = read_counters(rollouts)
        tree = rollouts.tree(env.tasks[0])
        for _ in range(3):
            tree.root()
        rollouts.run([tree], key="0")
        count_since(before, rollouts)
        found = rollouts.ledger.take()["ledger/prefilled_tokens"]
        assert len(tree.prompt_ids) <= found <= 3 * len(tree.prompt_ids) + 3 * 8


def test_states_rebuilt_by_replay_are_counted(sandboxed_python, python_env):
    env: ToolEnv = python_env
    rollouts = Rollouts(env, ScriptedSampler(None, {}), None, 8)
    before = read_counters(rollouts)
    sandboxed_python.replays += 2
    count_since(before, rollouts)
    assert rollouts.ledger.take() == {"ledger/forked_states": 0, "ledger/replayed_states": 2}
    sandboxed_python.replays -= 2


def test_a_cell_forks_one_state_and_a_refused_one_none(sandboxed_python):
    state = sandboxed_python.initial_state(ToolContext(0))
    before = sandboxed_python.forks
    following, _ = sandboxed_python.run(state, "x = 1")
    for cell in ("x + 1", "x + 2", "1 / 0"):
        sandboxed_python.run(following, cell)
    sandboxed_python.run(following, "#" * 1_000_000)
    assert sandboxed_python.forks - before == 4
