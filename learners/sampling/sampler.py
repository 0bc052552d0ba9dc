"""Where a turn ends: at the first token that completes a closing tag, an end token, or no room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from learners.policy import Keep
from learners.tree import Completion, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TurnEnd:
    """The same for every sampler, so that none has a rule of its own."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_tags: Sequence[str],
        end_ids: frozenset[int],
    ) -> None:
        """Know the tags of an environment and the end tokens of a model."""
        self._tokenizer = tokenizer
        self._stop_tags = tuple(stop_tags)
        self.end_ids = end_ids
        self._may_close: dict[int, bool] = {}

    def reason(
        self, prefill_ids: Sequence[int], token_ids: Sequence[int], most: int
    ) -> StopReason | None:
        """Why a turn ends with the last of its tokens; None: it goes on.

        Args:
            prefill_ids: the first tokens of the turn, not sampled here; a tag may begin in them.
            token_ids: sampled so far, at least one; asked after each.
            most: tokens that may be sampled.
        """
        if token_ids[-1] in self.end_ids:
            return "eos"
        if self._closes(token_ids[-1]):
            text = self._tokenizer.decode([*prefill_ids, *token_ids], skip_special_tokens=False)
            if any(tag in text for tag in self._stop_tags):
                return "tag"
        return "length" if len(token_ids) >= most else None

    def _closes(self, token: int) -> bool:
        """Whether a token's text can complete a closing tag; those end in ">"."""
        if token not in self._may_close:
            self._may_close[token] = ">" in self._tokenizer.decode([token])
        return self._may_close[token]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end what a model says, by its generation settings and its tokenizer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset({*listed, tokenizer.eos_token_id} - {None})


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

    @property
    def keep(self) -> Keep | None:
        """Takes the keys and values of a prefix that the policy scored with its current weights.

        None if the sampler has no use for them: recording them can cost the policy a dearer pass
        (see `Policy.token_stats`).
        """
        ...

    def stats(self) -> SamplerStats:
        """Counters and memory as they stand."""
        ...

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
