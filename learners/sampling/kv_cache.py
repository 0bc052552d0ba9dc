"""Keys and values of what is sampled: a line per sequence, and finished ones stay where they are.

A turn that goes on is sampled further in the line it left, a branch takes a copy of its parent's
line up to the branch point, and nothing is read twice. Lines being sampled stand first, without
gaps, so that a forward pass works on one slice; kept ones stand behind them until what was used
longest ago makes room.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

GROWTH = 128
"""Positions by which full lines grow."""


SMALL_BYTES = 1 << 28
"""A store of at most so many bytes stays allocated when it is emptied."""


_ids = attrgetter("token_ids")


@dataclass(eq=False)
class Line:
    """A sequence's place in a store. Mutated by `Lines` and by who samples it."""

    token_ids: tuple[int, ...]
    """What others may share of it."""
    known: int
    """Positions that are filled: more than `token_ids` has while it is sampled."""
    place: int
    used: int = 0
    """When it was last wanted."""


class Lines:
    """Stands where transformers expects a `Cache`; mutated by every forward pass.

    Call `expect` before a forward pass; what a line holds beyond its length is never attended to.
    """

    is_compileable = False

    def __init__(self, rows: int, most_bytes: int = 2_000_000_000) -> None:
        """Room for `rows` that are sampled at a time, and for kept ones up to so many bytes."""
        self.active = 0
        """Lines being sampled: the first ones."""
        self.peak_bytes = 0
        """Most that the store ever took."""
        self.expected = 0
        """Lines that will be sampled at a time: room is made for all of them at once."""
        self._rows, self._most_bytes = rows, most_bytes
        self._read = slice(0, 0)
        """Lines that the attention of the next forward pass looks at, and how far."""
        self._span = 0
        self._at = (torch.zeros(0), torch.zeros(0))
        self._lines: list[Line] = []
        self._sorted: list[Line] = []
        self._layers: list[Tensor] = []
        """Of each layer (2, lines, H, positions, D), keys and values."""
        self._clock = 0

    def expect(self, read: slice, span: int, lines: Tensor, positions: Tensor) -> None:
        """Say what the next forward pass is over.

        Args:
            read: lines that its attention looks at.
            span: how many of their positions.
            lines: (B, T) of each of its tokens.
            positions: (B, T) where in its line each goes.
        """
        self._read, self._span, self._at = read, span, (lines, positions)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values; return (lines, H, span, D) of what is looked at."""
        store = self._layer(layer_idx, keys)
        # Not scatter_: for bfloat16 on a CPU it copies the whole store to float32 and back.
        lines, positions = self._at
        for half, new in zip(store, (keys, values), strict=True):
            half[lines, :, positions] = new.transpose(1, 2)
        seen = store[:, self._read, :, : self._span]
        return seen[0], seen[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so this is never used to make them."""
        return 0

    def longest(self, token_ids: tuple[int, ...]) -> tuple[int, Line | None]:
        """How many leading tokens are known, and a line that knows them.

        The longest beginning is shared with a neighbour in sorted order.
        """
        best, found = 0, None
        at = bisect_right(self._sorted, token_ids, key=_ids)
        for line in self._sorted[max(0, at - 1) : at + 1] if self._layers else ():
            shared = _shared(line.token_ids, token_ids)
            if shared > best:
                best, found = shared, line
        return best, found

    def place(self, token_ids: tuple[int, ...]) -> int:
        """Where the line is that these tokens go on from; behind all where there is none."""
        shared, line = self.longest(token_ids)
        if line is None or shared < len(line.token_ids):
            return len(self._lines)
        return line.place

    def take(self, token_ids: tuple[int, ...]) -> Line:
        """The last of the active lines, for what follows these tokens.

        All that is known of them is filled but for the last, whose reading says what comes next.
        """
        shared, source = self.longest(token_ids)
        known = min(shared, len(token_ids) - 1)
        line = source
        if source is None or source.place < self.active or not self._may_end(source, shared):
            line = self._open()
        assert line is not None
        self._rename(line, token_ids[:known])
        self._swap(line, self._lines[self.active])
        self.active += 1
        if source is not None and line is not source:
            for store in self._layers:
                store[:, line.place, :, :known] = store[:, source.place, :, :known]
        line.known = known
        return line

    def fill(self, line: Line, kept: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Put positions that were computed elsewhere into a line.

        Args:
            line: of this store.
            kept: of each layer (H, length, D) keys and values.
            length: positions.
        """
        line.known = length
        self._span = max(self._span, length)
        for number, (keys, values) in enumerate(kept):
            store = self._layer(number, keys[None])
            store[0, line.place, :, :length] = keys
            store[1, line.place, :, :length] = values

    def keep(self, token_ids: tuple[int, ...], kept: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keep a sequence that somebody else read, see `fill`, where there is room.

        Not what is known but for its last token, as all is that was sampled with these weights.
        """
        crowded = self.full() and len(self._lines) == self.active
        if crowded or self.longest(token_ids)[0] >= len(token_ids) - 1:
            return
        line = self._open()
        self._rename(line, token_ids)
        self.fill(line, kept, len(token_ids))

    def share(self, line: Line, token_ids: tuple[int, ...]) -> None:
        """Let others take copies of what an active line has read by now."""
        self._rename(line, token_ids[: line.known])

    def release(self, line: Line, token_ids: tuple[int, ...]) -> None:
        """Keep an active line that is no longer sampled; the last active one takes its place."""
        self.share(line, token_ids)
        line.used = self._now()
        self.active -= 1
        self._swap(line, self._lines[self.active])

    def abandon(self) -> None:
        """Drop lines whose sampling was not brought to an end."""
        while self.active:
            self.active -= 1
            self._drop(self._lines[self.active])

    def forget(self) -> None:
        """Drop everything: the weights have changed."""
        self.active = self._span = 0
        self._lines.clear()
        self._sorted.clear()
        if self.held_bytes > SMALL_BYTES:
            self._layers.clear()

    @property
    def held_bytes(self) -> int:
        """Of all keys and values."""
        return sum(store.nbytes for store in self._layers)

    def _may_end(self, line: Line, shared: int) -> bool:
        """Whether nothing is lost when a kept line goes on after so many of its tokens."""
        line.used = self._now()
        return shared == len(line.token_ids) or (self.full() and line is self._oldest())

    def _open(self) -> Line:
        """A new line behind all others; where there is no room, the oldest kept one ends."""
        while self.full():
            self._drop(self._oldest())
        line = Line((), 0, len(self._lines), self._now())
        self._lines.append(line)
        self._sorted.insert(0, line)
        self._make_room()
        return line

    def _drop(self, line: Line) -> None:
        self._sorted.remove(line)
        last = self._lines[-1]
        line.known = 0  # what it holds need not be moved
        self._swap(line, last)
        self._lines.pop()

    def _rename(self, line: Line, token_ids: tuple[int, ...]) -> None:
        self._sorted.remove(line)
        line.token_ids = token_ids
        self._sorted.insert(bisect_left(self._sorted, token_ids, key=_ids), line)

    def _swap(self, one: Line, other: Line) -> None:
        """Let two lines change places."""
        if one is other:
            return
        for store in self._layers:
            first = store[:, one.place, :, : one.known].clone()
            store[:, one.place, :, : other.known] = store[:, other.place, :, : other.known]
            store[:, other.place, :, : one.known] = first
        one.place, other.place = other.place, one.place
        self._lines[one.place], self._lines[other.place] = one, other

    def _oldest(self) -> Line:
        return min(self._lines[self.active :], key=attrgetter("used"))

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _most_lines(self, span: int) -> int:
        """Lines of so many positions that fit."""
        bytes_each = sum(store[:, 0, :, 0].nbytes for store in self._layers) * span
        return max(self._rows, self._most_bytes // max(1, bytes_each))

    def full(self) -> bool:
        """Whether the next line that is opened ends a kept one."""
        return bool(self._layers) and len(self._lines) >= self._most_lines(self._layers[0].shape[3])

    def _layer(self, number: int, like: Tensor) -> Tensor:
        """The store of a layer, with room for all lines and the span; `like` is (_, H, _, D)."""
        if number < len(self._layers):
            self._make_room()
        else:
            span = -(-self._span // GROWTH) * GROWTH
            lines = max(len(self._lines), min(self.expected, self._rows))
            shape = (2, lines, like.shape[1], span, like.shape[3])
            self._layers.append(like.new_zeros(shape))
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return self._layers[number]

    def _make_room(self) -> None:
        """Let every layer hold all lines and the span; kept lines end where that is too much."""
        if not self._layers:
            return
        lines, span = self._layers[0].shape[1], self._layers[0].shape[3]
        if lines >= len(self._lines) and span >= self._span:
            return
        span = max(span, -(-self._span // GROWTH) * GROWTH)
        most = self._most_lines(span)
        while len(self._lines) > max(most, self.active):
            self._drop(self._oldest())
        needed = max(len(self._lines), min(self.expected, most))
        lines = max(needed, min(most, lines if lines >= needed else 2 * lines))
        for number, old in enumerate(self._layers):
            new = old.new_zeros((2, lines, old.shape[2], span, old.shape[4]))
            both = min(lines, old.shape[1])
            new[:, :both, :, : old.shape[3]] = old[:, :both]
            self._layers[number] = new
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Leading tokens that two sequences share, by halving: comparing slices is fast."""
    same, most = 0, min(len(one), len(other))
    while same < most:
        middle = (same + most + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same
