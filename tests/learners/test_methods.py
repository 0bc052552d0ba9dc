"""Every method keeps the same promises: repeatable, within its budget, moving the weights."""

import pytest
import torch

from envs import ToolEnv
from learners import aepo, arpo
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.runs.session import run_iteration
from learners.runs.training import Session
from learners.sampling.transformers_sampler import TransformersSampler
from tests.fakes import TOY, EchoTool
from tests.learner_fakes import UNEVEN
from tests.method_fakes import RUNS

every_method = pytest.mark.parametrize("method", RUNS)
OWN_ROLLOUTS = ("appo paper", "appo reference", "grpo", "dapo", "arpo", "aepo", "tree_grpo")
"""The others sample as GRPO does."""
every_rollout = pytest.mark.parametrize("method", OWN_ROLLOUTS)
quick_if_own = pytest.mark.parametrize(
    "method",
    [m if m in OWN_ROLLOUTS else pytest.param(m, marks=pytest.mark.slow) for m in RUNS],
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def session_of(folder, method, seed=0, benchmark=UNEVEN):
    """Three prompts, one per optimiser step; the tiny model's answers are sometimes right."""
    module, own = RUNS[method]
    config = module.Config.of(
        seed=seed, prompts=3, minibatch_prompts=1, max_response_tokens=72, **own
    )
    loaded = load_model(str(folder))
    tools = (EchoTool("search"), EchoTool("calculator"))
    env = ToolEnv(benchmark, tools=tools, split="train", reward="correctness")
    sampler = TransformersSampler(loaded.model, loaded.tokenizer, env.stop_tags)
    rollouts = Rollouts(
        env,
        sampler,
        loaded.tokenizer,
        config.sampling.max_response_tokens,
        config.sampling.temperature,
        seed,
    )
    policy = Policy(loaded, learning_rate=1e-3)
    return Session.of(config, policy, rollouts, folder), module.iteration


def numbers(metrics):
    return {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("seconds/", "memory/"))
    }


def trained(folder, method, iterations=2, seed=0):
    session, iteration = session_of(folder, method, seed)
    lines = []
    for _ in range(iterations):
        lines.append(numbers(run_iteration(session, iteration)))
        session.iteration += 1
    return lines, session


@quick_if_own
def test_the_same_seed_gives_the_same_metrics_and_weights_twice(taught, method):
    first, session = trained(taught, method)
    second, again = trained(taught, method)
    assert first == second
    ours, theirs = (one.policy.model.parameters() for one in (session, again))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other, _ = trained(taught, method, seed=1)
    assert other != first


@every_method
def test_an_iteration_moves_the_weights(taught, method):
    session, iteration = session_of(taught, method)
    before = [p.clone() for p in session.policy.model.parameters()]
    metrics = run_iteration(session, iteration)
    assert metrics["update/steps"] >= 1
    assert metrics["update/skipped"] == 0
    after = session.policy.model.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(p).all() for p in session.policy.model.parameters())


@every_method
def test_the_magnitude_of_advantages_is_that_of_the_tokens_trained_on(taught, method):
    """Computed again from each trajectory's diagnostics."""
    session, iteration = session_of(taught, method)
    metrics = run_iteration(session, iteration)
    trajectories = [t for tree in session.run.trees for t in tree.trajectories]
    sizes = [
        abs(float(a))
        for t in trajectories
        if t.diagnostics.advantages is not None and t.diagnostics.weights is not None
        for a, w, is_sampled in zip(
            t.diagnostics.advantages, t.diagnostics.weights, t.response_mask, strict=True
        )
        if is_sampled and w != 0
    ]
    assert len(sizes) == metrics["ledger/trained_tokens"] > 0
    assert metrics["advantage/magnitude"] == pytest.approx(sum(sizes) / len(sizes))


@every_rollout
def test_every_tree_has_exactly_its_budget_of_finished_trajectories(taught, method):
    module, _ = RUNS[method]
    session, iteration = session_of(taught, method)
    metrics = run_iteration(session, iteration)
    config = session.run.config
    roots = getattr(config, "initial_rollouts", config.rollouts)
    assert len(session.run.trees) == 3
    for tree in session.run.trees:
        assert len(tree.trajectories) == config.rollouts == 6
        # These start anew where everything has ended before the budget is used.
        assert len(tree.roots) == roots or (module in (arpo, aepo) and len(tree.roots) > roots)
        assert all(t.done for t in tree.trajectories)
        assert len({t.path for t in tree.trajectories}) == 6
        assert all(len(t) <= config.sampling.max_response_tokens for t in tree.trajectories)
    branches = sum(len(tree.branches) for tree in session.run.trees)
    assert metrics["branch/branches"] == branches
    assert branches == 3 * (6 - roots) or module in (arpo, aepo)


@every_rollout
def test_the_ledger_counts_every_sampled_token_once(taught, method):
    """Sampled and reused tokens are all tokens.

    The same holds for calls, except those whose result had no room: they cost, and are in no state.
    """
    session, iteration = session_of(taught, method)
    metrics = run_iteration(session, iteration)
    trajectories = [t for tree in session.run.trees for t in tree.trajectories]
    total = sum(t.sampled_tokens for t in trajectories)
    reused = metrics.get("ledger/reused_tokens", 0)
    assert metrics["ledger/sampled_tokens"] + reused == total
    calls = metrics.get("ledger/tool_calls", 0) + metrics.get("ledger/inherited_calls", 0)
    roomless = [
        t for t in trajectories if t.state.stop == "length" and t.turns[-1].action.stop == "tag"
    ]
    assert calls == sum(len(t.state.calls) for t in trajectories) + len(roomless)


@pytest.mark.parametrize("method", ["appo paper", "appo reference"])
def test_branches_share_their_parents_tokens_up_to_the_branch_point(taught, method):
    session, iteration = session_of(taught, method)
    run_iteration(session, iteration)
    for tree in session.run.trees:
        for branch in tree.branches:
            parent, position, _ = branch.parent
            assert branch.response_ids[:position] == parent.response_ids[:position]
            assert parent.response_mask[position]
            assert branch.response_mask[:position] == parent.response_mask[:position]


def test_the_first_minibatch_ranks_by_entropy_and_later_ones_by_score(taught):
    """The first tree's two roots had no moved policy; later trees have a score after an update."""
    session, iteration = session_of(taught, "appo paper")
    run, later = session.run, []
    for _ in range(3):
        metrics = run_iteration(session, iteration)
        run.iteration += 1
        assert metrics["branch/undefined"] >= 2
        assert all(branch.parent.score == 0 for branch in run.trees[0].branches)
        later += [branch.parent.score for tree in run.trees[1:] for branch in tree.branches]
    assert max(later) > 0


@pytest.mark.parametrize("method", ["appo paper", "grpo", "reinforce_pp", "dapo", "gigpo", "rloo"])
def test_equal_rewards_teach_nothing(taught, method):
    """The tiny model knows no answer of the toy benchmark: not even weight decay is applied."""
    session, iteration = session_of(taught, method, benchmark=TOY)
    before = [p.clone() for p in session.policy.model.parameters()]
    metrics = run_iteration(session, iteration)
    assert metrics["reward/mean"] == 0
    assert metrics.get("update/steps", 0) == 0
    after = session.policy.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
