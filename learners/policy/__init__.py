"""The model in training: forward passes, log-probabilities and optimizer steps.

policy          Policy, with token statistics and updates
batch           rows as padded batches or as prefix trees
loading         loads and saves models and tokenizers
lora            LoRA adapters
attention       attention over grouped keys, padded or as a tree
tree_attention  one attention call for all rows of a prefix tree
logprobs        log-probabilities and entropies without full logits
optimizers      AdamW and Muon, learning rate schedules
reference       the frozen policy of KL penalties
activations     records keys and values, counts what backward passes keep
"""

from __future__ import annotations

from learners.policy import lora
from learners.policy.activations import Keep, Kept, Recorder
from learners.policy.attention import (
    Rectangle,
    Step,
    forward_tree,
    takes_trees,
    unused_mask,
    windows,
)
from learners.policy.batch import ROW_COST, Batch, Work, packed
from learners.policy.loading import LoadedModel, load_model, save_model
from learners.policy.optimizers import multiplier
from learners.policy.policy import Policy, PolicyLoss, TokenStats
from learners.policy.reference import Reference, reference_of

__all__ = [
    "ROW_COST",
    "Batch",
    "Keep",
    "Kept",
    "LoadedModel",
    "Policy",
    "PolicyLoss",
    "Recorder",
    "Rectangle",
    "Reference",
    "Step",
    "TokenStats",
    "Work",
    "forward_tree",
    "load_model",
    "lora",
    "multiplier",
    "packed",
    "reference_of",
    "save_model",
    "takes_trees",
    "unused_mask",
    "windows",
]
