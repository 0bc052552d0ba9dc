"""Where a turn ends: at the first token that completes a closing tag, an end token, or no room."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.tree import StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TurnEnd:
    """The same for every sampler, so that none has a rule of its own."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
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


def end_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Tokens that end what a model says, by its generation settings and its tokenizer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset({*listed, tokenizer.eos_token_id} - {None})
