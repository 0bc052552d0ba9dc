"""The built-in sampler: decodes with the policy's own model, by continuous batching.

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
from learners.sampling.forward import ModelRunner, prefill_shared
from learners.sampling.kv_cache import KVCache, Slot
from learners.sampling.packed_weights import FusedProduct, can_pack, pack_linears, refresh
from learners.sampling.sampler import (
    Request,
    SamplerStats,
    StopCriteria,
    collect_end_ids,
    validate_request,
)
from learners.tree import Completion, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PASS_TOKENS = 16_384
"""Maximum number of tokens that joining sequences read in one pass, which bounds its memory; a
single sequence may exceed it."""


@dataclass
class _Sequence:
    """A request being served. Mutated by every decoding step."""

    request: Request
    prefix_ids: tuple[int, ...]
    """Tokens before the first sampled one, prefill included."""
    slot: Slot
    """Its keys and values."""
    unread: tuple[int, ...]
    """Tokens for the next forward pass."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class TransformersSampler:
    """Samples with the policy's own model. Mutated by `submit`, `completed`, `keep` and `sync`.

    At most `rows` requests are served at a time, in order of submission; a finished one makes room
    at once. If the KV cache is full, requests with the fewest uncached tokens go first, before the
    slots that they can use are evicted. Cached prefixes are not read again, and what joining
    requests share is read once.
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

        If `dtype` is not the model's, or is one whose weights can be packed, it samples from a copy
        that `sync` refreshes.
        """
        self._source = model
        self._model = model
        self._packed: list[FusedProduct] = []
        if dtype is not None and (dtype != model.dtype or can_pack(model)):
            self._model = copy.deepcopy(model).to(dtype).requires_grad_(False)
            if can_pack(self._model):
                self._packed = pack_linears(self._model, model)
        end_ids = collect_end_ids(model, tokenizer)
        self._stop_criteria = StopCriteria(tokenizer, stop_tags, end_ids)
        self._rows, self._pass_tokens = rows, pass_tokens
        self._waiting: list[Request] = []
        self._cache = KVCache(rows)
        self._runner = ModelRunner(self._model, self._cache)
        self._prefilled_tokens = 0

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        validate_request(request)
        self._waiting.append(request)

    @torch.inference_mode()
    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Yield requests as they finish."""
        # Invariant: active[i] is in slot i of the cache.
        active: list[_Sequence] = []
        self._cache.drop_active()  # the caller may have left an earlier iteration unfinished
        was_training = self._model.training
        self._model.eval()
        while active or self._waiting:
            decodes = len(active)
            self._admit(active)
            finished = self._step(active, decodes)
            for sequence in active[decodes:]:
                self._cache.share(sequence.slot, sequence.prefix_ids)
            for sequence, stop in finished:
                self._release(active, sequence)
                yield (
                    sequence.request,
                    Completion(
                        tuple(sequence.token_ids),
                        tuple(sequence.logprobs),
                        tuple(sequence.entropies),
                        stop,
                    ),
                )
        self._model.train(was_training)

    def sync(self) -> None:
        """Take over the model's current weights and clear the KV cache, which the old ones made."""
        self._cache.clear()
        if self._model is not self._source:
            state = self._source.state_dict()
            self._model.load_state_dict({name: state[name] for name in self._model.state_dict()})
            refresh(self._packed, self._source)

    def rest(self) -> None:
        """Do nothing: the memory is the policy's own."""

    @torch.inference_mode()
    def keep(self, token_ids: tuple[int, ...], layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Cache a prefix that the policy read with its current weights.

        Args:
            token_ids: (T,)
            layers: for each layer, (H, T, D) keys and values.
        """
        dtype = self._model.dtype
        self._cache.keep(token_ids, ((keys.to(dtype), values.to(dtype)) for keys, values in layers))

    def stats(self) -> SamplerStats:
        """Return counters and memory as they stand."""
        is_copy = self._model is not self._source
        weights = [*self._model.parameters(), *self._packed] if is_copy else []
        weight_bytes = sum(each.nbytes for each in weights)
        return SamplerStats(self._prefilled_tokens, weight_bytes, self._cache.peak_bytes)

    def _admit(self, active: list[_Sequence]) -> None:
        """Let waiting requests join."""
        joining = self._pop_waiting(self._rows - len(active))
        # Turns that continue a slot go first, in the order of the slots: none of these is moved or
        # evicted to make room for another.
        joining.sort(key=lambda request: self._cache.continued_index(request.prefix_ids))
        decodes = len(active)
        self._cache.expected = decodes + len(joining)
        for request in joining:
            prefix = request.prefix_ids + request.prefill_ids
            slot = self._cache.allocate(prefix)
            active.append(_Sequence(request, prefix, slot, prefix[slot.length :]))
        self._prefill_shared(active[decodes:])
        self._prefilled_tokens += sum(len(sequence.unread) for sequence in active[decodes:])

    def _pop_waiting(self, limit: int) -> list[Request]:
        """Take waiting requests that one pass can serve; those submitted meanwhile stay."""
        order = list(range(len(self._waiting)))
        if 0 < limit < len(order) and self._cache.is_full():
            order.sort(key=lambda index: self._uncached(self._waiting[index]))
        order = order[:limit]
        order = order[: self._count_fitting([self._waiting[index] for index in order])]
        chosen = [self._waiting[index] for index in order]
        for index in sorted(order, reverse=True):  # from the end: other threads may be appending
            del self._waiting[index]
        return chosen

    def _count_fitting(self, requests: Sequence[Request]) -> int:
        """Count how many of them, in order, one pass may read: at least one."""
        sizes = [len(request.prefix_ids) + len(request.prefill_ids) for request in requests]
        if sum(sizes) > self._pass_tokens:  # look prefixes up only if it matters
            sizes = [self._uncached(request) for request in requests]
        return max(1, sum(total <= self._pass_tokens for total in accumulate(sizes)))

    def _uncached(self, request: Request) -> int:
        """Count the tokens before the first sampled one that are not in the cache."""
        prefix = request.prefix_ids + request.prefill_ids
        return len(prefix) - self._cache.longest_prefix(prefix).length

    def _prefill_shared(self, joined: Sequence[_Sequence]) -> None:
        """Read what joining sequences share once, up to the last token of each."""
        fresh = [one for one in joined if one.slot.length == 0 and len(one.unread) > 1]
        prefill = prefill_shared(self._model, [one.unread[:-1] for one in fresh])
        if prefill is None:
            return
        self._prefilled_tokens += prefill.tokens
        for sequence, layers in zip(fresh, prefill.layers, strict=True):
            self._cache.fill(sequence.slot, layers, len(sequence.unread) - 1)
            sequence.unread = sequence.unread[-1:]

    def _step(
        self, active: Sequence[_Sequence], decodes: int
    ) -> list[tuple[_Sequence, StopReason]]:
        """Sample a token for every sequence; return those that end.

        Args:
            active: all sequences.
            decodes: the number of those that were active before; the others have just joined.
        """
        unread = [sequence.unread for sequence in active]
        lengths = [sequence.slot.length for sequence in active]
        last = self._runner.forward(unread, lengths, decodes)
        logits = self._model.get_output_embeddings()(last)
        uniforms = [
            uniform(one.request.key, one.request.position + len(one.token_ids)) for one in active
        ]
        if logits.dtype != torch.float64:
            logits = logits.float()
        draws = draw(logits, uniforms, [sequence.request.temperature for sequence in active])
        finished = []
        for sequence, token, logprob, entropy in zip(active, *draws, strict=True):
            sequence.slot.length += len(sequence.unread)
            sequence.unread = (token,)
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.entropies.append(entropy)
            request = sequence.request
            stop = self._stop_criteria.check(
                request.prefill_ids, sequence.token_ids, request.max_tokens
            )
            if stop is not None:
                finished.append((sequence, stop))
        return finished

    def _release(self, active: list[_Sequence], sequence: _Sequence) -> None:
        """Take out a finished sequence; the last one takes its index, here as in the cache."""
        index = sequence.slot.index
        self._cache.release(sequence.slot, (*sequence.prefix_ids, *sequence.token_ids))
        active[index] = active[-1]
        active.pop()
