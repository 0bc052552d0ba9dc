"""Sampling: prefixes of token ids go in, completions of one turn come out.

Every draw is decided by a counter keyed by the request and the position, never by a generator's
state: the same request gives the same tokens whatever else is in the batch (up to float rounding,
which only matters where the draw falls within 1e-4 of a boundary of the distribution).
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from learners.kv_cache import PrefixStore, RowCache, read_together
from learners.tree import Completion, StopReason
from learners.turn_end import TurnEnd, end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Request(NamedTuple):
    """One turn to sample, or the rest of one."""

    prefix_ids: tuple[int, ...]
    """Prompt and response up to the open turn."""
    prefill_ids: tuple[int, ...]
    """The first tokens of the open turn; stop tags are looked for in them too."""
    max_tokens: int
    key: str
    """Names the draws: seed, iteration, task and branch path."""
    position: int
    """Of the first token to sample, in the response."""
    temperature: float = 1.0


class Sampler(Protocol):
    """Generates; `learners.policy` trains."""

    def submit(self, request: Request) -> None:
        """Take a request; it is worked on while `completed` is iterated.

        Any thread may, also meanwhile: the request then joins at the next step.
        """
        ...

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Requests as they finish, until none is left; more may be submitted on the way."""
        ...

    def sync(self) -> None:
        """The policy's weights have changed."""
        ...

    def rest(self) -> None:
        """Nothing will be sampled for a while: memory may serve others."""
        ...


def uniform(key: str, position: int) -> float:
    """A number in [0, 1), decided by key and position alone."""
    digest = hashlib.blake2b(f"{key}#{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class Draw(NamedTuple):
    """One sampled token per row; all (R,)."""

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]


def draw(logits: Tensor, uniforms: Sequence[float], temperatures: Sequence[float]) -> Draw:
    """Sample by inverse CDF; a temperature of 0 is greedy.

    Args:
        logits: (R, V).
        uniforms: (R,) in [0, 1).
        temperatures: (R,).

    Returns:
        Tokens with their log-probabilities and the entropies of the full distributions, in nats.
    """
    heat = torch.tensor([t if t > 0 else 1.0 for t in temperatures], dtype=logits.dtype)
    logprobs = torch.log_softmax(logits / heat[:, None].to(logits.device), dim=-1)  # (R, V)
    probabilities = logprobs.exp()
    cdf = probabilities.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(uniforms, dtype=torch.float64, device=cdf.device)[:, None] * cdf[:, -1:]
    token_ids = torch.searchsorted(cdf, target, right=True).clamp_max(logits.shape[-1] - 1)[:, 0]
    greedy = torch.tensor([t <= 0 for t in temperatures], device=cdf.device)
    token_ids = torch.where(greedy, logits.argmax(-1), token_ids)
    entropies = -(probabilities * logprobs.clamp_min(-1e4)).sum(-1)
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0]
    return Draw(token_ids.tolist(), chosen.tolist(), entropies.tolist())


@dataclass
class _Row:
    """A request under way. Mutated by every decoding step."""

    request: Request
    prefix_ids: tuple[int, ...]
    """Tokens before the first sampled one, prefill included."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    known: int = 0
    """Tokens whose keys and values are in the cache."""
    unread: tuple[int, ...] = ()
    """Tokens that the next forward pass reads."""


def servable(request: Request) -> Request:
    """The request, unless it is none.

    Raises:
        ValueError: there is nothing to continue from, or no token may be sampled.
    """
    if not request.prefix_ids or request.max_tokens < 1:
        raise ValueError(
            f"a request needs a prefix and room for a token, not {len(request.prefix_ids)} "
            f"prefix tokens and max_tokens={request.max_tokens}"
        )
    return request


class TransformersSampler:
    """Samples with the policy's own model; finished rows leave the batch at once.

    Mutated by `submit` and `completed`. Rows are served in order of submission, at most `rows` at a
    time; a prefix that a kept row shares is not read again, and what rows that join together share
    is read once.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        stop_tags: Sequence[str],
        rows: int = 64,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Sample from `model`; a turn ends at a stop tag or an end token.

        With a `dtype` other than the model's, it samples from a copy that `sync` refreshes.
        """
        self._source = model
        self._model = model
        if dtype is not None and dtype != model.dtype:
            self._model = copy.deepcopy(model).to(dtype).requires_grad_(False)
        self._end = TurnEnd(tokenizer, stop_tags, end_ids(model, tokenizer))
        self._rows = rows
        self._waiting: list[Request] = []
        self._store = PrefixStore()
        self.prefilled_tokens = 0
        """Prefix tokens that the model read so far."""
        self._row_bytes = 0

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        self._waiting.append(servable(request))

    def sync(self) -> None:
        """Take the model's weights as they are now; keys and values of the old ones are dropped."""
        self._store.forget()
        if self._model is not self._source:
            self._model.load_state_dict(self._source.state_dict())

    def rest(self) -> None:
        """It samples with the policy's own memory: there is none to give."""

    @torch.inference_mode()
    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Requests as they finish."""
        active: list[_Row] = []
        cache = RowCache()
        was_training = self._model.training
        self._model.eval()
        while active or self._waiting:
            joined = self._admit(active, cache)
            finished = self._advance(active, slice(0, joined), cache) if joined else []
            if joined < len(active):
                finished += self._advance(active, slice(joined, len(active)), cache)
            for row, stop in finished:
                if stop is None:
                    continue
                self._release(active, row, cache)
                yield (
                    row.request,
                    Completion(
                        tuple(row.token_ids), tuple(row.logprobs), tuple(row.entropies), stop
                    ),
                )
        self._model.train(was_training)
        self._row_bytes = max(self._row_bytes, cache.held_bytes)

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of its own weights, and the most of keys and values so far."""
        own = [] if self._model is self._source else self._model.parameters()
        return sum(p.nbytes for p in own), self._row_bytes + self._store.peak_bytes

    def _admit(self, active: list[_Row], cache: RowCache) -> int:
        """Let waiting requests join; returns how many rows were there before."""
        before = len(active)
        while self._waiting and len(active) < self._rows:
            request = self._waiting.pop(0)
            row = _Row(request, request.prefix_ids + request.prefill_ids)
            shared, prefix = self._store.longest(row.prefix_ids)
            row.known = min(shared, len(row.prefix_ids) - 1)
            row.unread = row.prefix_ids[row.known :]
            if prefix is not None:
                cache.write(len(active), prefix.kept, row.known)
            active.append(row)
        self._read_together(active, range(before, len(active)), cache)
        self.prefilled_tokens += sum(len(row.unread) for row in active[before:])
        return before

    def _read_together(self, active: list[_Row], joined: range, cache: RowCache) -> None:
        """Read what joining rows share once, all but the last token of each."""
        fresh = [i for i in joined if active[i].known == 0 and len(active[i].unread) > 1]
        read = read_together(self._model, [active[i].unread[:-1] for i in fresh])
        if read is None:
            return
        self.prefilled_tokens += read.tokens
        for index, kept in zip(fresh, read.kept, strict=True):
            row = active[index]
            row.known = len(row.unread) - 1
            row.unread = row.unread[-1:]
            cache.write(index, kept, row.known)

    def _advance(
        self, active: list[_Row], rows: slice, cache: RowCache
    ) -> list[tuple[_Row, StopReason | None]]:
        """One forward pass over some rows, one token for each."""
        group = active[rows]
        width = max(len(row.unread) for row in group)
        device = self._model.device
        ids = torch.tensor(
            [[*row.unread, *[0] * (width - len(row.unread))] for row in group], device=device
        )
        known = torch.tensor([row.known for row in group], device=device)
        cache.rows = rows
        cache.positions = known[:, None] + torch.arange(width, device=device)  # (R, Q)
        cache.span = int(known.max()) + width
        seen = torch.arange(cache.span, device=device) <= cache.positions[:, :, None]
        hidden = self._model.base_model(
            input_ids=ids,
            attention_mask=seen[:, None],  # (R, 1, Q, span)
            position_ids=cache.positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last = torch.tensor([len(row.unread) - 1 for row in group], device=device)
        logits = self._model.get_output_embeddings()(hidden[torch.arange(len(group)), last])
        uniforms = [
            uniform(row.request.key, row.request.position + len(row.token_ids)) for row in group
        ]
        if logits.dtype != torch.float64:
            logits = logits.float()
        drawn = draw(logits, uniforms, [row.request.temperature for row in group])
        finished = []
        for row, token, logprob, entropy in zip(group, *drawn, strict=True):
            row.known += len(row.unread)
            row.unread = (token,)
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.entropies.append(entropy)
            ended = self._end.reason(row.request.prefill_ids, row.token_ids, row.request.max_tokens)
            finished.append((row, ended))
        return finished

    def _release(self, active: list[_Row], row: _Row, cache: RowCache) -> None:
        """Take a finished row out: keep its keys and values, let the last row take its place."""
        index = next(i for i, other in enumerate(active) if other is row)
        kept = cache.read(index, row.known)
        if kept is not None:
            self._store.keep((*row.prefix_ids, *row.token_ids)[: row.known], kept)
        if index < len(active) - 1:
            cache.move(len(active) - 1, index)
            active[index] = active[-1]
        active.pop()
