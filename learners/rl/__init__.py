"""Advantages, losses and branching rules that methods are made of. Pure functions.

advantages  advantage estimators
losses      pieces of policy losses
kl          KL estimators and KL penalties in the reward
objective   wraps a loss with its penalty and metrics
branching   ranks tokens and decides where a tree branches
"""

from __future__ import annotations

from learners.rl import branching
from learners.rl.advantages import (
    centre,
    credit_groups,
    has_variance,
    leave_one_out,
    normalise,
    normalise_groups,
)
from learners.rl.branching import Prefix, Rule, own_mask, turn_entropy
from learners.rl.kl import (
    Credit,
    KlRewardConfig,
    Note,
    penalised_reward,
    token_penalties,
    with_reference,
)
from learners.rl.losses import (
    ClippedLosses,
    clipped_losses,
    clipped_policy_loss,
    clipped_surrogate,
    dual_clipped_losses,
    dual_clipped_policy_loss,
    future_values,
    mismatch_weights,
    preserving_surrogate,
    sequence_log_ratio,
    sequence_mean,
    sequence_sum,
    suffix_sum,
    token_log_ratio,
    token_mean,
    zscore,
)
from learners.rl.objective import note_bounded_tokens, note_capped_tokens, wrap_loss

__all__ = [
    "ClippedLosses",
    "Credit",
    "KlRewardConfig",
    "Note",
    "Prefix",
    "Rule",
    "branching",
    "centre",
    "clipped_losses",
    "clipped_policy_loss",
    "clipped_surrogate",
    "credit_groups",
    "dual_clipped_losses",
    "dual_clipped_policy_loss",
    "future_values",
    "has_variance",
    "leave_one_out",
    "mismatch_weights",
    "normalise",
    "normalise_groups",
    "note_bounded_tokens",
    "note_capped_tokens",
    "own_mask",
    "penalised_reward",
    "preserving_surrogate",
    "sequence_log_ratio",
    "sequence_mean",
    "sequence_sum",
    "suffix_sum",
    "token_log_ratio",
    "token_mean",
    "token_penalties",
    "turn_entropy",
    "with_reference",
    "wrap_loss",
    "zscore",
]
