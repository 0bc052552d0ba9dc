"""What a state of the Python tool is known by: digests of files and of outputs."""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from tools.sandbox import Reply
from tools.tool import ToolUnavailable


def output_digest(text: str) -> str:
    """Of an output without what may differ between two runs: addresses, folders, their names."""
    blank = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
    blank = re.sub(r"\btmp[a-z0-9_]{8}\b", "tmp", blank)
    blank = re.sub(r"(/[^\s/'\"]+)*(/\.~[0-9a-f]+)+", "/work", blank)
    return hashlib.sha256(blank.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def difference(history: Sequence[tuple[str, str]], reply: Reply) -> str | None:
    """In what a replay went otherwise than the (cell, digest of its output) before; or None."""
    ended = len(reply.results) - (reply.state is None)
    for number, (_cell, digest) in enumerate(history):
        which = f"cell {number + 1} of {len(history)}"
        if number >= ended:
            return f"{which} was stopped ({reply.why}), which it was not when it was recorded"
        if output_digest(reply.results[number].text) != digest:
            return (
                f"{which} answered otherwise than when it was recorded (does it read a clock or the"
                " system's randomness?)"
            )
    return None


def with_digests(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(path, digest) of an episode's attachments.

    Raises:
        ValueError: two would have one name in the work folder.
        OSError: one cannot be read.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two attachments would have one name: {', '.join(names)}")
    return tuple((path, _file_digest(Path(path).read_bytes())) for path in paths)


def attached(path: str, digest: str) -> tuple[str, str]:
    """(name, content in base64) of an attachment; ToolUnavailable if it has changed since."""
    content = Path(path).read_bytes()
    if _file_digest(content) != digest:
        raise ToolUnavailable(f"{path} is not the file that the episode began with")
    return Path(path).name, base64.b64encode(content).decode()


def _file_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
