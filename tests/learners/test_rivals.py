"""The rivals: their losses and their credit, worked by hand on a few tokens."""

import ast
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from learners import dapo, gigpo, grpo, reinforce_pp
from learners.errors import UsageError
from learners.ledger import Ledger
from learners.policy.policy import UpdateMetrics
from learners.rl.advantages import leave_one_out, normalise
from learners.rl.losses import mismatch_weights
from learners.runs.recorder import Recorder
from learners.runs.trainer import PolicyTrainer
from learners.tree import Completion, Row, Turn
from tests.conftest import ROOT
from tests.method_fakes import METHODS, RUNS, loss_of
from tests.tree_fakes import START, TASK, Notes, new_tree, tree_with

every_method = pytest.mark.parametrize("method", METHODS)


def two_tokens(method, ratios, advantages):
    """Loss and gradient of one row of two tokens, each weighing 1/2."""
    old = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    logprobs = (old + torch.tensor([ratios], dtype=torch.float64).log()).requires_grad_()
    batch = SimpleNamespace(
        old_logprobs=old,
        advantages=torch.tensor([advantages], dtype=torch.float64),
        response_mask=torch.ones(1, 2, dtype=torch.bool),
        weights=torch.full((1, 2), 0.5, dtype=torch.float64),
    )
    loss = loss_of(method)(logprobs, batch)
    loss.backward()
    return loss.item(), logprobs.grad[0].tolist()


@pytest.mark.parametrize(
    ("method", "ratios", "advantages", "gradient"),
    [
        # Inside of every clip: -r A / 2.
        ("reinforce_pp", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("dapo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("gppo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("cispo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("dr_grpo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        # A likely good token and an unlikely bad one: clipped to nothing, or to the bound.
        ("appo paper", (1.5, 0.5), (1, -1), (0, 0)),
        ("grpo", (1.5, 0.5), (1, -1), (0, 0)),
        ("reinforce_pp", (1.5, 0.5), (1, -1), (0, 0)),
        ("dr_grpo", (1.5, 0.5), (1, -1), (0, 0)),
        ("arpo", (1.5, 0.5), (1, -1), (0, 0)),
        ("tree_grpo", (1.5, 0.5), (1, -1), (0, 0)),
        ("gigpo", (1.5, 0.5), (1, -1), (0, 0)),
        ("dapo", (1.5, 0.5), (1, -1), (0, 0)),
        ("dapo", (1.25, 0.5), (1, -1), (-0.625, 0)),
        ("gppo", (1.5, 0.5), (1, -1), (-0.64, 0.4)),
        ("cispo", (1.5, 0.5), (1, -1), (-0.75, 0.25)),
        ("cispo", (9, 9), (1, -1), (-2.5, 2.5)),
        # An unlikely good token and a likely bad one: never clipped but by the dual clip.
        ("appo paper", (0.5, 11), (1, -1), (-0.25, 5.5)),
        ("grpo", (0.5, 11), (1, -1), (-0.25, 5.5)),
        ("reinforce_pp", (0.5, 11), (1, -1), (-0.25, 5.5)),
        ("dr_grpo", (0.5, 11), (1, -1), (-0.25, 5.5)),
        ("gppo", (0.5, 2), (1, -1), (-0.25, 1)),
        ("gppo", (0.5, 11), (1, -1), (-0.25, 0)),
        ("dapo", (0.5, 11), (1, -1), (-0.25, 0)),
        ("arpo", (0.5, 3.5), (1, -1), (-0.25, 0)),
        ("gigpo", (0.5, 2.5), (1, -1), (-0.25, 1.25)),
        ("tree_grpo", (0.5, 3.5), (1, -1), (-0.25, 0)),
        # AEPO keeps what is over its clip, and only that.
        ("aepo", (1.1, 0.9), (1, -1), (-0.55, 0.45)),
        ("aepo", (1.5, 0.5), (1, -1), (-0.6, 0)),
        ("aepo", (0.5, 3.5), (1, -1), (-0.25, 0)),
        # REINFORCE does not look at the ratio.
        ("rloo", (7, 0.1), (1, -1), (-0.5, 0.5)),
        # s = (4 * 1/4)^(1/2) = 1; then s = 2, clipped for a good row.
        ("gspo", (4, 0.25), (1, 1), (-0.5, -0.5)),
        ("gspo", (4, 1), (1, 1), (0, 0)),
        ("gspo", (4, 1), (-1, -1), (1, 1)),
    ],
)
def test_the_gradient_of_two_tokens_is_what_the_paper_says(method, ratios, advantages, gradient):
    _, actual = two_tokens(method, ratios, advantages)
    assert actual == pytest.approx(gradient, abs=1e-12)


def test_gppo_has_the_value_of_the_clipped_surrogate():
    """-(1.28 - 0.8) / 2: what clip-higher has, in value alone."""
    ours, _ = two_tokens("gppo", (1.5, 0.5), (1, -1))
    assert ours == pytest.approx(two_tokens("dapo", (1.5, 0.5), (1, -1))[0])
    assert ours == pytest.approx(-0.24)


RIVALS = sorted({m.__name__ for m, _, _ in METHODS.values() if m.__name__ != "learners.appo"})


@pytest.mark.parametrize("name", RIVALS)
def test_every_field_of_a_rival_says_where_its_default_is_from(name):
    """In brackets at the end of what `--help` shows."""
    source = (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    (config,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == "Config"]
    fields = [n for n in config.body[1:] if not isinstance(n, ast.FunctionDef)]
    assert fields
    for field, text in zip(fields[::2], fields[1::2], strict=True):
        assert isinstance(field, ast.AnnAssign)
        assert re.search(r"\[[^\]]{4,}\]$", text.value.value), field.target.id


BRANCHING = [m for m, fields in dict(RUNS.values()).items() if "initial_rollouts" in fields]


@pytest.mark.parametrize("module", BRANCHING)
def test_more_initial_rollouts_than_rollouts_are_refused(module):
    """As many are a tree without branches."""
    message = "--initial-rollouts 5 is more than --rollouts 4, which counts them and the branches"
    with pytest.raises(UsageError, match=message):
        module.Config.of(rollouts=4, initial_rollouts=5).validate()
    even = module.Config.of(rollouts=4, initial_rollouts=4)
    even.validate()
    with pytest.raises(UsageError, match="--initial-rollouts 4 is more than --rollouts 3"):
        even.override(rollouts=3).validate()


@every_method
def test_at_ratio_one_every_method_is_the_policy_gradient(method):
    """Before the first step of an iteration all clips are the same: -A / 2."""
    _, gradient = two_tokens(method, (1, 1), (0.5, -2) if method != "gspo" else (0.5, 0.5))
    assert gradient == pytest.approx((-0.25, 1.0) if method != "gspo" else (-0.25, -0.25))


def test_leave_one_out_compares_with_the_others():
    """1 - (0 + 2) / 2 = 0; 0 - 3 / 2; 2 - 1 / 2."""
    advantages = leave_one_out(torch.tensor([1.0, 0.0, 2.0]))
    assert advantages.tolist() == pytest.approx([0, -1.5, 1.5])


def test_whitening_is_over_tokens_of_all_prompts():
    """Rewards 1 and 0 on 3 tokens and 1: mean 3/4, sample deviation 1/2."""
    one, other = tree_with([1.0], turns=((3, 0),)), tree_with([0.0], turns=((1, 0),))
    rows = reinforce_pp.normalise_batch([one, other], reinforce_pp.Config())
    assert rows[0].advantages.tolist() == pytest.approx([0.5] * 3)
    assert rows[1].advantages.tolist() == pytest.approx([-1.5])


def test_a_return_is_discounted_by_sampled_tokens_only():
    """Turns of 1 and 2 tokens with a result of 3 between, gamma 1/2: 1/4, then 1/2 and 1."""
    mask = torch.tensor([1, 0, 0, 0, 1, 1]).bool()
    rewards = torch.tensor([0.0, 0, 0, 0, 0, 1])
    returns = reinforce_pp.rewards_to_go(rewards, mask, 0.5)
    assert returns.tolist() == [0.25, 0, 0, 0, 0.5, 1]


def test_mismatch_weights_are_cut_from_above_or_zeroed_outside():
    ratio, mask = torch.tensor([0.25, 1.0, 8.0]).log(), torch.tensor([True, False, True])
    assert mismatch_weights(ratio, mask, 2.0).tolist() == pytest.approx([0.25, 0, 2])
    assert mismatch_weights(ratio, mask, 2.0, 0.5).tolist() == [0, 0, 0]
    by_row = mismatch_weights(ratio, mask, 5.0, whole_rows=True)
    assert by_row.tolist() == pytest.approx([2, 0, 2])


@pytest.mark.parametrize(("length", "penalty"), [(1, 0), (80, 0), (90, -0.5), (100, -1)])
def test_the_overlong_penalty_grows_over_the_last_part_of_the_room(length, penalty):
    tree = tree_with([2.0], turns=((length, 0),))
    config = dapo.Config.of(max_response_tokens=100)
    assert dapo.shaped_reward(tree.roots[0], config) == pytest.approx(2 + penalty)


class Sampled(Notes):
    """A run whose rollouts earn scripted rewards; it has six tasks."""

    def __init__(self, rewards):
        super().__init__()
        self.rewards, self.asked = iter(rewards), []
        tasks = [replace(TASK, id=f"t{i}") for i in range(6)]
        self.rollouts = SimpleNamespace(tasks=tasks)

    def new_trees(self, tasks, roots):
        self.asked.append([task.id for task in tasks])
        trees = []
        for task in tasks:
            trees.append(tree_with(next(self.rewards)))
            trees[-1].task = task
        return trees

    def rollout(self, trees):
        return trees

    def draw(self, name):
        return random.Random(name)


def test_dapo_samples_on_until_enough_prompts_teach():
    run = Sampled([(1, 1), (0, 1), (0, 0), (1, 0), (0, 1), (1, 1)])
    tasks = run.rollouts.tasks[:2]
    trees = dapo.sample_informative_trees(tasks, run, dapo.Config.of(prompts=2))
    assert [[t.reward for t in tree.roots] for tree in trees] == [[0, 1], [1, 0]]
    assert len(run.trees) == 4
    assert len({name for asked in run.asked for name in asked}) == 4
    assert run.counts["sampling/generations"] == 2
    assert run.counts["sampling/equal_groups"] == 2


def test_dapo_stops_at_its_bound_and_trains_on_fewer_prompts():
    run = Sampled([(1, 1), (0, 1)] * 3)
    trees = dapo.sample_informative_trees(
        run.rollouts.tasks[:2], run, dapo.Config.of(prompts=4, generations=1)
    )
    assert len(trees) == 1
    run = Sampled([(1, 1)] * 6)
    assert (
        dapo.sample_informative_trees(run.rollouts.tasks[:2], run, dapo.Config.of(prompts=2)) == []
    )
    assert run.counts["sampling/generations"] >= 3  # then all tasks have been used


@pytest.mark.parametrize(
    ("terms", "score"),
    [
        ({"format": -1.0}, 0.0),
        ({"score": 0.0, "tools": 0.0}, 0.0),
        ({"score": 1.0, "tools": 0.1}, 1.0),
        ({"correctness": 1.0}, 7.0),
        ({"arpo": 0.6}, 7.0),
    ],
)
def test_dapo_looks_at_the_answers_score_alone_if_the_reward_reports_it(terms, score):
    (root,) = tree_with([7.0]).roots
    root.reward_terms = terms
    assert dapo.answer_score(root) == score


def test_dapo_skips_a_prompt_that_differs_in_format_only():
    """No rollout is right: one has no answer, one a wrong one."""
    run = Sampled([(-1, 0), (0, 1)])
    malformed, right = {"format": -1.0}, {"score": 1.0, "tools": 0.0}
    terms = {-1: malformed, 0: {"score": 0.0, "tools": 0.0}, 1: right}

    def rollout(trees):
        for trajectory in (t for tree in trees for t in tree.trajectories):
            trajectory.reward_terms = terms[trajectory.reward]
        return trees

    run.rollout = rollout
    config = dapo.Config.of(prompts=2, generations=1)
    (informative,) = dapo.sample_informative_trees(run.rollouts.tasks[:2], run, config)
    assert [t.reward for t in informative.roots] == [0, 1]


def test_turns_after_the_same_result_are_one_group():
    """Two rollouts answer the question, then both see "A" and one of them "B"."""
    tree = new_tree()
    for reward, seen in ((1.0, ("A", "B")), (0.0, ("A",))):
        root = tree.root()
        root.reward, root.done, transcript = reward, True, ()
        for observation in ("", *seen):
            transcript += ("said", observation) if observation else ()
            state = replace(START, transcript=transcript)
            root.turns.append(Turn(state, Completion((1, 2), (0.0,) * 2, (0.0,) * 2), (3,)))
    long, short = tree.roots
    assert gigpo.anchors(long) == ["", "A", "B"]
    assert gigpo.step_returns(long, 0.5).tolist() == [0.25, 0.5, 1]
    advantages = gigpo.tree_advantages(tree, gigpo.Config.of(discount=0.5))
    half = 0.5**0.5  # of two values, each is this many sample deviations from the mean
    assert advantages[0].tolist() == pytest.approx([2 * half] * 6 + [half] * 3, rel=1e-4)
    assert advantages[1].tolist() == pytest.approx([-2 * half] * 6, rel=1e-4)
    assert len(short) == 6


def test_without_a_deviation_gigpo_only_takes_means_off():
    """Both turns begin at the question: returns 1/2, 1 and 0, 0 less 3/8; episodes 1 and 0."""
    tree = tree_with([1.0, 0.0], turns=((1, 1), (1, 0)))
    advantages = gigpo.tree_advantages(tree, gigpo.Config.of(divide_by="none", discount=0.5))
    assert advantages[0].tolist() == pytest.approx([0.625, 0.625, 1.125])
    assert advantages[1].tolist() == pytest.approx([-0.875] * 3)


def test_similar_anchors_share_a_group_where_asked_to():
    anchors = [
        "the quick brown fox",
        "the quick brown fix",
        "something else",
        "the quick brown fox",
    ]
    assert gigpo.step_groups(anchors, 1.0) == [0, 1, 2, 0]
    assert gigpo.step_groups(anchors, 0.9) == [0, 0, 1, 0]


def test_normalising_is_exact_about_equal_rewards():
    assert not normalise(torch.tensor([0.7] * 8, dtype=torch.float64)).any()


def test_a_token_counts_by_policy_over_sampler_up_to_a_cap():
    """Ratios 1/2, 1 and 8 at a cap of 2, whatever the method; without a cap nothing changes."""
    tree = tree_with([1.0], turns=((3, 0),))
    (root,) = tree.roots
    root.old_logprobs = torch.tensor([0.5, 1.0, 8.0]).log()  # the sampler reported log 1
    seen = []

    def update(rows, weights, loss):
        seen.append([w.tolist() for w in weights])
        return UpdateMetrics(0.0, 0.0, False)

    for cap in (None, 2.0):
        config = grpo.Config.of(sampler_correction=cap)
        policy, sampler = SimpleNamespace(update=update, updates=0), SimpleNamespace(sync=list)
        trainer = PolicyTrainer(config, policy, sampler, Ledger(), Recorder())
        trainer.update([Row(root, torch.ones(3))], [torch.full((3,), 0.5)], None)
    assert seen == [[[0.5] * 3], [pytest.approx([0.25, 0.5, 1.0])]]
