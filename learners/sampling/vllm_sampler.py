"""Sampling by vLLM: the protocol of `learners.sampling.sampler`, the tokens drawn by its engine.

vLLM shares prefixes by itself (branches cost a look-up) and batches continuously. What is done here
is what it does not: a turn ends at a tag that began in the prefill, every request has its own seed,
and weights are pushed before the next token after they changed, with all cached prefixes dropped.

Log-probabilities are the engine's own, at the request's temperature. Entropies are of its likeliest
tokens, all others counted as one: never above the exact ones, which are `Policy.token_stats`'s.
Draws are vLLM's, so ids differ from TransformersSampler's under the same keys; they repeat for the
same batches, and up to rounding for others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from learners.policy import lora
from learners.sampling.sampler import Request, SamplerStats, TurnEnd, servable
from learners.tree import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Weights = Iterable[tuple[str, Tensor]] | Path
"""Parameters by the names of transformers, or the folder of a saved model."""


class Piece(NamedTuple):
    """What a step of the engine added to a request; n tokens."""

    name: str
    token_ids: Sequence[int]
    """(n,)"""
    logprobs: Sequence[float]
    """(n,) nats."""
    entropies: Sequence[float]
    """(n,) nats."""
    ended: bool
    """The engine will add no more, whatever the reason."""


class Engine(Protocol):
    """What is needed of vLLM; a test has its own."""

    def add(
        self,
        name: str,
        prefix_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        temperature: float,
        end_ids: Sequence[int],
    ) -> None:
        """Take a request; it may stop by itself at an end token or at its limit."""
        ...

    def step(self) -> Iterable[Piece]:
        """A token, or a few, for every request that has room in the batch."""
        ...

    def abort(self, names: Sequence[str]) -> None:
        """Forget requests."""
        ...

    def load(self, weights: Weights) -> None:
        """Sample with these from now on, and forget what was computed with others."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory away; `wake` takes it back, weights included."""
        ...

    def wake(self) -> None:
        """Be ready to step."""
        ...


@dataclass
class _Turn:
    """A request under way. Mutated by every step."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def read(self, piece: Piece, end: TurnEnd) -> Completion | None:
        """Take tokens until the turn ends; what the engine drew beyond is dropped."""
        for token, logprob, entropy in zip(
            piece.token_ids, piece.logprobs, piece.entropies, strict=True
        ):
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.entropies.append(entropy)
            stop = end.reason(self.request.prefill_ids, self.token_ids, self.request.max_tokens)
            if stop is not None:
                return self._completion(stop)
        return self._completion("length") if piece.ended else None  # no room in the engine's model

    def _completion(self, stop: str) -> Completion:
        return Completion(
            tuple(self.token_ids),
            tuple(self.logprobs),
            tuple(self.entropies),
            stop,  # type: ignore[arg-type]
        )


class VllmSampler:
    """Samples with an engine in this process. Mutated by `submit`, `completed`, `sync`, `rest`."""

    keep = None
    """vLLM computes keys and values itself."""

    def __init__(self, engine: Engine, end: TurnEnd, weights: Callable[[], Weights]) -> None:
        """Sample with what the engine was opened with until `sync` is called.

        Args:
            engine: owned by this sampler from now on.
            end: of a turn.
            weights: the policy's, asked for when they are pushed.
        """
        self._engine, self._end, self._weights = engine, end, weights
        self._waiting: list[Request] = []
        self._names = count()
        self._stale = self._asleep = False

    def submit(self, request: Request) -> None:
        """Take a request; any thread may.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        self._waiting.append(servable(request))

    def sync(self) -> None:
        """The policy's weights have changed: they are pushed before anything is sampled again."""
        self._stale = True

    def stats(self) -> SamplerStats:
        """Nothing is known of what the engine reads and holds."""
        return SamplerStats()

    def rest(self) -> None:
        """Nothing will be sampled for a while."""
        if not self._asleep:
            self._engine.sleep()
            self._asleep = True

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Requests as they finish."""
        turns: dict[str, _Turn] = {}
        try:
            while turns or self._waiting:
                if not turns:
                    self._prepare()
                while self._waiting and not self._stale:
                    request = self._waiting.pop(0)
                    name = str(next(self._names))
                    turns[name] = _Turn(request)
                    self._add(name, request)
                for piece in self._engine.step():
                    turn = turns.get(piece.name)
                    said = turn.read(piece, self._end) if turn is not None else None
                    if turn is None or said is None:  # it has ended already, or it goes on
                        continue
                    del turns[piece.name]
                    if not piece.ended:
                        self._engine.abort([piece.name])
                    yield turn.request, said
        finally:
            if turns:
                self._engine.abort(list(turns))

    def _prepare(self) -> None:
        if self._asleep:
            self._engine.wake()
            self._asleep = False
        if self._stale:
            self._engine.load(self._weights())
            self._stale = False

    def _add(self, name: str, request: Request) -> None:
        self._engine.add(
            name,
            request.prefix_ids + request.prefill_ids,
            request.max_tokens,
            seed(request.key, request.position),
            request.temperature,
            sorted(self._end.end_ids),
        )


def seed(key: str, position: int) -> int:
    """In [0, 2**63), decided by key and position alone."""
    digest = hashlib.blake2b(f"{key}#{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def entropy_of(logprobs: Iterable[float]) -> float:
    """Nats, of a distribution's likeliest outcomes, the rest counted as one: a lower bound."""
    known = [logprob for logprob in logprobs if logprob > -math.inf]
    rest = 1.0 - sum(math.exp(logprob) for logprob in known)
    entropy = -sum(math.exp(logprob) * logprob for logprob in known)
    return entropy - (rest * math.log(rest) if rest > 0 else 0.0)


def weights_of(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """A policy's weights as an engine takes them, adapters merged into them."""
    if lora.has_adapters(model):
        return list(lora.merged_weights(model).items())
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]
