"""The sampler protocol on top of a vLLM engine, which draws the tokens.

vLLM shares prefixes by itself (branches cost a look-up) and batches continuously. This module adds
the rest: a turn ends at a tag that began in the prefill, every request has its own seed, and
changed weights are pushed before the next token, with all cached prefixes dropped.

Log-probabilities are the engine's, at the request's temperature. Entropies are those of the
likeliest tokens, with all others counted as one: never above the exact ones, which
`Policy.token_stats` computes. Draws are vLLM's, so ids differ from TransformersSampler's under the
same keys; they repeat for the same batches, and up to rounding for others.
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
from learners.sampling.sampler import Request, SamplerStats, StopCriteria, validate_request
from learners.tree import Completion, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Weights = Iterable[tuple[str, Tensor]] | Path
"""Parameters by transformers' names, or the folder of a saved model."""


class Piece(NamedTuple):
    """The n tokens that a step of the engine added to a request."""

    name: str
    token_ids: Sequence[int]
    """(n,)"""
    logprobs: Sequence[float]
    """(n,) nats."""
    entropies: Sequence[float]
    """(n,) nats."""
    ended: bool
    """True if the engine will add no more, for whatever reason."""


class Engine(Protocol):
    """The calls of vLLM that the sampler uses; tests have an engine of their own."""

    def add(
        self,
        name: str,
        prefix_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        temperature: float,
        end_ids: Sequence[int],
    ) -> None:
        """Add a request; the engine may end it at an end token or at its limit."""
        ...

    def step(self) -> Iterable[Piece]:
        """Sample one token, or a few, for every request that fits in the batch."""
        ...

    def abort(self, names: Sequence[str]) -> None:
        """Drop requests."""
        ...

    def load(self, weights: Weights) -> None:
        """Sample with these weights from now on, and drop all that was cached with others."""
        ...

    def sleep(self) -> None:
        """Free the accelerator's memory until `wake`; the weights survive."""
        ...

    def wake(self) -> None:
        """Take the memory back, to be ready for `step`."""
        ...


@dataclass
class _Sequence:
    """A request being served. Mutated by every step."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def extend(self, piece: Piece, stop_criteria: StopCriteria) -> Completion | None:
        """Append tokens until the turn ends; drop those that the engine drew beyond its end."""
        for token, logprob, entropy in zip(
            piece.token_ids, piece.logprobs, piece.entropies, strict=True
        ):
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.entropies.append(entropy)
            stop = stop_criteria.check(
                self.request.prefill_ids, self.token_ids, self.request.max_tokens
            )
            if stop is not None:
                return self._completion(stop)
        # The engine ends a turn before we do only if the model's context is full.
        return self._completion("length") if piece.ended else None

    def _completion(self, stop: StopReason) -> Completion:
        return Completion(tuple(self.token_ids), tuple(self.logprobs), tuple(self.entropies), stop)


class VllmSampler:
    """Samples with an engine in this process. Mutated by `submit`, `completed`, `sync`, `rest`."""

    keep = None
    """An engine takes no keys and values from outside."""

    def __init__(
        self, engine: Engine, stop_criteria: StopCriteria, weights: Callable[[], Weights]
    ) -> None:
        """Sample with the engine's own weights until `sync` is called.

        Args:
            engine: owned by this sampler from now on.
            stop_criteria: end a turn.
            weights: returns the policy's; called when they are pushed.
        """
        self._engine, self._stop_criteria, self._weights = engine, stop_criteria, weights
        self._waiting: list[Request] = []
        self._names = count()
        self._stale = self._asleep = False

    def submit(self, request: Request) -> None:
        """Queue a request; any thread may call this.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        validate_request(request)
        self._waiting.append(request)

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Yield requests as they finish."""
        active: dict[str, _Sequence] = {}
        try:
            while active or self._waiting:
                if not active:
                    self._prepare()
                # Stale: weights changed meanwhile. They can be pushed when nothing is active.
                while self._waiting and not self._stale:
                    request = self._waiting.pop(0)
                    name = str(next(self._names))
                    active[name] = _Sequence(request)
                    self._add(name, request)
                for piece in self._engine.step():
                    sequence = active.get(piece.name)
                    if sequence is None:  # its turn has ended
                        continue
                    completion = sequence.extend(piece, self._stop_criteria)
                    if completion is None:
                        continue
                    del active[piece.name]
                    if not piece.ended:
                        self._engine.abort([piece.name])
                    yield sequence.request, completion
        finally:
            if active:
                self._engine.abort(list(active))

    def sync(self) -> None:
        """Push the policy's weights before anything is sampled again."""
        self._stale = True

    def rest(self) -> None:
        """Free the engine's memory until something is sampled again."""
        if not self._asleep:
            self._engine.sleep()
            self._asleep = True

    def stats(self) -> SamplerStats:
        """Return no numbers: what the engine reads and holds is not known here."""
        return SamplerStats()

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
            derive_seed(request.key, request.position),
            request.temperature,
            sorted(self._stop_criteria.end_ids),
        )


def derive_seed(key: str, position: int) -> int:
    """Hash a key and a position to a seed in [0, 2**63)."""
    digest = hashlib.blake2b(f"{key}#{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def entropy_lower_bound(logprobs: Iterable[float]) -> float:
    """Entropy of a distribution's likeliest outcomes, all others counted as one, in nats."""
    finite = [logprob for logprob in logprobs if logprob > -math.inf]
    rest = 1.0 - sum(math.exp(logprob) for logprob in finite)
    entropy = -sum(math.exp(logprob) * logprob for logprob in finite)
    return entropy - (rest * math.log(rest) if rest > 0 else 0.0)


def export_weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Return a policy's weights as an engine takes them, with adapters merged in."""
    if lora.has_adapters(model):
        return list(lora.merged_weights(model).items())
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]
