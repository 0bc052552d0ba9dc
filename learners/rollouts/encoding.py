"""Text to token ids and back; encoding is thread-safe.

A fast tokenizer stores "are special tokens recognised in text?" as mutable state that every call
sets. Without the lock, a thread that encodes a tool's result and one that encodes a prompt would
change that setting under each other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""The character that a decoder writes for bytes that are not a complete character."""

_LOCK = threading.Lock()


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, trusted: bool = True
) -> tuple[int, ...]:
    """Encode a text without adding special tokens.

    Args:
        tokenizer: a fast one.
        text: one segment.
        trusted: True to recognise special tokens written in the text. False for what tools return:
            a tool that prints an end token has not ended a turn.
    """
    with _LOCK:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not trusted)
    return tuple(ids)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[int, ...]:
    """Encode a conversation with the model's chat template, up to where the model's turn begins."""
    with _LOCK:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
    return tuple(ids)


def decode_with_ends(
    token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    pieces: dict[int, str] | None = None,
) -> tuple[str, list[int]]:
    """Decode tokens; also return how many characters of the text end with each token.

    A character of several tokens belongs to the last of them.

    Args:
        token_ids: (T,).
        tokenizer: the one that made them.
        pieces: cache of single tokens' texts, filled here; pass the same one to every call.

    Returns:
        The text; (T,) ends, non-decreasing, the last one is the text's length.
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
    return _decode_incrementally(token_ids, tokenizer)


def _decode_incrementally(
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[int]]:
    """Do the same if a token's text depends on those before it, or is a part of a character."""

    def decode(start: int, stop: int) -> str:
        return str(tokenizer.decode(token_ids[start:stop], skip_special_tokens=False))

    parts: list[str] = []
    ends, end = [], 0
    # Tokens [context_start, start) are decoded as context; the text from `start` is not written
    # yet. It is written once it no longer ends inside a character.
    context_start = start = 0
    for stop in range(1, len(token_ids) + 1):
        context, text = decode(context_start, start), decode(context_start, stop)
        if not text.endswith(REPLACEMENT) or stop == len(token_ids):
            parts.append(text[len(context) :])
            end += len(parts[-1])
            context_start, start = start, stop
        ends.append(end)
    return "".join(parts), ends
