"""Rollout trees written by hand: their tokens, by origin, and their rewards."""

from collections import Counter, defaultdict

import torch

from envs import EnvState
from learners.policy.policy import TokenStats
from learners.tree import BranchPoint, Completion, RolloutTree, Turn
from tests.fakes import TOY, toy_load

TASK = toy_load("train")[0]
START = EnvState(TOY.name, TOY.revision, "train", TASK.id)


def new_tree():
    return RolloutTree(TASK, (100, 101), START)


def grow(tree, *turns, reward=0.0, logprobs=0.0, entropies=0.0):
    """Add a finished root; a turn is (tokens sampled, tokens observed), ids count up from 1."""
    root = tree.root()
    token = 1
    for sampled, observed in turns:
        ids = tuple(range(token, token + sampled + observed))
        action = Completion(ids[:sampled], (logprobs,) * sampled, (entropies,) * sampled)
        root.turns.append(Turn(START, action, ids[sampled:]))
        token += sampled + observed
    root.reward, root.done = reward, True
    root.old_logprobs = torch.tensor([logprobs * own for own in root.response_mask])
    return root


def branch_off(tree, root, position, reward=0.0, score=0.0):
    """Add a finished branch."""
    branch = tree.fork(BranchPoint(root, position, score))
    branch.reward, branch.done = reward, True
    return branch


def tree_with(roots, branches=(), turns=((2, 0),)):
    """A tree of roots and branches with these rewards; all branches leave the first root."""
    tree = new_tree()
    for reward in roots:
        grow(tree, *turns, reward=reward)
    for reward in branches:
        branch_off(tree, tree.roots[0], 1, reward)
    return tree


def stats_of(root, logprobs=None, entropies=None):
    """Token statistics of a root under a policy; by default the one that sampled it."""
    count = len(root)
    logprobs = root.old_logprobs if logprobs is None else torch.tensor(logprobs)
    entropies = torch.zeros(count) if entropies is None else torch.tensor(entropies)
    return TokenStats(logprobs, entropies)


class Notes:
    """A run that records; it is its own recorder and trainer."""

    def __init__(self):
        self.recorder = self.trainer = self
        self.counts, self.notes = Counter(), defaultdict(list)

    def count(self, name, amount):
        self.counts[name] += amount

    def note(self, name, values):
        self.notes[name].extend(values)
