"""The methods for tests: the credit, weighting and loss of each, and trees to credit."""

import random
from functools import partial
from types import SimpleNamespace

import torch

from learners import (
    aepo,
    appo,
    arpo,
    cispo,
    dapo,
    dr_grpo,
    gigpo,
    gppo,
    grpo,
    gspo,
    reinforce_pp,
    rloo,
    tree_grpo,
)
from learners.rl.advantages import centre, credit_groups, leave_one_out, normalise_groups
from learners.rl.losses import sequence_mean, sequence_sum, token_mean
from learners.tree import BranchPoint, Completion, Row, Turn
from tests.tree_fakes import START, Notes, grow, new_tree, stats_of


def procedure(trees):
    """APPO's credit, by a policy that has not moved; branches get no row."""
    config, notes, rows = appo.Config(), Notes(), []
    for tree in trees:
        stats = {root: stats_of(root) for root in tree.roots}
        rows += appo.procedure_advantages(tree, stats, config, notes)
    return rows


def entropy_aware(trees):
    """AEPO's credit; entropies grow along a response."""
    rows = normalise_groups(trees)
    masks = [torch.tensor(row.trajectory.response_mask) for row in rows]
    entropies = [torch.arange(len(mask)) / 7 for mask in masks]
    factors = aepo.entropy_factors(entropies, masks, aepo.Config().advantage_weight)
    return [Row(t, a * f) for (t, a), f in zip(rows, factors, strict=True)]


TREE = {"rollouts": 6, "initial_rollouts": 2}
RUNS = {
    "appo paper": (appo, TREE),
    "appo reference": (appo, {**TREE, "profile": "reference"}),
    "grpo": (grpo, {"rollouts": 6}),
    "reinforce_pp": (reinforce_pp, {"rollouts": 6}),
    "reinforce_pp baseline": (reinforce_pp, {"rollouts": 6, "baseline": "group"}),
    "dapo": (dapo, {"rollouts": 6}),
    "gppo": (gppo, {"rollouts": 6}),
    "cispo": (cispo, {"rollouts": 6}),
    "arpo": (arpo, {**TREE, "branch_probability": 0.9}),
    "aepo": (aepo, {**TREE, "branch_threshold": 0.1}),
    "tree_grpo": (tree_grpo, {**TREE, "kept_leaves": 2}),
    "gigpo": (gigpo, {"rollouts": 6}),
    "rloo": (rloo, {"rollouts": 6}),
    "dr_grpo": (dr_grpo, {"rollouts": 6}),
    "gspo": (gspo, {"rollouts": 6}),
}
"""Every method: its module, and fields of a run of six rollouts a prompt."""
CREDIT = {
    "appo paper": (procedure, partial(sequence_mean, rows=8)),
    "grpo": (normalise_groups, sequence_mean),
    "reinforce_pp": (
        partial(reinforce_pp.normalise_batch, config=reinforce_pp.Config()),
        token_mean,
    ),
    "reinforce_pp baseline": (
        partial(reinforce_pp.normalise_batch, config=reinforce_pp.Config.of(baseline="group")),
        token_mean,
    ),
    "dapo": (normalise_groups, token_mean),
    "gppo": (normalise_groups, token_mean),
    "cispo": (normalise_groups, token_mean),
    "arpo": (normalise_groups, token_mean),
    "aepo": (entropy_aware, token_mean),
    "tree_grpo": (partial(tree_grpo.credit_leaves, keep=None, draw=id), token_mean),
    "gigpo": (partial(gigpo.credit_trajectories, config=gigpo.Config()), token_mean),
    "rloo": (partial(credit_groups, estimator=leave_one_out), sequence_sum),
    "dr_grpo": (
        partial(credit_groups, estimator=centre),
        partial(sequence_sum, divisor=64),
    ),
    "gspo": (normalise_groups, sequence_mean),
}
"""Credit of trees and weighting of rows: what `iteration` puts together, which is tested."""
METHODS = {name: (RUNS[name][0], *parts) for name, parts in CREDIT.items()}
"""Module, credit, weighting; the published code's APPO has rows of its own and is not here."""
CLIPPING = [m for m in dict.fromkeys(m for m, _ in RUNS.values()) if m not in (appo, rloo)]
"""Modules whose `policy_loss` clips by the fields of their own `Config`."""
TRAINED_BRANCHES = ("arpo", "aepo", "tree_grpo")
"""Methods that fork and train what they fork."""


def loss_of(method):
    module = METHODS[method][0]
    return (
        module.policy_loss
        if module is rloo
        else partial(module.policy_loss, config=module.Config())
    )


def fork_after(tree, root, turns, *rest, reward=0.0, logprobs=0.0):
    """Make a finished branch: turns of a root, then its own as (tokens sampled, observed)."""
    branch = tree.fork(BranchPoint(root, sum(len(turn) for turn in root.turns[:turns])))
    token = 50
    for sampled, observed in rest:
        ids = tuple(range(token, token + sampled + observed))
        action = Completion(ids[:sampled], (logprobs,) * sampled, (0.0,) * sampled)
        branch.turns.append(Turn(START, action, ids[sampled:]))
        token += sampled + observed
    branch.reward, branch.done = reward, True
    branch.old_logprobs = torch.tensor([logprobs * own for own in branch.response_mask])
    return branch


def forest():
    """Two prompts; rollouts of one to three turns with results between; a branch of each."""
    first, second = new_tree(), new_tree()
    grow(first, (3, 2), (2, 0), reward=1.0, logprobs=-1.0)
    grow(first, (1, 0), logprobs=-1.0)
    grow(first, (2, 1), (1, 3), (4, 0), reward=0.25, logprobs=-1.0)
    grow(second, (2, 2), (3, 0), reward=0.5, logprobs=-1.0)
    grow(second, (5, 0), reward=-1.0, logprobs=-1.0)
    fork_after(first, first.roots[0], 1, (3, 1), (1, 0), reward=0.5, logprobs=-1.0)
    fork_after(second, second.roots[0], 1, (2, 0), reward=1.0, logprobs=-1.0)
    return [first, second]


class Composed:
    """A run that records the parts an iteration passes to it; its trees are the forest."""

    def __init__(self):
        self.recorder = self.trainer = self
        self.trees = forest()
        tasks = [tree.task for tree in self.trees]
        self.rollouts = SimpleNamespace(tokenizer=range(10), tasks=tasks)

    @classmethod
    def by(cls, module, **options):
        """Run a method's iteration and return the run."""
        run = cls()
        module.iteration([], run, module.Config.of(prompts=len(run.trees), **options))
        return run

    def new_trees(self, tasks, roots):
        return self.trees

    def rollout(self, trees, after_turn=None):
        return trees

    def remember_reference_logprobs(self, trajectories):
        pass

    def draw(self, name):
        return random.Random(name)

    def count(self, name, amount):
        pass

    def note(self, name, values):
        pass

    def sample_and_update(self, tasks, *, roots, **parts):
        self.credit_and_update(self.trees, **parts)

    def credit_and_update(self, trees, *, advantages, weights, loss):
        self.advantages, self.weights, self.loss = advantages, weights, loss


class Credited(Notes):
    """A run that records the rows it is asked to learn from; nothing is sampled."""

    def __init__(self, trees):
        super().__init__()
        self.trees, self.updates = trees, []
        self.rollouts = SimpleNamespace(tokenizer=range(10))

    def new_trees(self, tasks, roots):
        return self.trees

    def draw(self, name):
        return None

    def rollout(self, trees, after_turn=None):
        return trees

    def remember_old_logprobs(self, trajectories):
        pass

    def minibatches(self, trees):
        return [[tree] for tree in trees]

    def token_stats(self, trajectories):
        return {t: stats_of(t, entropies=[0.1 * i for i in range(len(t))]) for t in trajectories}

    def update_by(self, rows, weights, loss):
        self.update(rows, weights([r.trajectory.tensors.mask for r in rows]), loss)

    def update(self, rows, weights, loss):
        self.updates.append(SimpleNamespace(rows=rows, weights=weights, loss=loss))
