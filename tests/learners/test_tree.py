"""Trees: where a trajectory may be forked, what a branch shares, and what its views say."""

import pytest

from envs import EnvState
from learners.tree import BranchPoint, Completion, RolloutTree, Turn
from tests.fakes import TOY, toy_load

TASK = toy_load("train")[0]
REFUSAL = (
    "position {} is not a sampled token of this trajectory of 9 response tokens; "
    "fork where response_mask is True"
)


def state(turns):
    """After a number of turns."""
    return EnvState(TOY.name, TOY.revision, "train", TASK.id, transcript=("said",) * turns)


def written(*ids, stop="tag"):
    """Sampled tokens, with log-probability -id / 10 and entropy id / 100 each."""
    return Completion(ids, tuple(-i / 10 for i in ids), tuple(i / 100 for i in ids), stop)


@pytest.fixture
def tree():
    """A root that wrote 1 2 3, saw 4 5, wrote 6 7 and saw 8 9."""
    tree = RolloutTree(TASK, (100, 101), state(0))
    root = tree.root()
    root.turns = [Turn(state(0), written(1, 2, 3), (4, 5)), Turn(state(1), written(6, 7), (8, 9))]
    root.state = state(2)
    return tree


def fork(tree, position, source=None):
    return tree.fork(BranchPoint(tree.roots[0] if source is None else source, position))


@pytest.mark.parametrize(
    ("position", "turns", "prefill"),
    [(0, 0, ()), (1, 0, (1,)), (2, 0, (1, 2)), (5, 1, ()), (6, 1, (6,))],
)
def test_a_fork_at_a_sampled_token_shares_the_turns_before_and_the_tokens_of_its_own(
    tree, position, turns, prefill
):
    branch = fork(tree, position)
    assert branch.state == state(turns)
    assert branch.prefill.token_ids == prefill
    assert branch.prefill.logprobs == tuple(-i / 10 for i in prefill)
    assert branch.prefill.entropies == tuple(i / 100 for i in prefill)
    assert branch.response_ids == tree.roots[0].response_ids[:position]
    assert len(branch) == position
    assert not branch.done


def test_a_branch_shares_its_parents_turn_objects(tree):
    branch = fork(tree, 6)
    assert branch.turns[0] is tree.roots[0].turns[0]
    branch.turns.append(Turn(state(1), written(6, 60), ()))
    assert [len(t.turns) for t in tree.trajectories] == [2, 2]
    assert tree.roots[0].turns[1].action.token_ids == (6, 7)


@pytest.mark.parametrize("position", [3, 4, 7, 8])
def test_a_fork_inside_an_observation_is_refused(tree, position):
    with pytest.raises(ValueError, match="position") as refused:
        fork(tree, position)
    assert str(refused.value) == REFUSAL.format(position)


@pytest.mark.parametrize("position", [-1, 10, 99])
def test_a_fork_outside_of_the_response_is_refused(tree, position):
    with pytest.raises(ValueError, match=f"position {position} is not a sampled token"):
        fork(tree, position)
    assert len(tree.trajectories) == 1


def test_an_unfinished_trajectory_may_be_forked_at_its_end(tree):
    branch = fork(tree, 9)
    assert branch.turns == tree.roots[0].turns
    assert branch.state == state(2)
    assert branch.prefill == Completion()


def test_a_finished_trajectory_may_not_be_forked_at_its_end(tree):
    tree.roots[0].done = True
    with pytest.raises(ValueError, match="position") as refused:
        fork(tree, 9)
    assert str(refused.value) == REFUSAL.format(9)
    assert fork(tree, 6).prefill.token_ids == (6,)


def test_an_open_turn_is_forked_at_its_end_and_nowhere_inside(tree):
    """Its first tokens belong to the parent: the branch of a branch forks there, or there again."""
    branch = fork(tree, 2)
    again = fork(tree, 2, branch)
    assert again.prefill.token_ids == (1, 2)
    with pytest.raises(ValueError, match="position 1 is not a sampled token"):
        fork(tree, 1, branch)


def test_branches_of_branches_fork_where_their_own_tokens_begin_or_earlier(tree):
    """The branch wrote 1 20 30, saw 40, wrote 50: a fork at 4 is its own, one at 1 the root's."""
    branch = fork(tree, 1)
    branch.turns = [Turn(state(0), branch.prefill + written(20, 30), (40,))]
    branch.prefill, branch.state = written(50), state(1)
    own, shared = fork(tree, 2, branch), fork(tree, 5, branch)
    assert own.response_ids == (1, 20)
    assert own.state == state(0)
    assert shared.response_ids == (1, 20, 30, 40, 50)
    assert shared.turns[0] is branch.turns[0]
    assert own.parent == BranchPoint(branch, 2)
    with pytest.raises(ValueError, match="position 3 is not a sampled token"):
        fork(tree, 3, branch)


def test_every_path_of_a_tree_is_its_own(tree):
    """Root 0; twice at 5; from the first of those at 5; a second root, and from it at 0."""
    first, second = fork(tree, 5), fork(tree, 5)
    deeper = fork(tree, 5, first)
    other = tree.root()
    paths = [t.path for t in (tree.roots[0], first, second, deeper, other)]
    assert paths == [(0,), (0, 5, 0), (0, 5, 1), (0, 5, 0, 5, 0), (1,)]
    assert fork(tree, 0, other).path == (1, 0, 0)
    assert fork(tree, 0).path == (0, 0, 0)
    every = [t.path for t in tree.trajectories]
    assert len(set(every)) == len(every)


def test_roots_and_branches_are_told_apart(tree):
    branch = fork(tree, 5)
    assert tree.roots == tree.trajectories[:1]
    assert tree.branches == [branch]


def test_views_speak_of_the_same_tokens(tree):
    """Position 5 is token 6 in each; observations and prompt have no log-probability of ours."""
    branch = fork(tree, 6)
    assert branch.response_ids == (1, 2, 3, 4, 5, 6)
    assert branch.response_mask == (True, True, True, False, False, True)
    assert branch.sampler_logprobs == (-0.1, -0.2, -0.3, 0.0, 0.0, -0.6)
    assert branch.sampler_entropies == (0.01, 0.02, 0.03, 0.0, 0.0, 0.06)
    assert len(branch) == 6
    assert branch.sampled_tokens == 4


def test_a_prefill_and_what_follows_it_are_one_completion():
    """The stop is that of what followed."""
    completion = written(1, 2).first(1) + written(3, stop="eos")
    assert completion == Completion((1, 3), (-0.1, -0.3), (0.01, 0.03), "eos")


def test_a_new_trajectory_has_an_empty_response(tree):
    root = tree.root()
    assert (len(root), root.response_ids, root.response_mask, root.sampler_logprobs) == (
        0,
        (),
        (),
        (),
    )
    assert root.state == state(0)
