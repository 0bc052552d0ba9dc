"""Text to ids, safe in threads.

A fast tokenizer keeps "are special tokens read in text?" as a setting of its own, which every call
sets anew: a thread that encodes what a tool said and one that encodes a prompt would change it
under each other's hands.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ONE_AT_A_TIME = threading.Lock()


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, trusted: bool = True
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
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]
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
