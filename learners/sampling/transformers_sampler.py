"""Sampling: prefixes of token ids go in, completions of one turn come out.

The same request gives the same tokens whatever else is in the batch (see `learners.sampling.draw`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learners.sampling.draw import draw, uniform
from learners.sampling.forward import LineReader, read_together
from learners.sampling.kv_cache import Line, Lines
from learners.sampling.packed_weights import Product, can_pack, pack, refresh
from learners.sampling.sampler import Request, SamplerStats, TurnEnd, end_ids, servable
from learners.tree import Completion, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PASS_TOKENS = 16_384
"""What rows that join may read in one pass, which bounds its memory; one row may need more."""


@dataclass
class _Row:
    """A request under way. Mutated by every decoding step."""

    request: Request
    prefix_ids: tuple[int, ...]
    """Tokens before the first sampled one, prefill included."""
    line: Line
    """Its keys and values."""
    unread: tuple[int, ...]
    """Tokens that the next forward pass reads."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class TransformersSampler:
    """Samples with the policy's own model; finished rows leave the batch at once.

    Mutated by `submit`, `completed` and `keep`. At most `rows` are served at a time, in order of
    submission; where the store of keys and values is full those with the least to read first,
    before what is known of them makes room. What is known of a prefix is not read again, and what
    rows that join together share is read once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_tags: Sequence[str],
        rows: int = 64,
        dtype: torch.dtype | None = None,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        """Sample from `model`; a turn ends at a stop tag or an end token.

        With a `dtype` other than the model's, or one for which weights are laid out anew, it
        samples from a copy that `sync` refreshes.
        """
        self._source = model
        self._model = model
        self._packed: list[Product] = []
        if dtype is not None and (dtype != model.dtype or can_pack(model)):
            self._model = copy.deepcopy(model).to(dtype).requires_grad_(False)
            if can_pack(self._model):
                self._packed = pack(self._model, model)
        self._end = TurnEnd(tokenizer, stop_tags, end_ids(model, tokenizer))
        self._rows, self._pass_tokens = rows, pass_tokens
        self._waiting: list[Request] = []
        self._lines = Lines(rows)
        self._reader = LineReader(self._model, self._lines)
        self._prefilled_tokens = 0

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        self._waiting.append(servable(request))

    @torch.inference_mode()
    def keep(self, token_ids: tuple[int, ...], kept: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take what somebody else read with the weights as they are.

        Args:
            token_ids: (T,)
            kept: of each layer (H, T, D) keys and values.
        """
        dtype = self._model.dtype
        self._lines.keep(token_ids, ((keys.to(dtype), values.to(dtype)) for keys, values in kept))

    def sync(self) -> None:
        """Take the model's weights as they are now; keys and values of the old ones are dropped."""
        self._lines.forget()
        if self._model is not self._source:
            state = self._source.state_dict()
            self._model.load_state_dict({name: state[name] for name in self._model.state_dict()})
            refresh(self._packed, self._source)

    def rest(self) -> None:
        """It samples with the policy's own memory: there is none to give."""

    @torch.inference_mode()
    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Requests as they finish."""
        active: list[_Row] = []
        self._lines.abandon()
        was_training = self._model.training
        self._model.eval()
        while active or self._waiting:
            before = len(active)
            self._admit(active)
            finished = self._advance(active, before)
            for row in active[before:]:
                self._lines.share(row.line, row.prefix_ids)
            for row, stop in finished:
                self._release(active, row)
                yield (
                    row.request,
                    Completion(
                        tuple(row.token_ids), tuple(row.logprobs), tuple(row.entropies), stop
                    ),
                )
        self._model.train(was_training)

    def stats(self) -> SamplerStats:
        """Counters and memory as they stand."""
        own = [] if self._model is self._source else [*self._model.parameters(), *self._packed]
        weight_bytes = sum(weights.nbytes for weights in own)
        return SamplerStats(self._prefilled_tokens, weight_bytes, self._lines.peak_bytes)

    def _admit(self, active: list[_Row]) -> None:
        """Let waiting requests join."""
        joining = self._next(self._rows - len(active))
        # Turns that go on first, in the order of their lines: none of these need move or make room.
        joining.sort(key=lambda request: self._lines.place(request.prefix_ids))
        before = len(active)
        self._lines.expected = before + len(joining)
        for request in joining:
            prefix = request.prefix_ids + request.prefill_ids
            line = self._lines.take(prefix)
            active.append(_Row(request, prefix, line, prefix[line.known :]))
        self._read_together(active[before:])
        self._prefilled_tokens += sum(len(row.unread) for row in active[before:])

    def _next(self, most: int) -> list[Request]:
        """Take waiting requests; those that are submitted meanwhile stand behind."""
        order = list(range(len(self._waiting)))
        if 0 < most < len(order) and self._lines.full():
            order.sort(key=lambda index: self._unknown(self._waiting[index]))
        order = order[:most]
        order = order[: self._fitting([self._waiting[index] for index in order])]
        chosen = [self._waiting[index] for index in order]
        for index in sorted(order, reverse=True):
            del self._waiting[index]
        return chosen

    def _fitting(self, requests: Sequence[Request]) -> int:
        """How many of them, from the first on, one pass may read: at least one."""
        most = self._pass_tokens
        sizes = [len(request.prefix_ids) + len(request.prefill_ids) for request in requests]
        if sum(sizes) > most:
            sizes = [self._unknown(request) for request in requests]
        return max(1, sum(total <= most for total in accumulate(sizes)))

    def _unknown(self, request: Request) -> int:
        """Tokens before the first sampled one that no line holds."""
        prefix = request.prefix_ids + request.prefill_ids
        return len(prefix) - self._lines.longest(prefix)[0]

    def _read_together(self, joined: Sequence[_Row]) -> None:
        """Read what joining rows share once, all but the last token of each."""
        fresh = [row for row in joined if row.line.known == 0 and len(row.unread) > 1]
        read = read_together(self._model, [row.unread[:-1] for row in fresh])
        if read is None:
            return
        self._prefilled_tokens += read.tokens
        for row, kept in zip(fresh, read.kept, strict=True):
            self._lines.fill(row.line, kept, len(row.unread) - 1)
            row.unread = row.unread[-1:]

    def _advance(self, active: Sequence[_Row], before: int) -> list[tuple[_Row, StopReason]]:
        """One token for every row; those whose turn is over. `before` were there before."""
        unread = [row.unread for row in active]
        last = self._reader.last_states(unread, [row.line.known for row in active], before)
        logits = self._model.get_output_embeddings()(last)
        uniforms = [
            uniform(row.request.key, row.request.position + len(row.token_ids)) for row in active
        ]
        if logits.dtype != torch.float64:
            logits = logits.float()
        drawn = draw(logits, uniforms, [row.request.temperature for row in active])
        finished = []
        for row, token, logprob, entropy in zip(active, *drawn, strict=True):
            row.line.known += len(row.unread)
            row.unread = (token,)
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.entropies.append(entropy)
            ended = self._end.reason(row.request.prefill_ids, row.token_ids, row.request.max_tokens)
            if ended is not None:
                finished.append((row, ended))
        return finished

    def _release(self, active: list[_Row], row: _Row) -> None:
        """Take a finished row out: its line is kept, the last row takes its place."""
        index = row.line.place
        self._lines.release(row.line, (*row.prefix_ids, *row.token_ids))
        active[index] = active[-1]
        active.pop()
