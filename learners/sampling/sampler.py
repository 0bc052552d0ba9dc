"""The protocol of samplers, and what they share: requests, statistics and stop criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from learners.policy import KeepPrefix
from learners.tree import Completion, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Request(NamedTuple):
    """One turn to sample, or the rest of one."""

    prefix_ids: tuple[int, ...]
    """Prompt and response up to the open turn."""
    prefill_ids: tuple[int, ...]
    """The first tokens of the open turn; a stop tag may begin in them."""
    max_tokens: int
    key: str
    """Names the draws: seed, iteration, task and branch path."""
    position: int
    """Position of the first sampled token in the response."""
    temperature: float = 1.0


def validate_request(request: Request) -> None:
    """Check that a request can be served.

    Raises:
        ValueError: there is nothing to continue from, or no token may be sampled.
    """
    if not request.prefix_ids or request.max_tokens < 1:
        raise ValueError(
            f"a request needs a prefix and room for a token, not {len(request.prefix_ids)} "
            f"prefix tokens and max_tokens={request.max_tokens}"
        )


class SamplerStats(NamedTuple):
    """Counters and memory of a sampler."""

    prefilled_tokens: int | None = None
    """Prefix tokens that the model has read since the start; None if the sampler does not know."""
    weight_bytes: int = 0
    """Weights of its own; 0 if it samples with the policy's, or does not know."""
    cache_bytes: int = 0
    """Peak of the KV cache; 0 if it does not know."""


class Sampler(Protocol):
    """Generates; `learners.policy.policy` trains."""

    def submit(self, request: Request) -> None:
        """Queue a request; it is served while `completed` is iterated.

        Any thread may call this, also during that iteration: the request joins at the next step.

        Raises:
            ValueError: the request cannot be served; see `validate_request`.
        """
        ...

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Yield requests as they finish, until none is left; more may be submitted meanwhile."""
        ...

    def sync(self) -> None:
        """Take over the policy's new weights before anything else is sampled."""
        ...

    def rest(self) -> None:
        """Free memory for training, because nothing will be sampled for a while."""
        ...

    @property
    def keep(self) -> KeepPrefix | None:
        """Takes the keys and values of a prefix that the policy scored with its current weights.

        None if the sampler has no use for them: recording them can cost the policy a dearer pass
        (see `Policy.token_stats`).
        """
        ...

    def stats(self) -> SamplerStats:
        """Return counters and memory as they stand."""
        ...


class StopCriteria:
    """Decides where a turn ends: at a closing tag, an end token, or the token limit.

    All samplers share it. Mutates a cache of token texts only.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_tags: Sequence[str],
        end_ids: frozenset[int],
    ) -> None:
        """Stop at an environment's tags and a model's end tokens."""
        self._tokenizer = tokenizer
        self._stop_tags = tuple(stop_tags)
        self.end_ids = end_ids
        self._can_close: dict[int, bool] = {}

    def check(
        self, prefill_ids: Sequence[int], token_ids: Sequence[int], max_tokens: int
    ) -> StopReason | None:
        """Return why a turn ends with its last token; None if it goes on.

        Args:
            prefill_ids: the first tokens of the turn, not sampled here; a tag may begin in them.
            token_ids: sampled so far, at least one. Call this after each: only a tag that the last
                token completes is looked for.
            max_tokens: limit of sampled tokens.
        """
        if token_ids[-1] in self.end_ids:
            return "eos"
        # Decoding the turn at every token would take quadratic time.
        if self._can_close_tag(token_ids[-1]):
            text = self._tokenizer.decode([*prefill_ids, *token_ids], skip_special_tokens=False)
            if any(tag in text for tag in self._stop_tags):
                return "tag"
        return "length" if len(token_ids) >= max_tokens else None

    def _can_close_tag(self, token: int) -> bool:
        """True if a token's text can complete a closing tag; all of these end in ">"."""
        if token not in self._can_close:
            self._can_close[token] = ">" in self._tokenizer.decode([token])
        return self._can_close[token]


def collect_end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a turn by the model's generation settings and its tokenizer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset({*listed, tokenizer.eos_token_id} - {None})
