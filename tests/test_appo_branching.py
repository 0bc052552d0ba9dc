"""Where APPO branches: which tokens come first, and that every budget is filled exactly."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners import appo
from tests.tree_fakes import grow, new_tree, stats_of

UNMOVED = None
QUIET = 0.0


def positions(ranking):
    return [point.position for point in ranking]


def ranked(entropies, logprobs=None, noise=QUIET, turns=None, **options):
    """The ranking of a root sampled at log-probability 0."""
    root = grow(new_tree(), *(turns or ((len(entropies), 0),)))
    stats = stats_of(root, logprobs, entropies)
    return appo.ranked_tokens(root, stats, appo.Config(**options), noise)


def test_a_zscore_is_by_the_population():
    """1, 3: mean 2, deviation 1."""
    values = appo.zscore(stats_of(grow(new_tree(), (2, 0)), [1.0, 3.0]).logprobs)
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


def chosen(lengths, rollouts, draw=0, moved=False):
    tree = new_tree()
    for length in lengths:
        grow(tree, (length, 0))
    stats = {root: stats_of(root) for root in tree.roots}
    config = appo.Config(rollouts=rollouts, initial_rollouts=len(lengths))
    noise = random.Random(draw)
    return tree, appo.branch_points(tree, stats, config, noise, QUIET, moved=moved)


def test_each_root_gets_its_share_and_the_draw_decides_who_gets_the_rest():
    """M 9, N 4: five branches, one for each root and one more for one of them."""
    lucky = set()
    for draw in range(20):
        tree, branching = chosen([5, 5, 5, 5], 9, draw)
        counts = Counter(point.trajectory for point in branching.points)
        assert sorted(counts.values()) == [1, 1, 1, 2]
        lucky.add(tree.roots.index(counts.most_common(1)[0][0]))
    assert lucky == {0, 1, 2, 3}


def test_the_same_draw_gives_the_same_branches():
    first, second = (chosen([5, 5, 5], 8, draw=7) for _ in range(2))
    assert [(p.trajectory.path, p.position) for p in first[1].points] == [
        (p.trajectory.path, p.position) for p in second[1].points
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 14), st.booleans())
def test_every_budget_is_filled_exactly_whatever_the_rollouts_are(lengths, budget, moved):
    tree, branching = chosen(lengths, len(lengths) + budget, moved=moved)
    assert len(branching.points) == budget
    each = budget // len(lengths)
    for root, length in zip(tree.roots, lengths, strict=True):
        own = [point.position for point in branching.points if point.trajectory is root]
        assert len(own) in (each, each + 1)
        assert len(set(own)) == min(len(own), length), "one branch per token while tokens last"
    for point in branching.points:
        tree.fork(point)
    assert len({branch.path for branch in tree.branches}) == budget


def test_undefined_scores_are_counted():
    assert chosen([3, 3, 3], 6)[1].undefined == 3
    assert chosen([3, 3, 3], 6, moved=True)[1].undefined == 3, "nothing moved after all"


def test_the_noise_is_the_largest_spread_of_any_root():
    tree = new_tree()
    calm, moved = grow(tree, (2, 0)), grow(tree, (2, 0))
    stats = {calm: stats_of(calm), moved: stats_of(moved, [0.09531, 0.0])}
    config = appo.Config(discount=1.0)
    assert appo.omega_spread([calm], stats, config) == 0
    assert appo.omega_spread([calm, moved], stats, config) == pytest.approx(0.05, rel=1e-3)
    assert appo.omega_spread([], stats, config) == 0
