"""Which characters of a response's text each of its tokens wrote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


def token_ends(
    token_ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    pieces: dict[int, str] | None = None,
) -> tuple[str, list[int]]:
    """The text of tokens, and how many of its characters end with each of them.

    A character of several tokens belongs to the last of them.

    Args:
        token_ids: (T,).
        tokenizer: theirs.
        pieces: texts of single tokens, known and added to: kept by whoever asks more than once.

    Returns:
        Text; (T,) ends, never falling, the last is the text's length.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    pieces = {} if pieces is None else pieces
    for token in set(token_ids) - pieces.keys():
        pieces[token] = tokenizer.decode([token], skip_special_tokens=False)
    ends, end = [], 0
    for token in token_ids:
        end += len(pieces[token])
        ends.append(end)
    if "".join(pieces[token] for token in token_ids) == text:
        return text, ends
    return _together(token_ids, tokenizer)


def _together(
    token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, list[int]]:
    """The same where a token's text depends on those before it, or is part of a character."""

    def decoded(start: int, stop: int) -> str:
        return str(tokenizer.decode(token_ids[start:stop], skip_special_tokens=False))

    parts: list[str] = []
    ends, end = [], 0
    before = begin = 0  # what is read as context, what is not yet written
    for stop in range(1, len(token_ids) + 1):
        context, whole = decoded(before, begin), decoded(before, stop)
        if not whole.endswith(BROKEN) or stop == len(token_ids):
            parts.append(whole[len(context) :])
            end += len(parts[-1])
            before, begin = begin, stop
        ends.append(end)
    return "".join(parts), ends
