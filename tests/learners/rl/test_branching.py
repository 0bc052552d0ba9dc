"""APPO's branching: the order of candidates, and budgets that are filled exactly."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners import appo
from learners.rl import branching
from learners.rl.losses import zscore
from learners.tree import Completion, Turn
from tests.tree_fakes import START, Notes, branch_off, grow, new_tree, stats_of

UNMOVED = None
QUIET = 0.0


def positions(ranking):
    return [point.position for point in ranking]


def ranking_of(root, stats, noise=QUIET, draw=0, used=(), **options):
    """The candidates of a trajectory, best first, and whether the score was defined."""
    config = appo.Config.of(**options)
    omega = branching.defined_omega(root, stats, config.discount, config.future_clip, noise)
    ranking = branching.rank_candidates(
        root,
        branching.score_tokens(root, stats, omega),
        config.branching,
        config.prefix,
        random.Random(draw),
        Counter((root, position) for position in used),
    )
    return [candidate.point for candidate in ranking], omega is not None


def ranked(entropies, logprobs=None, noise=QUIET, turns=None, **options):
    """The ranking of a root sampled at log-probability 0."""
    root = grow(new_tree(), *(turns or ((len(entropies), 0),)))
    return ranking_of(root, stats_of(root, logprobs, entropies), noise, **options)


def test_a_zscore_is_by_the_population():
    """1, 3: mean 2, deviation 1."""
    values = zscore(stats_of(grow(new_tree(), (2, 0)), [1.0, 3.0]).logprobs)
    assert values.tolist() == pytest.approx([-1, 1], abs=1e-5)


def test_before_the_policy_moves_tokens_are_ranked_by_entropy():
    ranking, defined = ranked([0.1, 0.9, 0.5], noise=UNMOVED)
    assert positions(ranking) == [1, 2, 0]
    assert {point.score for point in ranking} == {0}
    assert not defined


def test_equal_entropies_keep_the_order_of_the_text():
    ranking, _ = ranked([0.5] * 4, noise=UNMOVED)
    assert positions(ranking) == [0, 1, 2, 3]


def test_an_omega_that_spreads_like_rounding_is_no_score():
    """Omega 1.1, 1: deviation 0.05; noise of 0.03 could make that, noise of 0.02 could not."""
    logprobs = [0.09531, 0.0]
    assert ranked([0.0, 1.0], logprobs, noise=0.03, discount=1.0)[1] is False
    assert ranked([0.0, 1.0], logprobs, noise=0.02, discount=1.0)[1] is True


def test_tokens_both_uncertain_and_consequential_come_first_then_the_most_uncertain():
    """gamma 0: Omega is the token's own ratio, kept within 1 +- 0.2.

    Entropy 3 2 1 9 0, mean 3: only token 3 is above, and its ratio is below the mean. Entropy
    alone ranks it first; with the ratio of token 3 raised, its score does.
    """
    entropies = [3.0, 2.0, 1.0, 9.0, 0.0]
    ranking, defined = ranked(entropies, [0.1, 0.0, 0.0, -0.1, 0.1], discount=1e-9)
    assert defined
    assert positions(ranking) == [3, 0, 1, 2, 4]
    assert ranking[0].score < 0
    ranking, _ = ranked(entropies, [0.0, 0.0, 0.0, 0.1, 0.0], discount=1e-9)
    assert positions(ranking) == [3, 0, 1, 2, 4]
    assert ranking[0].score > 0


def test_a_product_of_two_negative_scores_is_not_preferred():
    """Tokens 0 and 1 are certain and without consequence: a positive product that means nothing."""
    ranking, _ = ranked([0.0, 0.1, 2.0, 1.0], [-0.2, -0.2, 0.1, 0.1], discount=1e-9)
    assert positions(ranking) == [2, 3, 1, 0]
    assert ranking[-1].score > 0
    assert positions(ranking)[:2] == [2, 3]


def test_the_score_beats_entropy_where_both_are_high():
    """Entropy 1, 1.1, 0, 0; ratio of token 0 is far larger: 0 before 1."""
    ranking, _ = ranked([1.0, 1.1, 0.0, 0.0], [0.18, 0.05, -0.1, -0.1], discount=1e-9)
    assert positions(ranking)[:2] == [0, 1]


def test_what_the_environment_wrote_is_never_ranked():
    ranking, _ = ranked([0.1, 9.0, 9.0, 0.2], noise=UNMOVED, turns=((1, 2), (1, 0)))
    assert positions(ranking) == [3, 0]


def chosen(lengths, rollouts, draw=0, moved=False, **options):
    tree = new_tree()
    for length in lengths:
        grow(tree, (length, 0))
    stats = {root: stats_of(root) for root in tree.roots}
    config = appo.Config.of(rollouts=rollouts, initial_rollouts=len(lengths), **options)
    noise = QUIET if moved else UNMOVED
    return tree, appo.choose_branch_points(
        tree, stats, config, random.Random(draw), noise, rollouts
    )


def test_each_root_gets_its_share_and_the_draw_decides_who_gets_the_rest():
    """M 9, N 4: five branches, one for each root and one more for one of them."""
    lucky = set()
    for draw in range(20):
        tree, choice = chosen([5, 5, 5, 5], 9, draw)
        counts = Counter(point.trajectory for point in choice.points)
        assert sorted(counts.values()) == [1, 1, 1, 2]
        lucky.add(tree.roots.index(counts.most_common(1)[0][0]))
    assert lucky == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", ["score", "random"])
def test_the_same_draw_gives_the_same_branches(rule):
    first, second = (chosen([5, 5, 5], 8, draw=7, branching=rule) for _ in range(2))
    assert [(p.trajectory.path, p.position) for p in first[1].points] == [
        (p.trajectory.path, p.position) for p in second[1].points
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 14), st.booleans())
def test_every_budget_is_filled_exactly_whatever_the_rollouts_are(lengths, budget, moved):
    tree, choice = chosen(lengths, len(lengths) + budget, moved=moved)
    assert len(choice.points) == budget
    share = budget // len(lengths)
    for root, length in zip(tree.roots, lengths, strict=True):
        left_at = [point.position for point in choice.points if point.trajectory is root]
        assert len(left_at) in (share, share + 1)
        assert len(set(left_at)) == min(len(left_at), length), (
            "one branch per token while tokens last"
        )
    for point in choice.points:
        tree.fork(point)
    assert len({branch.path for branch in tree.branches}) == budget


SHAPES = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3),
    min_size=1,
    max_size=4,
)
"""Turns of (sampled, observed) tokens, by root."""


def finish(branch, draw):
    """Finish a branch as a sampler would: sample the rest of its turn."""
    rest = tuple(range(900, 900 + draw.randint(1, 4)))
    action = branch.prefill + Completion(rest, (0.0,) * len(rest), (0.0,) * len(rest))
    branch.turns.append(Turn(START, action, ()))
    branch.prefill, branch.done = Completion(), True


@given(
    SHAPES,
    st.integers(0, 12),
    st.sampled_from(["score", "entropy", "future", "random", "tool"]),
    st.sampled_from(["before", "through"]),
    st.sampled_from(["rollout", "task"]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 5),
)
def test_every_rule_fills_every_budget_layer_by_layer(
    shapes, budget, rule, prefix, pool, layers, moved, seed
):
    """No branch skips a result: its prefix ends inside a turn, or at the beginning of one."""
    draw, tree = random.Random(seed), new_tree()
    for turns in shapes:
        grow(tree, *turns)
    config = appo.Config.of(
        rollouts=len(shapes) + budget,
        initial_rollouts=len(shapes),
        branching=rule,
        prefix=prefix,
        pool=pool,
        layers=layers,
    )
    noise = QUIET if moved else UNMOVED
    for size in branching.layer_sizes(len(shapes), config.rollouts, layers):
        stats = {}
        for trajectory in tree.trajectories:
            if trajectory.parent is not None:
                trajectory.old_logprobs = torch.zeros(len(trajectory))
            logprobs = [draw.choice((0.0, 0.1, -0.1)) for _ in range(len(trajectory))]
            stats[trajectory] = stats_of(
                trajectory, logprobs, [draw.random() for _ in range(len(trajectory))]
            )
        points = appo.choose_branch_points(tree, stats, config, draw, noise, size).points
        for point in points:
            assert point.trajectory.response_mask[point.position], "the next token is sampled"
            finish(tree.fork(point), draw)
        assert len(tree.trajectories) == size
    assert len(tree.trajectories) == config.rollouts
    assert len({trajectory.path for trajectory in tree.trajectories}) == config.rollouts


def test_undefined_scores_are_counted():
    for moved in (False, True):  # the second: nothing moved after all
        notes = Notes()
        branching.record_choice(chosen([3, 3, 3], 6, moved=moved)[1], notes.note, notes.count)
        assert notes.counts["branch/undefined"] == 3
        assert notes.notes["score/defined"] == [0.0] * 9
        assert "score/p50" not in notes.notes


def test_the_scores_of_tokens_are_described_where_they_are_defined():
    """Entropy 0, 1 and Omega 0.905, 1.105: both z-scores -1 and 1, so both products are 1."""
    root = grow(new_tree(), (2, 0))
    stats = stats_of(root, [-0.1, 0.1], [0.0, 1.0])
    omega = branching.defined_omega(root, stats, 1e-9, 0.2, QUIET)
    notes = Notes()
    scores = branching.score_tokens(root, stats, omega)
    branching.record_choice(branching.BranchChoice([], [scores]), notes.note, notes.count)
    assert notes.notes["score/strict"] == [0.0, 1.0]
    for name in ("p10", "p50", "p90"):
        assert notes.notes[f"score/{name}"] == pytest.approx([1.0], abs=1e-4)


def test_the_noise_is_the_largest_spread_of_any_root():
    tree = new_tree()
    calm, moved = grow(tree, (2, 0)), grow(tree, (2, 0))
    stats = {calm: stats_of(calm), moved: stats_of(moved, [0.09531, 0.0])}
    assert branching.omega_spread([calm], stats, 1.0, 0.2) == 0
    assert branching.omega_spread([calm, moved], stats, 1.0, 0.2) == pytest.approx(0.05, rel=1e-3)
    assert branching.omega_spread([], stats, 1.0, 0.2) == 0


RATIOS = [0.15, 0.05, -0.1, -0.1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("entropy", [3, 1, 0, 2]), ("future", [0, 1, 2, 3]), ("score", [1, 0, 3, 2])],
)
def test_each_rule_ranks_by_its_own_signal(rule, expected):
    """Entropy .5 .6 .1 .7, mean .475; Omega 1.162 1.051 .905 .905, mean 1.006.

    Only 0 and 1 are above both means: .025 times .156 is less than .125 times .046.
    """
    points, defined = ranked([0.5, 0.6, 0.1, 0.7], RATIOS, discount=1e-9, branching=rule)
    assert defined
    assert positions(points) == expected


def test_future_alone_is_drawn_where_it_is_undefined():
    orders = {
        tuple(positions(ranked([0.1, 0.9, 0.5], noise=UNMOVED, branching="future", draw=d)[0]))
        for d in range(30)
    }
    assert len(orders) == 6


def test_tool_boundaries_are_the_first_tokens_after_results():
    """Turns of two sampled and two observed tokens: results end before 4 and 8."""
    turns = ((2, 2), (2, 2), (2, 0))
    points, _ = ranked(
        [9.0, 9.0, 0.0, 0.0, 0.1, 9.0, 0.0, 0.0, 0.2, 9.0], turns=turns, branching="tool"
    )
    assert positions(points) == [8, 4]


def test_without_a_result_a_tool_boundary_branch_starts_at_the_prompt():
    assert positions(ranked([0.1, 0.9, 0.5], branching="tool")[0]) == [0]


def test_a_kept_token_is_never_one_that_ends_a_turn():
    """Tokens 1 and 3 end their turns: the branch would skip a result, or equal its parent."""
    turns = ((2, 1), (2, 0))
    points, _ = ranked([0.1, 9.0, 0.0, 0.2, 9.0], turns=turns, noise=UNMOVED, prefix="through")
    assert positions(points) == [4, 1], "one token more than the chosen one"


def test_an_answer_of_one_token_is_sampled_anew_even_where_tokens_are_kept():
    assert positions(ranked([0.5], noise=UNMOVED, prefix="through")[0]) == [0]


def test_a_rollout_that_sampled_nothing_begins_anew():
    """An engine may end a turn without a token."""
    tree = new_tree()
    root = grow(tree, (0, 0))
    points, _ = ranking_of(root, stats_of(root, [], []), UNMOVED)
    assert positions(points) == [0]
    assert tree.fork(points[0]).response_ids == ()


def test_pooled_branches_may_all_be_of_one_root():
    tree = new_tree()
    dull, keen = grow(tree, (3, 0)), grow(tree, (3, 0))
    stats = {dull: stats_of(dull, None, [0.1] * 3), keen: stats_of(keen, None, [0.9, 0.8, 0.7])}
    config = appo.Config.of(rollouts=5, initial_rollouts=2, pool="task")
    points = appo.choose_branch_points(tree, stats, config, random.Random(0), UNMOVED, 5).points
    assert [(p.trajectory, p.position) for p in points] == [(keen, 0), (keen, 1), (keen, 2)]
    config = appo.Config.of(rollouts=5, initial_rollouts=2)
    points = appo.choose_branch_points(tree, stats, config, random.Random(0), UNMOVED, 5).points
    assert Counter(p.trajectory for p in points).keys() == {dull, keen}


def test_a_token_that_was_branched_comes_after_those_that_were_not():
    root = grow(new_tree(), (3, 0))
    stats = stats_of(root, None, [0.9, 0.5, 0.1])
    points, _ = ranking_of(root, stats, UNMOVED, used=[0])
    assert positions(points) == [1, 2, 0]


def test_a_branch_is_branched_at_its_own_tokens_only():
    tree = new_tree()
    branch = branch_off(tree, grow(tree, (4, 0)), 2)
    finish(branch, random.Random(0))
    count = len(branch) - 2
    assert branching.own_tokens(branch).tolist() == list(range(2, 2 + count))
    assert branching.own_mask(branch).tolist() == [False] * 2 + [True] * count


def test_asking_for_a_branchs_own_tokens_leaves_its_mask_as_it_is():
    """The mask is built once and read by everything else: a shared token stays a sampled one."""
    tree = new_tree()
    branch = branch_off(tree, grow(tree, (4, 0)), 2)
    finish(branch, random.Random(0))
    branching.own_tokens(branch)
    branching.own_mask(branch)
    assert branch.tensors.mask.tolist() == list(branch.response_mask)


@pytest.mark.parametrize(
    ("roots", "total", "layers", "sizes"),
    [
        (4, 16, 1, [16]),
        (2, 16, 3, [4, 8, 16]),
        (4, 16, 2, [8, 16]),
        (1, 16, 2, [4, 16]),
        (3, 10, 2, [5, 10]),
        (4, 4, 3, [4, 4, 4]),
    ],
)
def test_layers_multiply_the_trajectories(roots, total, layers, sizes):
    """The first rows are the paper's, N (B + 1)^L: B 3; B 1, L 3; B 1, L 2; B 3, L 2."""
    assert branching.layer_sizes(roots, total, layers) == sizes


def test_a_branch_remembers_its_parents_old_log_probabilities():
    """The shared tokens were sampled by an older policy than the rest."""
    tree = new_tree()
    root = grow(tree, (3, 0), logprobs=-1.0)
    branch = branch_off(tree, root, 2)
    finish(branch, random.Random(0))
    stats = {branch: stats_of(branch, [-3.0] * len(branch), [0.0] * len(branch))}
    branching.remember_branch_logprobs([branch], stats)
    assert branch.old_logprobs.tolist() == [-1.0, -1.0] + [-3.0] * (len(branch) - 2)
