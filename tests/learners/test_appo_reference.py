"""APPO as its published code runs it: what it branches, credits and trains, in our trees."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners import appo, appo_reference
from learners import appo_reference as formulas
from learners.policy.batch import collate
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.rl import losses
from learners.rollouts.rollout import Rollouts
from learners.runs.session import Session, run_iteration
from learners.sampling.sampler import SamplerStats
from learners.tree import Completion, Row, Turn
from tests.fakes import EchoTool, answer, call, toy_env
from tests.tree_fakes import branch_off, grow, new_tree

SETTINGS = appo_reference.PUBLISHED


def word(ids):
    return "x"


def request(tree, budget, decode=word):
    points = appo_reference.choose_branch_points(tree, budget, decode, SETTINGS)
    return [(tree.roots.index(point.trajectory), point.position) for point in points]


def test_a_token_that_ends_a_turn_gives_way_to_the_next():
    """The turns end at tokens 1 and 5: a branch after them would skip what the tool said."""
    tree = new_tree()
    grow(tree, (2, 2), (2, 0))
    assert sorted(set(request(tree, 8))) == [(0, 1), (0, 5)]


def test_a_blank_token_is_no_candidate():
    tree = new_tree()
    grow(tree, (4, 0))
    assert request(tree, 3, lambda ids: " " if ids == [2] else "x") == [(0, 1), (0, 3), (0, 1)]


def test_answers_of_one_token_are_started_anew():
    tree = new_tree()
    grow(tree, (1, 0))
    grow(tree, (1, 0))
    assert request(tree, 3) == [(0, 0), (1, 0), (0, 0)]


def test_the_best_tokens_of_a_prompt_may_all_be_of_one_root():
    tree = new_tree()
    grow(tree, (4, 0), logprobs=-1.0)
    busy = grow(tree, (4, 0), logprobs=-1.0)
    action = Completion(busy.response_ids, (-1.0,) * 4, (2.0, 0.0, 2.0, 0.0))
    busy.turns[0] = Turn(busy.turns[0].state, action, ())
    busy.old_logprobs = torch.tensor([-0.9, -1.1, -0.9, -1.1])
    assert request(tree, 2) == [(1, 1), (1, 3)]


SHAPES = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    min_size=1,
    max_size=4,
)


@given(SHAPES, st.integers(0, 9), st.integers(0, 3))
def test_every_budget_is_filled_and_no_branch_skips_a_result(shapes, budget, seed):
    tree, draw = new_tree(), torch.Generator().manual_seed(seed)
    for turns in shapes:
        *calls, (last, _) = turns
        root = grow(tree, *calls, (last, 0))
        root.old_logprobs = torch.randn(len(root), generator=draw)
    points = appo_reference.choose_branch_points(tree, budget, word, SETTINGS)
    assert len(points) == budget
    for point in points:
        branch = tree.fork(point)  # raises behind a turn's last token
        assert branch.response_ids == point.trajectory.response_ids[: point.position]


def test_credit_reaches_the_tokens_that_a_branch_shares():
    """Roots 1, 0: +-1. Branches 1, 0: +-1, the first shares tokens 0 1, the second 0 1 2 of root 0.

    Token 0 and 1 of root 0 get 1 + (1 - 1) / 2, token 2 gets 1 - 1, token 3 gets 1.
    """
    tree = new_tree()
    first, _ = grow(tree, (4, 0), reward=1.0), grow(tree, (2, 0))
    branch_off(tree, first, 2, reward=1.0)
    branch_off(tree, first, 3, reward=0.0)
    rows = appo_reference.credit(tree, 0.0, SETTINGS)
    assert [row.trajectory for row in rows] == tree.roots
    assert rows[0].advantages.tolist() == pytest.approx([1, 1, 0, 1], abs=1e-5)
    assert rows[1].advantages.tolist() == pytest.approx([-1, -1], abs=1e-5)


def test_a_branch_that_began_anew_is_in_its_group_but_credits_no_token():
    tree = new_tree()
    first, _ = grow(tree, (3, 0), reward=1.0), grow(tree, (2, 0))
    branch_off(tree, first, 0, reward=0.0)
    branch_off(tree, first, 1, reward=1.0)
    (row, _) = appo_reference.credit(tree, 0.0, SETTINGS)
    assert row.advantages.tolist() == pytest.approx([2, 1, 1], abs=1e-5)


def test_the_factor_of_a_branch_changes_no_outcome():
    tree = new_tree()
    first, _ = grow(tree, (3, 0), reward=1.0), grow(tree, (2, 0))
    branch_off(tree, first, 2, reward=1.0, score=4.0)
    with_factor, without = (appo_reference.credit(tree, best, SETTINGS) for best in (4.0, 0.0))
    for one, other in zip(with_factor, without, strict=True):
        assert torch.equal(one.advantages, other.advantages)
    assert appo_reference.largest_score([tree]) == 4
    assert appo_reference.largest_score([new_tree()]) == 0


def test_trees_without_branches_are_credited_by_their_roots_alone():
    tree = new_tree()
    for reward in (1.0, 0.0):
        grow(tree, (2, 0), reward=reward)
    rows = appo_reference.credit(tree, 0.0, SETTINGS)
    assert [float(row.advantages[0]) for row in rows] == pytest.approx([1, -1], abs=1e-5)


@pytest.mark.parametrize("aggregation", ["token-mean", "row-sum", "row-mean", "sum-over-length"])
@pytest.mark.parametrize("counts", [1.0, 0.5])
def test_the_loss_on_policy_is_minus_twice_the_advantage(aggregation, counts):
    """r = f = 1 and b = 1: -2 A of every token. A = 1: per token -2, per row of 2 tokens -4.

    A token that counts half, for a sampler that was too sure of it, adds half.
    """
    tree = new_tree()
    rows = [Row(grow(tree, (2, 0), logprobs=-1.0), torch.ones(2)) for _ in range(2)]
    weights = [torch.full((2,), counts * 0.25 / 4)] * 2
    batch, notes = collate(rows, share=0.5, weights=weights), {}
    loss = appo_reference.policy_loss(
        batch.old_logprobs.clone(),
        batch,
        settings=appo_reference.Settings(aggregation=aggregation),
        root_share=0.25,
        length=10,
        tokens=4,
        note=notes.__setitem__,
    )
    expected = {"token-mean": -2, "row-sum": -4, "row-mean": -2, "sum-over-length": -0.8}
    assert float(loss) == pytest.approx(expected[aggregation] * 0.5 * 0.25 * counts)
    assert notes["loss/clip_fraction"] == [0] * 4


PUBLISHED_LOSS = {
    "clip": (0.2, 0.28),
    "dual_clip": 3.0,
    "discount": 1.0,
    "bounds": (1.0, 1.2),
    "weight": 1.0,
    "safety_ratio": 6.0,
}


def future_surrogate(logprobs, advantages, **options):
    """The surrogate of rows whose old log-probabilities are 0, all tokens trained."""
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    settings = PUBLISHED_LOSS | options
    return formulas.future_surrogate(
        logprobs, torch.zeros_like(mask, dtype=torch.float32), advantages, mask, **settings
    )


def test_a_row_with_two_runaway_tokens_is_left_out():
    """Ratio e^2 > 3 at A < 0, twice in row 0, once in row 1: only row 1 is kept."""
    _, kept = future_surrogate(torch.tensor([[2.0, 2.0], [2.0, 0.0]]), -torch.ones(2, 2))
    assert kept.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(("safety_ratio", "first"), [(6.0, 6.0), (8.0, 6.6)])
def test_a_runaway_token_is_not_blamed_for_its_future(safety_ratio, first):
    """Ratios 7, 2.5; A -1, 1; the first ratio adds nothing to f, as it exceeds 3.

    f = 1.2 twice: A' = -2.2, bounded at 3 * 2.2 = 6.6, and 2.2, clipped at -2.2 * 1.28 = -2.816.
    Above the safety ratio, f of the first is 1: A' = -2, bounded at 6.
    """
    logprobs = torch.tensor([[7.0, 2.5]]).log()
    surrogate, _ = future_surrogate(
        logprobs, torch.tensor([[-1.0, 1.0]]), safety_ratio=safety_ratio
    )
    assert surrogate.losses[0].tolist() == pytest.approx([first, -2.816])


def test_the_future_factor_does_not_carry_a_gradient():
    """On policy the gradient of -2 A r in log r is -2 A, whatever f would add."""
    logprobs = torch.zeros(1, 2, requires_grad=True)
    surrogate, _ = future_surrogate(logprobs, torch.ones(1, 2), bounds=(0.0, 10.0))
    surrogate.losses.sum().backward()
    assert logprobs.grad.tolist() == [[-2, -2]]


def test_rows_without_a_trained_token_do_not_dilute_the_others():
    """Losses 1 2 | 9 9, the second row masked: mean of sums 3, mean of means 1.5."""
    losses, mask = torch.tensor([[1.0, 2], [9, 9]]), torch.tensor([[True, True], [False, False]])
    assert float(formulas.row_mean_of_sums(losses, mask)) == 3
    assert float(formulas.row_mean_of_means(losses, mask)) == 1.5


def test_estimates_of_the_divergence_by_hand():
    """p / q = 2: log 2; (log 2)^2 / 2; 1/2 + log 2 - 1."""
    p, q, log2 = torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), 0.6931472
    assert float(losses.kl_k1(p, q)) == pytest.approx(log2)
    assert float(losses.kl_k2(p, q)) == pytest.approx(log2**2 / 2)
    assert float(losses.kl_k3(p, q)) == pytest.approx(log2 - 0.5)
    assert float(losses.kl_k3(torch.tensor(-50.0), torch.tensor(0.0))) == 10


@pytest.mark.parametrize(
    "aggregation", [formulas.token_mean, formulas.row_mean_of_sums, formulas.row_mean_of_means]
)
def test_aggregating_nothing_gives_zero(aggregation):
    assert float(aggregation(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))) == 0


class Player:
    """Roots call a tool and then answer, one of them right; branches answer as their path says."""

    keep = None

    def __init__(self, tokenizer):
        self._tokenizer, self._waiting = tokenizer, []

    def submit(self, request):
        self._waiting.append(request)

    def completed(self):
        asked, self._waiting = self._waiting, []
        for request in asked:
            path = request.key.split("/", 3)[3]
            right = "2" if sum(map(int, path.split("/"))) % 2 == 0 else "7"
            text = call("echo", "so") if request.position == 0 else answer(right)
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
            yield request, Completion(ids, (-3.0,) * len(ids), (0.5,) * len(ids), "tag")

    def stats(self):
        return SamplerStats()

    def sync(self):
        pass

    def rest(self):
        pass


class WatchedPolicy(Policy):
    """Keeps the rows of every update."""

    def __post_init__(self):
        super().__post_init__()
        self.trained = []

    def update(self, batch, weights, loss):
        self.trained.append(batch)
        return super().update(batch, weights, loss)


def test_an_iteration_fills_every_tree_and_moves_the_weights_by_its_roots(tmp_path):
    torch.set_num_threads(1)
    loaded = load_model("tiny", dtype=torch.float64)
    loaded = loaded._replace(model=copy.deepcopy(loaded.model))
    before = copy.deepcopy(loaded.model.state_dict())
    env = toy_env(EchoTool(), split="train")
    config = appo.Config.of(
        profile="reference", rollouts=5, initial_rollouts=2, minibatch_prompts=2, prompts=3
    )
    policy = WatchedPolicy(loaded, learning_rate=1e-3)
    rollouts = Rollouts(env, Player(loaded.tokenizer), loaded.tokenizer, 200)
    session = Session.of(config, policy, rollouts, tmp_path)
    metrics = run_iteration(session, appo.iteration)
    run = session.run
    assert [len(tree.trajectories) for tree in run.trees] == [5, 5, 5]
    assert all(t.done for tree in run.trees for t in tree.trajectories)
    assert [len(rows) for rows in policy.trained] == [4, 2]
    assert {row.trajectory.parent for rows in policy.trained for row in rows} == {None}
    assert metrics["update/steps"] == 2
    assert metrics["branch/branches"] == 9
    assert metrics["update/gradient_norm"] > 0
    moved = loaded.model.state_dict()
    assert any(not torch.equal(before[name], moved[name]) for name in before)
