"""KV cache of a sampler: a slot per sequence; finished sequences stay until their room is needed.

The next turn of a sequence continues in its slot, a branch starts from a copy of its parent's slot
up to the branch point, and nothing is computed twice. Active slots, whose sequences are being
sampled, come first and without gaps, so that a forward pass reads one slice of the cache. Idle
slots follow, and the least recently used of them is evicted when room is needed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from learners.policy import common_prefix_length

GROWTH = 128
"""Positions by which all slots grow when one is full."""


SMALL_BYTES = 1 << 28
"""A cache of at most this size stays allocated when it is cleared."""


_token_ids = attrgetter("token_ids")


@dataclass(eq=False)
class Slot:
    """The keys and values of a sequence. Mutated by `KVCache` and by the sampler."""

    token_ids: tuple[int, ...]
    """The prefix that other sequences may copy."""
    length: int
    """Number of filled positions: more than `token_ids` has while the sequence is sampled."""
    index: int
    """Position in the cache; changes when slots are swapped."""
    last_used: int = 0
    """The cache's clock at the last use."""


class PrefixMatch(NamedTuple):
    """The longest prefix of a sequence that a slot holds."""

    length: int
    slot: Slot | None
    """None if the length is 0."""


class KVCache:
    """Keys and values of many sequences; transformers takes it for a `Cache`.

    Mutated by every forward pass; call `expect` before each. Positions beyond a slot's length hold
    leftovers, and masks hide them.
    """

    is_compileable = False

    def __init__(self, rows: int, max_bytes: int = 2_000_000_000) -> None:
        """Cache `rows` sequences being sampled, and finished ones up to `max_bytes` in all."""
        self.active = 0
        """The number of active slots, which are the first ones."""
        self.expected = 0
        """The number of sequences about to be active; room for all of them is made at once."""
        self.peak_bytes = 0
        """The largest size so far."""
        self._rows, self._max_bytes = rows, max_bytes
        # The next forward pass: slots and number of positions that it attends to, and the slot and
        # position of each of its tokens.
        self._attended = slice(0, 0)
        self._span = 0
        self._targets = (torch.zeros(0), torch.zeros(0))
        # Invariant: both lists hold the same slots. The first is in the order of the tensors,
        # _slots[i].index == i; the second is sorted by token ids.
        self._slots: list[Slot] = []
        self._sorted: list[Slot] = []
        self._layers: list[Tensor] = []
        """For each layer, (2, slots, H, positions, D) keys and values."""
        self._clock = 0

    def expect(self, attended: slice, span: int, indices: Tensor, positions: Tensor) -> None:
        """Announce the next forward pass.

        Args:
            attended: slots that it attends to.
            span: number of positions that it attends to.
            indices: (B, T) slot of each of its tokens.
            positions: (B, T) position of each token in its slot.
        """
        self._attended, self._span, self._targets = attended, span, (indices, positions)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values; return the (slots, H, span, D) attended ones."""
        store = self._layer(layer_idx, keys)
        indices, positions = self._targets
        # Not scatter_: for bfloat16 on a CPU it copies the whole cache to float32 and back.
        for half, new in zip(store, (keys, values), strict=True):
            half[indices, :, positions] = new.transpose(1, 2)
        attended = store[:, self._attended, :, : self._span]
        return attended[0], attended[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: transformers would derive positions from it, but every pass is given its own."""
        return 0

    def longest_prefix(self, token_ids: tuple[int, ...]) -> PrefixMatch:
        """Find the slot that shares the longest prefix with a sequence."""
        match = PrefixMatch(0, None)
        # In sorted order the longest prefix is shared with a neighbour.
        at = bisect_right(self._sorted, token_ids, key=_token_ids)
        for slot in self._sorted[max(0, at - 1) : at + 1] if self._layers else ():
            shared = common_prefix_length(slot.token_ids, token_ids)
            if shared > match.length:
                match = PrefixMatch(shared, slot)
        return match

    def continued_index(self, token_ids: tuple[int, ...]) -> int:
        """Index of the slot whose sequence these tokens continue; beyond all if there is none."""
        match = self.longest_prefix(token_ids)
        if match.slot is None or match.length < len(match.slot.token_ids):
            return len(self._slots)
        return match.slot.index

    def allocate(self, token_ids: tuple[int, ...]) -> Slot:
        """Make an active slot, the last one, for a sequence that starts with these tokens.

        Its prefix is filled as far as the cache knows it, the last token excepted: reading that one
        yields the distribution of the next.
        """
        shared, source = self.longest_prefix(token_ids)
        length = min(shared, len(token_ids) - 1)
        slot = None
        if source is not None and source.index >= self.active:
            # Before `_new_slot`, which may evict the least recently used slot: the source must
            # outlive the copy. If it is the only one to evict, the sequence takes it over.
            source.last_used = self._tick()
            if shared == len(source.token_ids) or (
                self.is_full() and source is self._least_recently_used()
            ):
                slot = source
        if slot is None:
            slot = self._new_slot()
        self._set_token_ids(slot, token_ids[:length])
        self._swap(slot, self._slots[self.active])
        self.active += 1
        if source is not None and slot is not source:
            for store in self._layers:
                store[:, slot.index, :, :length] = store[:, source.index, :, :length]
        slot.length = length
        return slot

    def fill(self, slot: Slot, layers: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Write the first positions of a slot, computed in a pass without this cache.

        Args:
            slot: of this cache.
            layers: for each layer, (H, length, D) keys and values.
            length: number of positions.
        """
        slot.length = length
        self._span = max(self._span, length)
        for number, (keys, values) in enumerate(layers):
            store = self._layer(number, keys[None])
            store[0, slot.index, :, :length] = keys
            store[1, slot.index, :, :length] = values

    def keep(self, token_ids: tuple[int, ...], layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Cache a sequence that was read in a pass without this cache, if there is room.

        Args:
            token_ids: (T,)
            layers: for each layer, (H, T, D) keys and values.
        """
        has_room = not self.is_full() or len(self._slots) > self.active  # an idle one can go
        # A sequence sampled with these weights is already cached, but for its last token.
        if not has_room or self.longest_prefix(token_ids).length >= len(token_ids) - 1:
            return
        slot = self._new_slot()
        self._set_token_ids(slot, token_ids)
        self.fill(slot, layers, len(token_ids))

    def share(self, slot: Slot, token_ids: tuple[int, ...]) -> None:
        """Let other sequences copy what an active slot has read so far."""
        self._set_token_ids(slot, token_ids[: slot.length])

    def release(self, slot: Slot, token_ids: tuple[int, ...]) -> None:
        """Make an active slot idle; the last active one takes its index."""
        self.share(slot, token_ids)
        slot.last_used = self._tick()
        self.active -= 1
        self._swap(slot, self._slots[self.active])

    def drop_active(self) -> None:
        """Drop the slots of sequences that were not sampled to their end."""
        while self.active:
            self.active -= 1
            self._drop(self._slots[self.active])

    def clear(self) -> None:
        """Drop all slots, because the weights have changed."""
        self.active = self._span = 0
        self._slots.clear()
        self._sorted.clear()
        if self.nbytes > SMALL_BYTES:
            self._layers.clear()

    @property
    def nbytes(self) -> int:
        """Size of all keys and values, unused room included."""
        return sum(store.nbytes for store in self._layers)

    def is_full(self) -> bool:
        """True if a new slot takes the place of an idle one."""
        if not self._layers:  # the size of a slot is not known before the first pass
            return False
        return len(self._slots) >= self._max_slots(self._layers[0].shape[3])

    def _new_slot(self) -> Slot:
        """Append an empty slot; evict the least recently used idle one if the cache is full."""
        while self.is_full():
            self._drop(self._least_recently_used())
        slot = Slot((), 0, len(self._slots), self._tick())
        self._slots.append(slot)
        self._sorted.insert(0, slot)  # no token ids sort before any
        self._make_room()
        return slot

    def _drop(self, slot: Slot) -> None:
        self._sorted.remove(slot)
        slot.length = 0  # the swap need not copy its content
        self._swap(slot, self._slots[-1])
        self._slots.pop()

    def _set_token_ids(self, slot: Slot, token_ids: tuple[int, ...]) -> None:
        self._sorted.remove(slot)
        slot.token_ids = token_ids
        self._sorted.insert(bisect_left(self._sorted, token_ids, key=_token_ids), slot)

    def _swap(self, one: Slot, other: Slot) -> None:
        """Exchange two slots' indices and contents."""
        if one is other:
            return
        for store in self._layers:
            first = store[:, one.index, :, : one.length].clone()
            store[:, one.index, :, : other.length] = store[:, other.index, :, : other.length]
            store[:, other.index, :, : one.length] = first
        one.index, other.index = other.index, one.index
        self._slots[one.index], self._slots[other.index] = one, other

    def _least_recently_used(self) -> Slot:
        """Return an idle slot; active ones are never evicted."""
        return min(self._slots[self.active :], key=attrgetter("last_used"))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _max_slots(self, span: int) -> int:
        """Number of slots of `span` positions that fit; enough for all active ones in any case."""
        bytes_each = sum(store[:, 0, :, 0].nbytes for store in self._layers) * span
        return max(self._rows, self._max_bytes // max(1, bytes_each))

    def _layer(self, number: int, like: Tensor) -> Tensor:
        """Return a layer's store, with room for all slots and the span; `like` is (_, H, _, D)."""
        if number < len(self._layers):
            self._make_room()
        else:
            span = -(-self._span // GROWTH) * GROWTH
            slots = max(len(self._slots), min(self.expected, self._rows))
            # Zeros, also in `_make_room`: a mask hides leftovers, but not a NaN among them.
            self._layers.append(like.new_zeros((2, slots, like.shape[1], span, like.shape[3])))
            self.peak_bytes = max(self.peak_bytes, self.nbytes)
        return self._layers[number]

    def _make_room(self) -> None:
        """Grow all layers to hold all slots and the span; evict idle slots if they are too many."""
        if not self._layers:
            return
        slots, span = self._layers[0].shape[1], self._layers[0].shape[3]
        if slots >= len(self._slots) and span >= self._span:
            return
        span = max(span, -(-self._span // GROWTH) * GROWTH)
        limit = self._max_slots(span)  # longer slots: fewer of them fit
        while len(self._slots) > max(limit, self.active):
            self._drop(self._least_recently_used())
        needed = max(len(self._slots), min(self.expected, limit))
        # Doubled when they run out, so that copying stays cheap as slots are added one by one.
        slots = max(needed, min(limit, slots if slots >= needed else 2 * slots))
        for number, old in enumerate(self._layers):
            new = old.new_zeros((2, slots, old.shape[2], span, old.shape[4]))
            both = min(slots, old.shape[1])
            new[:, :both, :, : old.shape[3]] = old[:, :both]
            self._layers[number] = new
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
