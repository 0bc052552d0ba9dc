"""The policy: the model in training, its forward passes and its optimiser.

Padding is on the right; log-probabilities and entropies are computed only where they are asked for,
in chunks, so that logits over a whole batch never exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from learners.batch import Batch, microbatches, pack
from learners.models import LoadedModel
from learners.optimizers import make_optimizer
from learners.run_config import OptimizerName
from learners.tree import Row, Trajectory

CHUNK = 512
"""Tokens whose logits exist at the same time."""

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
    """Most padded tokens of one forward and backward pass."""
    autocast: bool = False
    """Run the transformer in bfloat16; log-probabilities stay in float32."""

    def __post_init__(self) -> None:
        self.model = self.loaded.model
        self.updates = 0
        self.model.eval()  # no dropout: the ratio compares two passes of one function
        self.optimizer = make_optimizer(
            self.optimizer_name,
            self.model.named_parameters(),
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    @torch.no_grad()
    def token_stats(self, trajectories: Sequence[Trajectory]) -> list[TokenStats]:
        """Exact log-probabilities and entropies of every response token the policy sampled."""
        found: dict[int, TokenStats] = {}
        rows = [Row(t, torch.zeros(len(t))) for t in trajectories]
        for group in microbatches(rows, self.microbatch_tokens):
            batch = pack(group, self.model.device)
            logprobs, entropies = self._forward(batch, entropies=True)
            for index, row in enumerate(group):
                begin = len(row.trajectory.prompt_ids)
                own = slice(begin, begin + len(row.trajectory))
                found[id(row.trajectory)] = TokenStats(
                    logprobs[index, own].cpu(), entropies[index, own].cpu()
                )
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
            everything: see `learners.batch.pack`.

        Returns:
            The loss over the mini-batch, before the step.
        """
        total = self._accumulate(batch, weights, loss, everything=everything)
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), self.gradient_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateMetrics(total, float(norm), not finite)

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
        for group in microbatches(batch, self.microbatch_tokens):
            packed = pack(
                group,
                self.model.device,
                weights=[by_row[id(row.trajectory)] for row in group],
                share=len(group) / len(batch),
                everything=everything,
            )
            logprobs, _ = self._forward(packed, entropies=False)
            value = loss(logprobs, packed)
            if value.requires_grad:
                torch.autograd.backward(value)
            total += value.item()
        return total

    def set_learning_rate(self, value: float) -> None:
        """Use another rate from the next update on."""
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def _forward(self, batch: Batch, *, entropies: bool) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities and entropies, 0 where `response_mask` is False."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = self.model.base_model(
                input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False
            ).last_hidden_state
        hidden = hidden.to(self.model.dtype)
        rows, columns = batch.response_mask[:, 1:].nonzero(as_tuple=True)
        targets = batch.token_ids[rows, columns + 1]
        before = hidden[rows, columns]  # (n, D): the state that predicts each sampled token
        # Logits of a large vocabulary are computed again in the backward pass, not kept.
        wide = self.model.config.vocab_size > CHUNK * 16
        logprobs, surprise = [], []
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            args = (before[part], targets[part])
            if torch.is_grad_enabled() and wide:
                logprobs.append(checkpoint(self._logprobs, *args, use_reentrant=False))
            else:
                logprobs.append(self._logprobs(*args))
            if entropies:
                surprise.append(self._entropies(before[part]))
        # (B, T), entry t speaks of token t itself
        blank = hidden.new_zeros(batch.token_ids.shape, dtype=self._precision)
        index = (rows, columns + 1)
        filled = blank.index_put(index, torch.cat(logprobs)) if logprobs else blank
        return filled, blank.index_put(index, torch.cat(surprise)) if surprise else blank

    @property
    def _precision(self) -> torch.dtype:
        double = self.model.dtype == torch.float64
        return torch.float64 if double else torch.float32

    def _scaled(self, hidden: Tensor) -> Tensor:
        logits = self.model.get_output_embeddings()(hidden).to(self._precision)
        scaled: Tensor = logits / self.temperature  # (n, V)
        return scaled

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self._scaled(hidden)
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    def _entropies(self, hidden: Tensor) -> Tensor:
        logprobs = torch.log_softmax(self._scaled(hidden), dim=-1)
        return -(logprobs.exp() * logprobs).sum(-1)
