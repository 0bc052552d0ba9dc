"""Advantages, losses and branching rules that methods are made of. Pure functions.

advantages  advantage estimators
losses      pieces of policy losses
kl          KL estimators and KL penalties in the reward
objective   wraps a loss with its penalty and metrics
branching   ranks tokens and decides where a tree branches
"""

from __future__ import annotations

from learners.rl import branching
from learners.rl.advantages import by_group, centred, group_normalised, leave_one_out, normalised
from learners.rl.branching import Prefix, Rule, own_mask, turn_entropy
from learners.rl.kl import Credit, KlRewardConfig, Note, penalised, penalty, with_reference
from learners.rl.losses import (
    LARGEST_LOG,
    Clipped,
    clipped,
    clipped_policy_loss,
    clipped_surrogate,
    dual_clipped,
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
from learners.rl.objective import note_bounded, note_capped, wrap_loss

__all__ = [
    "LARGEST_LOG",
    "Clipped",
    "Credit",
    "KlRewardConfig",
    "Note",
    "Prefix",
    "Rule",
    "branching",
    "by_group",
    "centred",
    "clipped",
    "clipped_policy_loss",
    "clipped_surrogate",
    "dual_clipped",
    "dual_clipped_policy_loss",
    "future_values",
    "group_normalised",
    "leave_one_out",
    "mismatch_weights",
    "normalised",
    "note_bounded",
    "note_capped",
    "own_mask",
    "penalised",
    "penalty",
    "preserving_surrogate",
    "sequence_log_ratio",
    "sequence_mean",
    "sequence_sum",
    "suffix_sum",
    "token_log_ratio",
    "token_mean",
    "turn_entropy",
    "with_reference",
    "wrap_loss",
    "zscore",
]
