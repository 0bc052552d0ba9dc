"""Intervals of a comparison: by hand on small numbers, against slow oracles, and their coverage."""

import numpy as np
import pytest

from learners.compare.bootstrap import (
    Draws,
    area_weights,
    difference,
    draw,
    interpolate,
    interquartile_mean,
    mean,
    pass_at,
    probability_of_improvement,
    profile,
    resampled_means,
)

LEVELS = ["1", "2", "1", "2"]
OURS = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
THEIRS = np.array([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])


def test_tasks_are_drawn_within_their_levels():
    drawn = draw(2, LEVELS, 50).tasks
    assert (drawn[:, [0, 2]].sum(axis=1) == 2).all()
    assert (drawn[:, [1, 3]].sum(axis=1) == 2).all()
    assert len(np.unique(drawn, axis=0)) > 1


def test_a_drawn_mean_is_the_mean_of_what_was_drawn():
    """Against a loop over drawn seeds and tasks."""
    draws = draw(2, LEVELS, 20)
    for found, seeds, tasks in zip(
        resampled_means(OURS, draws), draws.seeds, draws.tasks, strict=True
    ):
        picked = [OURS[s, n] for s in seeds for n in range(4) for _ in range(int(tasks[n]))]
        assert found == pytest.approx(np.mean(picked))


def test_the_difference_is_between_equal_seeds_and_tasks():
    """A method that is always 0.25 above another is so in every draw, however its tasks vary."""
    found = difference(OURS + 0.25, OURS, draw(2, LEVELS, 200))
    assert found == pytest.approx((0.25, 0.25, 0.25))
    assert difference(OURS, THEIRS, draw(2, LEVELS, 200)).value == pytest.approx(0.25)


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    """Four runs on one level: 0, 0.5, 0.75 and 1 leave 0.5 and 0.75."""
    scores = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.5], [1.0, 1.0]])
    assert interquartile_mean(scores, draw(4, ["1", "1"], 50)).value == 0.625


def test_an_improvement_is_counted_over_all_pairs_of_runs_and_ties_are_half():
    """Level 1: 1, 0.5 against 0.5, 0.5: 3 of 4. Level 2: 0, 0.5 against 0, 0: 3 of 4."""
    draws = draw(2, LEVELS, 300)
    assert probability_of_improvement(OURS, THEIRS, draws).value == 0.75
    assert probability_of_improvement(THEIRS, OURS, draws).value == 0.25
    assert probability_of_improvement(OURS, OURS, draws).value == 0.5
    assert probability_of_improvement(OURS + 2, OURS, draws) == (1, 1, 1)


def test_a_profile_is_the_share_of_runs_above_a_threshold():
    """Runs on levels: 1, 0, 0.5, 0.5."""
    found = profile(OURS, [-0.1, 0.0, 0.5, 1.0], draw(2, LEVELS, 50))
    assert [point.value for point in found] == [1.0, 0.75, 0.25, 0.0]
    assert all(point.low <= point.value <= point.high for point in found)


@pytest.mark.parametrize(
    ("places", "end", "weights"),
    [
        ([0], 10, [1]),
        ([0, 10], 10, [0.5, 0.5]),
        ([0, 5, 10], 10, [0.25, 0.5, 0.25]),
        ([0, 20], 10, [0.75, 0.25]),
        ([0, 5], 10, [0.25, 0.75]),
        ([0, 10, 30], 10, [0.5, 0.5, 0]),
    ],
)
def test_the_area_of_a_curve_ends_at_the_budget(places, end, weights):
    """(0, 20) cut at 10: from s0 to the middle, whose mean is 3/4 s0 + 1/4 s1."""
    assert area_weights(places, end) == pytest.approx(weights)


def test_the_area_agrees_with_a_sum_over_many_places():
    places, scores = [0.0, 3.0, 4.0, 9.0, 13.0], np.array([[0.1, 0.7, 0.2, 0.9, 0.4]]).T
    many = np.linspace(0, 11, 200_001)
    slow = np.trapezoid(interpolate(places, scores, many)[:, 0], many) / 11
    assert float(area_weights(places, 11.0) @ scores[:, 0]) == pytest.approx(slow, abs=1e-6)


def test_pass_at_k_of_counts():
    """Of 4 samples 0, 1 and 4 are right: 1 - C(3, 2) / C(4, 2) = 0.5 for one."""
    assert pass_at(np.array([[0.0, 1.0, 4.0]]), 4, 2).tolist() == [[0.0, 0.5, 1.0]]


def test_one_seed_is_drawn_again_and_again():
    draws = draw(1, LEVELS, 100)
    assert isinstance(draws, Draws)
    assert (draws.seeds == 0).all()
    assert mean(OURS[:1], draws) == (0.5, 0.5, 0.5)  # within a level all tasks are alike
    assert mean(OURS[1:], draws).low < 0.5 < mean(OURS[1:], draws).high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Seeds and tasks both vary; of 200 experiments about 190 intervals hold the true mean 0.

    Drawing seeds and tasks at once is a little wide by design: fewer than 88 % would be wrong, and
    so would be all of them at half the width.
    """
    generator, held, narrow = np.random.default_rng(0), 0, 0
    for _ in range(200):
        gap = generator.normal(size=(8, 1)) + generator.normal(size=(1, 40))
        gap = gap + generator.normal(size=(8, 40))
        value, low, high = difference(gap, 0 * gap, draw(8, ["1"] * 40, 400))
        held += low <= 0 <= high
        narrow += (value - (value - low) / 2) <= 0 <= (value + (high - value) / 2)
    assert held >= 176
    assert narrow < 176
