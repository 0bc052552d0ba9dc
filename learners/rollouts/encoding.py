"""Text to ids, safe in threads.

A fast tokenizer keeps "are special tokens read in text?" as a setting of its own, which every call
sets anew: a thread that encodes what a tool said and one that encodes a prompt would change it
under each other's hands.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_ONE_AT_A_TIME = threading.Lock()


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, trusted: bool = True
) -> tuple[int, ...]:
    """The ids of a text, nothing added.

    Args:
        tokenizer: a fast one.
        text: of one segment.
        trusted: special tokens written in it are read as such; False for what tools say: a tool
            that prints an end token has not ended a turn.
    """
    with _ONE_AT_A_TIME:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not trusted)
    return tuple(ids)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[int, ...]:
    """The ids of a conversation by the model's chat template, up to where the model writes."""
    with _ONE_AT_A_TIME:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
    return tuple(ids)


BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


def token_ends(
    token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
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
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
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
