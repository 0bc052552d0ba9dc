"""The policy: the model in training, its forward passes and its optimiser.

Rows are read as prefix trees or padded (`learners.policy.batch`). Log-probabilities and entropies
are computed on masked tokens only, in chunks, so that the logits of a whole batch never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learners.config import OptimizerName
from learners.policy.activations import KeepPrefix, KVRecorder, SavedTensors
from learners.policy.attention import forward_tree, supports_trees
from learners.policy.batch import Batch, Packs, Work, collate, lay_out, token_ids
from learners.policy.loading import LoadedModel
from learners.policy.logprobs import compute_logprobs, reduced_matmul_precision
from learners.policy.optimizers import make_optimizer
from learners.tree import Row, Trajectory

PolicyLoss = Callable[[Tensor, Batch], Tensor]
"""(B, T) log-probabilities and their micro-batch -> a scalar; the sum over micro-batches is
minimised."""


class TokenStats(NamedTuple):
    """Per-token log-probabilities and entropies of a response under the current policy.

    Both are (T,), and 0 on observations.
    """

    logprobs: Tensor
    """Nats."""
    entropies: Tensor
    """Nats, over the full vocabulary at the sampling temperature."""


class UpdateMetrics(NamedTuple):
    """Metrics of one optimiser step."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    skipped: bool
    """True if the gradient was not finite and nothing was changed."""
    computed_tokens: int = 0
    """Tokens that the passes computed: shared ones of a tree once, padding included."""
    trees: bool = False
    """True if the rows were laid out as trees."""


@dataclass
class Policy:
    """Weights and optimiser. Mutated by `update` and `load_optimizer`."""

    loaded: LoadedModel
    learning_rate: float
    temperature: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer_name: OptimizerName = "adamw"
    gradient_clip: float = 1.0
    microbatch_tokens: int = 8192
    """Maximum number of tokens that one forward and backward pass computes, padding included."""
    autocast: bool = False
    """Run the transformer in bfloat16; log-probabilities stay in float32."""
    packs: Packs = "auto"
    """When to lay rows out as trees; "never" if the model does not support them."""
    gradient_checkpointing: bool = False
    """Save only each layer's input for the backward pass, and recompute the layer there."""

    def __post_init__(self) -> None:
        self.model = self.loaded.model
        self.updates = 0
        self.work = Work([], 0, 0, trees=False)
        """The passes of the last call of `token_stats` or `update`."""
        self.saved_tensors: SavedTensors | None = None
        """Set by a memory profile to count what updates save for their backward passes."""
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if not supports_trees(self.model):
            self.packs = "never"
        self.model.eval()  # no dropout: the ratio compares two passes of one function
        self.optimizer = make_optimizer(
            self.optimizer_name,
            self.model.named_parameters(),
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    @torch.no_grad()
    def token_stats(
        self, trajectories: Sequence[Trajectory], keep: KeepPrefix | None = None
    ) -> list[TokenStats]:
        """Compute the exact log-probability and entropy of every token that the policy sampled.

        Args:
            trajectories: finished or not.
            keep: receives their keys and values. They are then read as a tree even if padding
                costs less; if `packs` is "never", nothing is kept.

        Returns:
            Statistics in the order of the trajectories, on the CPU.
        """
        stats: dict[int, TokenStats] = {}
        rows = [Row(t, torch.zeros(len(t))) for t in trajectories]
        packs = self.packs if keep is None or self.packs == "never" else "always"
        self.work = lay_out(rows, self.microbatch_tokens, packs)
        for group, packing in self.work.parts:
            batch = collate(group, self.model.device, packing=packing)
            recorder = KVRecorder() if keep is not None and packing is not None else None
            with reduced_matmul_precision(self.autocast):
                logprobs, entropies = self._forward(batch, entropies=True, recorder=recorder)
            for index, row in enumerate(group):
                if keep is not None and packing is not None and recorder is not None:
                    ids = token_ids(row.trajectory)
                    keep(ids, recorder.select(packing.indices[index, : len(ids)]))
                begin = len(row.trajectory.prompt_ids)
                response = slice(begin, begin + len(row.trajectory))
                stats[id(row.trajectory)] = TokenStats(
                    logprobs[index, response].cpu(), entropies[index, response].cpu()
                )
        return [stats[id(t)] for t in trajectories]

    def update(
        self,
        batch: Sequence[Row],
        weights: Sequence[Tensor],
        loss: PolicyLoss,
        *,
        everything: bool = False,
    ) -> UpdateMetrics:
        """Take one optimiser step on the rows of a mini-batch.

        Args:
            batch: rows, each with the advantages of its trajectory.
            weights: for each row (T,), the weight of each token's loss in the sum over the
                mini-batch.
            loss: sums the weighted token losses of a micro-batch.
            everything: see `learners.policy.batch.collate`.

        Returns:
            The loss over the mini-batch before the step, and other metrics.
        """
        total = self._accumulate(batch, weights, loss, everything=everything)
        norm = torch.nn.utils.clip_grad_norm_(self._trainable(), self.gradient_clip)
        if finite := bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateMetrics(
            total, float(norm), not finite, self.work.computed_tokens, self.work.trees
        )

    def gradient(self, batch: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> Tensor:
        """Compute the (P,) gradient that an update on these rows would follow; update nothing."""
        self._accumulate(batch, weights, loss, everything=False)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trainable()]
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat([part.flatten() for part in parts])

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _accumulate(
        self,
        batch: Sequence[Row],
        weights: Sequence[Tensor],
        loss: PolicyLoss,
        *,
        everything: bool,
    ) -> float:
        """Add the gradient of a mini-batch's loss to the parameters' gradients; return the loss."""
        total = 0.0
        by_row = {id(row.trajectory): w for row, w in zip(batch, weights, strict=True)}
        self.work = lay_out(batch, self.microbatch_tokens, self.packs)
        for group, packing in self.work.parts:
            microbatch = collate(
                group,
                self.model.device,
                weights=[by_row[id(row.trajectory)] for row in group],
                share=len(group) / len(batch),
                everything=everything,
                packing=packing,
            )
            with self._checkpointing(), reduced_matmul_precision(self.autocast):
                with self._counting(microbatch):
                    logprobs, _ = self._forward(microbatch, entropies=False)
                    value = loss(logprobs, microbatch)
                if value.requires_grad:
                    torch.autograd.backward(value)
            total += value.item()
        return total

    def _counting(self, batch: Batch) -> AbstractContextManager[None]:
        """Count what the block saves for the backward pass, if a profile is on."""
        if self.saved_tensors is None:
            return nullcontext()
        tokens = batch.token_ids.numel() if batch.packing is None else len(batch.packing.token_ids)
        return self.saved_tensors.count(self.model.parameters(), tokens)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Make layers checkpoint in the block, if `gradient_checkpointing` is set."""
        if not self.gradient_checkpointing:
            yield
            return
        # transformers checkpoints only in training mode. Set on the layers alone and not with
        # train(): their submodules, dropout among them, stay in evaluation mode.
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate from the next update on."""
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def _forward(
        self, batch: Batch, *, entropies: bool, recorder: KVRecorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities and entropies of tokens; 0 where `response_mask` is False."""
        rows, before = batch.response_mask[:, 1:].nonzero(as_tuple=True)
        columns = before + 1  # a token is predicted by the state before it
        hidden = self._last_states(batch, recorder)
        tree, copies = batch.packing, None
        if tree is None:
            states = hidden[rows, before]  # (n, D)
            targets = batch.token_ids[rows, columns]
        else:  # each token of the tree once, even if several rows share it
            tokens, copies = torch.unique(tree.indices[rows, columns], return_inverse=True)
            # index_select, here and below: with plain indexing the threads decide the order in
            # which gradients add up, and two updates could differ in the last bit.
            states = hidden.index_select(0, tree.previous[tokens])
            targets = tree.token_ids[tokens]
        head = self.model.get_output_embeddings()
        values = compute_logprobs(states, head, targets, self.temperature, entropies=entropies)
        blank = hidden.new_zeros(batch.token_ids.shape, dtype=values[0].dtype)

        def scatter(each: Tensor) -> Tensor:
            if not len(each):
                return blank
            return blank.index_put(
                (rows, columns), each if copies is None else each.index_select(0, copies)
            )

        logprobs, token_entropies = values
        return scatter(logprobs), scatter(token_entropies)

    def _last_states(self, batch: Batch, recorder: KVRecorder | None) -> Tensor:
        """(B, T, D) last hidden states of padded rows, or (U, D) of the tokens of their tree."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            if batch.packing is not None:
                hidden = forward_tree(self.model, batch.packing, recorder)
            else:
                hidden = self.model.base_model(
                    input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False
                ).last_hidden_state
        return hidden.to(self.model.dtype)
