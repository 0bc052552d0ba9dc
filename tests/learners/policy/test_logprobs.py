"""Log-probabilities with a hand-written gradient: equal to autograd's."""

import pytest
import torch

from learners.policy.logprobs import compute_logprobs, head_logprobs, reduced_matmul_precision
from tests import needs

LOGITS = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64).log()


IDENTITY = torch.nn.Linear(3, 3, bias=False).double()
torch.nn.init.eye_(IDENTITY.weight)
"""A head whose logits are the states."""
SAVED = {"nothing saved": 0, "a chunk saved": 27, "all saved": 1 << 20}
"""Maxima of saved numbers; a chunk is three tokens of nine choices."""


def test_by_hand():
    """Probabilities 0.2, 0.3, 0.5 and 0.1, 0.1, 0.8; the gradient is ([target] - p) times the
    incoming one."""
    states = LOGITS.clone().requires_grad_()
    found = head_logprobs(states, IDENTITY, torch.tensor([1, 2]), 1.0, 2, 0)
    torch.testing.assert_close(found.exp(), torch.tensor([0.3, 0.8], dtype=torch.float64))
    found.backward(torch.tensor([1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([[-0.2, 0.7, -0.5], [-0.2, -0.2, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(states.grad, expected)


def test_one_token_may_stand_for_several_rows():
    """Two rows read one token's log-probability: their gradients add up."""
    states = LOGITS[:1].clone().requires_grad_()
    found = head_logprobs(states, IDENTITY, torch.tensor([0]), 1.0, 2, 6)[torch.tensor([0, 0])]
    found.backward(torch.tensor([1.0, 3.0], dtype=torch.float64))
    expected = torch.tensor([[3.2, -1.2, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(states.grad, expected)


def test_entropy_by_hand():
    """-(0.2 ln 0.2 + 0.3 ln 0.3 + 0.5 ln 0.5) = 1.0297 nats."""
    targets = torch.tensor([1, 2])
    logprobs, entropies = compute_logprobs(LOGITS, IDENTITY, targets, 1.0, entropies=True)
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.3, 0.8], dtype=torch.float64))
    assert abs(float(entropies[0]) - 1.0297) < 1e-4


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_saved", SAVED.values(), ids=SAVED)
def test_a_head_in_chunks_has_the_gradient_of_its_logits(bias, temperature, max_saved):
    head = torch.nn.Linear(4, 9, bias=bias).double()
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, 3, 3, 1, 0, 5])
    parameters = (hidden, *head.parameters())

    def found(*_parameters):
        return head_logprobs(hidden, head, targets, temperature, 3, max_saved)

    logits = head(hidden) / temperature
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found(), expected)
    assert torch.autograd.gradcheck(found, parameters)


@pytest.mark.parametrize(("max_saved", "chunks"), [(0, 0), (27, 1), (1 << 20, 3)])
def test_the_backward_pass_saves_as_many_chunks_as_allowed(max_saved, chunks):
    """Chunks of three tokens of nine choices, 27 numbers each; without a gradient none."""
    head, hidden = torch.nn.Linear(4, 9), torch.randn(7, 4, requires_grad=True)
    targets = torch.zeros(7, dtype=torch.long)
    found = head_logprobs(hidden, head, targets, 1.0, 3, max_saved)
    assert sum(saved.shape[-1] == 9 and saved.dim() == 2 for saved in saved_by(found)) == chunks
    with torch.no_grad():
        assert head_logprobs(hidden, head, targets, 1.0, 3, max_saved).grad_fn is None


def saved_by(found):
    return [saved for saved in found.grad_fn.saved_tensors if saved is not None]


def test_a_gradient_may_be_computed_twice():
    head, hidden = torch.nn.Linear(4, 9), torch.randn(7, 4, requires_grad=True)
    found = head_logprobs(hidden, head, torch.zeros(7, dtype=torch.long), 1.0, 3, 27).sum()
    (one,) = torch.autograd.grad(found, hidden, retain_graph=True)
    (other,) = torch.autograd.grad(found, hidden)
    assert torch.equal(one, other)


def test_a_frozen_head_gets_no_gradient():
    head = torch.nn.Linear(4, 9, bias=False).requires_grad_(False)
    hidden = torch.randn(2, 4, requires_grad=True)
    head_logprobs(hidden, head, torch.tensor([0, 8]), 1.0, 2, 0).sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_factors_are_rounded_within_the_block_and_sums_are_not():
    """1 + 2^-9 is not a bfloat16 and becomes 1; the sum 1030 is not one either, but stays."""
    rows, ones = torch.full((64, 1030), 1 + 2**-9), torch.ones(1030, 64)
    exact = rows @ ones
    with reduced_matmul_precision(True):
        rounded = rows @ ones
    assert torch.equal(rows @ ones, exact), "as before after the block"
    with reduced_matmul_precision(False):
        assert torch.equal(rows @ ones, exact)
    if torch.equal(rounded, exact):
        needs.lacking(*needs.ROUNDED_FACTORS)
    assert rounded.unique().tolist() == [1030.0]
