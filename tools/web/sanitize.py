"""Makes text from outside safe to show: no control characters, no tags of the protocol."""

from __future__ import annotations

import re

TAGS = ("search", "browse", "python", "result", "answer", "think")
"""Names that mean something between angle brackets in a transcript."""

_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+"
)
_TAG = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(TAGS)})\b)|<(?=\|[^|<>]*\|>)", re.IGNORECASE)
_BLANKS = re.compile(r"\s+")


def sanitize_line(text: str) -> str:
    """Put the text on one safe line.

    `<answer>` becomes `&lt;answer>`, and so do a chat template's marks such as `<|end|>`. Control
    characters, direction marks and lone surrogates become blanks; runs of blanks become one.
    """
    return _TAG.sub("&lt;", _BLANKS.sub(" ", _INVISIBLE.sub(" ", text))).strip()


def sanitize_text(text: str) -> str:
    """Sanitize each line, keeping line ends; runs of empty lines become one."""
    lines = "\n".join(sanitize_line(line) for line in text.splitlines())
    # A tag may be spread over two lines.
    return _TAG.sub("&lt;", re.sub(r"\n{3,}", "\n\n", lines)).strip()


def truncate(text: str, characters: int) -> str:
    """Cut the text to at most `characters`, the last one an ellipsis if anything was cut."""
    if len(text) <= characters:
        return text
    # A word cut short after "<" may read as a tag: `<searching>` must not end as `<search…`.
    return re.sub(r"<\s*/?\s*\w*$", "", text[: characters - 1]).rstrip() + "…"
