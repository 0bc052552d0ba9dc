"""The policy: the model in training, its forward passes and its optimiser.

Rows that share prefixes are read as trees (`learners.policy.batch`), others padded on the right.
Log-probabilities and entropies are computed only where they are asked for, in chunks, so that
logits over a whole batch never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learners.config import OptimizerName
from learners.policy.activations import Keep, Kept, Recorder
from learners.policy.attention import forward_tree, takes_trees
from learners.policy.batch import Batch, Packs, Work, laid_out, pack, token_ids
from learners.policy.loading import LoadedModel
from learners.policy.logprobs import of_states, rounded_factors
from learners.policy.optimizers import make_optimizer
from learners.tree import Row, Trajectory

PolicyLoss = Callable[[Tensor, Batch], Tensor]
"""Log-probabilities (B, T) and their micro-batch -> a scalar to minimise; micro-batches add up."""


class TokenStats(NamedTuple):
    """What the policy thinks of one trajectory's response; both (T,), 0 on observations."""

    logprobs: Tensor
    """Nats."""
    entropies: Tensor
    """Nats, over the full vocabulary at the sampling temperature."""


class UpdateMetrics(NamedTuple):
    """One optimiser step."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    skipped: bool
    """True when the gradient was not finite and nothing was changed."""
    computed_tokens: int = 0
    """That were read: what rows share once, padding included."""
    trees: bool = False
    """Whether what rows share was read once."""


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
    """Most tokens that one forward and backward pass computes, padding included."""
    autocast: bool = False
    """Run the transformer in bfloat16; log-probabilities stay in float32."""
    packs: Packs = "auto"
    """Whether rows are laid out as trees."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass and compute the layer again there."""

    def __post_init__(self) -> None:
        self.model = self.loaded.model
        self.updates = 0
        self.work = Work([], 0, 0, trees=False)
        """How the rows of the last call were laid out."""
        self.kept: Kept | None = None
        """Counts what forward passes keep for backward passes, where somebody wants to know."""
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if not takes_trees(self.model):
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
        self, trajectories: Sequence[Trajectory], keep: Keep | None = None
    ) -> list[TokenStats]:
        """Exact log-probabilities and entropies of every response token the policy sampled.

        `keep` is given their keys and values; for it they are read as a tree even where padded rows
        would take less, unless `packs` is "never".
        """
        found: dict[int, TokenStats] = {}
        rows = [Row(t, torch.zeros(len(t))) for t in trajectories]
        packs = self.packs if keep is None or self.packs == "never" else "always"
        self.work = laid_out(rows, self.microbatch_tokens, packs)
        for group, packing in self.work.parts:
            batch = pack(group, self.model.device, packing=packing)
            recorder = Recorder() if keep is not None and packing is not None else None
            with rounded_factors(self.autocast):
                logprobs, entropies = self._forward(batch, entropies=True, recorder=recorder)
            for index, row in enumerate(group):
                if keep is not None and packing is not None and recorder is not None:
                    ids = token_ids(row.trajectory)
                    keep(ids, recorder.along(packing.places[index, : len(ids)]))
                begin = len(row.trajectory.prompt_ids)
                own = slice(begin, begin + len(row.trajectory))
                stats = TokenStats(logprobs[index, own].cpu(), entropies[index, own].cpu())
                found[id(row.trajectory)] = stats
        return [found[id(t)] for t in trajectories]

    def update(
        self,
        batch: Sequence[Row],
        weights: Sequence[Tensor],
        loss: PolicyLoss,
        *,
        everything: bool = False,
    ) -> UpdateMetrics:
        """One optimiser step on the rows of a mini-batch.

        Args:
            batch: rows, each with the advantages of its trajectory.
            weights: per row (T,), what each token's loss counts in the sum over the mini-batch.
            loss: sums weighted token losses of a micro-batch.
            everything: see `learners.policy.batch.pack`.

        Returns:
            The loss over the mini-batch, before the step.
        """
        total = self._accumulate(batch, weights, loss, everything=everything)
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), self.gradient_clip)
        if finite := bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateMetrics(
            total, float(norm), not finite, self.work.computed_tokens, self.work.trees
        )

    def gradient(self, batch: Sequence[Row], weights: Sequence[Tensor], loss: PolicyLoss) -> Tensor:
        """(P,) the gradient that an update on these rows would follow; nothing is updated."""
        self._accumulate(batch, weights, loss, everything=False)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained()]
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat([part.flatten() for part in parts])

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _accumulate(
        self,
        batch: Sequence[Row],
        weights: Sequence[Tensor],
        loss: PolicyLoss,
        *,
        everything: bool,
    ) -> float:
        """Add the gradient of a mini-batch's loss to the parameters'; the loss."""
        total = 0.0
        by_row = {id(row.trajectory): w for row, w in zip(batch, weights, strict=True)}
        self.work = laid_out(batch, self.microbatch_tokens, self.packs)
        for group, packing in self.work.parts:
            packed = pack(
                group,
                self.model.device,
                weights=[by_row[id(row.trajectory)] for row in group],
                share=len(group) / len(batch),
                everything=everything,
                packing=packing,
            )
            with self._checkpointed(), rounded_factors(self.autocast):
                with self._counted(packed):
                    logprobs, _ = self._forward(packed, entropies=False)
                    value = loss(logprobs, packed)
                if value.requires_grad:
                    torch.autograd.backward(value)
            total += value.item()
        return total

    def _counted(self, batch: Batch) -> AbstractContextManager[None]:
        """Counts what the block keeps for the backward pass, where somebody wants to know."""
        if self.kept is None:
            return nullcontext()
        tokens = batch.token_ids.numel() if batch.packing is None else len(batch.packing.token_ids)
        return self.kept.counting(self.model.parameters(), tokens)

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """Let layers compute again what they do not keep, where that was asked for.

        transformers does so only in layers that train; what is inside them stays without dropout.
        """
        if not self.gradient_checkpointing:
            yield
            return
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
        """Use another rate from the next update on."""
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def _forward(
        self, batch: Batch, *, entropies: bool, recorder: Recorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities and entropies, 0 where `response_mask` is False."""
        rows, columns = batch.response_mask[:, 1:].nonzero(as_tuple=True)
        tree, back = batch.packing, None
        hidden = self._hidden(batch, recorder)
        if tree is None:
            before = hidden[rows, columns]  # (n, D): the state that predicts each sampled token
            targets = batch.token_ids[rows, columns + 1]
        else:  # n tokens of the tree, each maybe of several rows
            wanted, back = torch.unique(tree.places[rows, columns + 1], return_inverse=True)
            # Plain indexing would add up its gradient in an order that threads decide.
            before = hidden.index_select(0, tree.previous[wanted])
            targets = tree.token_ids[wanted]
        head = self.model.get_output_embeddings()
        logprobs, surprise = of_states(before, head, targets, self.temperature, entropies=entropies)
        # (B, T), entry t speaks of token t itself
        blank = hidden.new_zeros(batch.token_ids.shape, dtype=logprobs.dtype)

        def filled(found: Tensor) -> Tensor:
            if not len(found):
                return blank
            return blank.index_put(
                (rows, columns + 1), found if back is None else found.index_select(0, back)
            )

        return filled(logprobs), filled(surprise)

    def _hidden(self, batch: Batch, recorder: Recorder | None) -> Tensor:
        """(B, T, D) last hidden states of padded rows, or (U, D) of the tokens of their tree."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            if batch.packing is not None:
                hidden = forward_tree(self.model, batch.packing, recorder)
            else:
                hidden = self.model.base_model(
                    input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False
                ).last_hidden_state
        return hidden.to(self.model.dtype)
