"""The model in training: forward passes, log-probabilities and optimizer steps.

policy          Policy, with token statistics and updates
batch           rows as padded batches or as prefix trees
loading         loads and saves models and tokenizers
lora            LoRA adapters, in place
attention       grouped-query attention over padded rows, trees and ragged batches
tree_attention  one attention call for all rows of a prefix tree
logprobs        log-probabilities and entropies in chunks of logits
optimizers      AdamW and Muon, learning rate schedules
reference       the frozen policy of KL penalties
activations     records keys and values, counts what is saved for backward passes
"""

from __future__ import annotations

from learners.policy import lora
from learners.policy.activations import KeepPrefix, KVRecorder, SavedTensors
from learners.policy.attention import (
    RaggedLayout,
    Rectangle,
    attention_windows,
    forward_tree,
    supports_trees,
    unused_mask,
)
from learners.policy.batch import ROW_COST, Batch, Work, common_prefix_length, pack_tree
from learners.policy.loading import LoadedModel, load_model, save_model
from learners.policy.optimizers import multiplier
from learners.policy.policy import Policy, PolicyLoss, TokenStats
from learners.policy.reference import Reference, make_reference

__all__ = [
    "ROW_COST",
    "Batch",
    "KVRecorder",
    "KeepPrefix",
    "LoadedModel",
    "Policy",
    "PolicyLoss",
    "RaggedLayout",
    "Rectangle",
    "Reference",
    "SavedTensors",
    "TokenStats",
    "Work",
    "attention_windows",
    "common_prefix_length",
    "forward_tree",
    "load_model",
    "lora",
    "make_reference",
    "multiplier",
    "pack_tree",
    "save_model",
    "supports_trees",
    "unused_mask",
]
