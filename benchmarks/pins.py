"""Knows the rows of a table again, where the hub's commit cannot vouch for them.

For some sets no commit of their own branch is stated anywhere, or only one of the hub's converted
copies. What is known of them is how many rows they have, and the digests of some rows in order.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

_DIGITS = 8


def row_digest(*texts: str) -> str:
    """The first hex digits of the sha256 of a row's question and answer."""
    text = "\0".join(part.strip() for part in texts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Pin:
    """What a table held when it was seen."""

    rows: int
    """All of them."""
    digests: str
    """`row_digest` of rows of it, in their order, one after the other; the rest were not seen."""
    texts: Callable[[Mapping[str, object]], tuple[str, str]]
    """Question and answer of a row."""

    def difference(self, rows: Sequence[Mapping[str, object]]) -> str:
        """How rows differ from those that were seen; empty where nothing shows."""
        known = wrap(self.digests, _DIGITS)
        found = [row_digest(*self.texts(row)) for row in rows]
        places = {digest: place for place, digest in reversed(list(enumerate(found)))}
        there = [places[digest] for digest in known if digest in places]
        faults = []
        if len(rows) != self.rows:
            faults.append(f"{len(rows):,} rows, not {self.rows:,}")
        if len(there) < len(known):
            faults.append(f"{len(known) - len(there)} of {len(known)} known rows are not there")
        if there != sorted(there):
            faults.append("rows in another order")
        return "; ".join(faults)
