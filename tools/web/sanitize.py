"""Text from outside, made safe to show: no control characters, no tags of the protocol."""

from __future__ import annotations

import re

TAGS = ("search", "browse", "python", "result", "answer", "think")
"""Names that mean something between angle brackets in a transcript."""

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+"
)


_TAG = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(TAGS)})\b)|<(?=\|[^|<>]*\|>)", re.IGNORECASE)


_BLANKS = re.compile(r"\s+")


def one_line(text: str) -> str:
    """The text on one line.

    `<answer>` becomes `&lt;answer>`, and so do a chat template's marks such as `<|end|>`. Control
    characters, direction marks and lone surrogates become blanks, runs of blanks become one.
    """
    return _TAG.sub("&lt;", _BLANKS.sub(" ", _UNSEEN.sub(" ", text))).strip()


def lines(text: str) -> str:
    """Like `one_line`, but line ends stay; runs of empty lines become one."""
    kept = "\n".join(one_line(line) for line in text.splitlines())
    return _TAG.sub("&lt;", re.sub(r"\n{3,}", "\n\n", kept)).strip()


def cut(text: str, characters: int) -> str:
    """At most `characters` of the text, the last one an ellipsis when something was left out."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
