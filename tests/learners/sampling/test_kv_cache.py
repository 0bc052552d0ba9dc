"""The KV cache: a slot holds what was read into it, whatever moved in between."""

import random

import pytest
import torch

from learners.sampling.kv_cache import GROWTH, KVCache

LAYERS = 2


def value(layer, token, position):
    """A layer's key at a token; no two are alike."""
    return float(token * 10_000 + position * 10 + layer)


class Writer:
    """Reads tokens into active slots as a model's forward pass does; knows what they must hold."""

    def __init__(self, rows, max_bytes):
        self.cache = KVCache(rows, max_bytes)
        self.sampled = {}
        """Active slot -> all of its tokens, read or not."""

    def read(self, group):
        """Run a forward pass over the unread tokens of these slots, padded on the right."""
        cache = self.cache
        rows = slice(group[0].index, group[-1].index + 1)
        unread = [self.sampled[slot][slot.length :] for slot in group]
        width = max(map(len, unread))
        known = torch.tensor([slot.length for slot in group])
        span = int(known.max()) + width
        at = torch.arange(rows.start, rows.stop)[:, None].expand(-1, width)
        cache.expect(rows, span, at, known[:, None] + torch.arange(width))
        for layer in range(LAYERS):
            keys = torch.full((len(group), 1, width, 1), -1.0)
            for row, (slot, ids) in enumerate(zip(group, unread, strict=True)):
                for at, token in enumerate(ids):
                    keys[row, 0, at, 0] = value(layer, token, slot.length + at)
            seen, _ = cache.update(keys, -keys, layer)
            assert seen.shape == (len(group), 1, span, 1)
        for slot, ids in zip(group, unread, strict=True):
            slot.length += len(ids)

    def layers(self, token_ids):
        """Keys and values of each layer, as another pass would have read them."""
        for layer in range(LAYERS):
            keys = [value(layer, token, at) for at, token in enumerate(token_ids)]
            yield torch.tensor(keys)[None, :, None], -torch.tensor(keys)[None, :, None]

    def check(self):
        """Check that every slot holds its own tokens, also past what others may copy."""
        cache = self.cache
        assert [slot.index for slot in cache._slots] == list(range(len(cache._slots)))
        assert sorted(cache._sorted, key=id) == sorted(cache._slots, key=id)
        assert [slot.token_ids for slot in cache._sorted] == sorted(
            slot.token_ids for slot in cache._slots
        )
        for slot in cache._slots:
            ids = self.sampled.get(slot, slot.token_ids)
            for layer, store in enumerate(cache._layers):
                expected = [value(layer, ids[at], at) for at in range(slot.length)]
                assert store[0, slot.index, 0, : slot.length, 0].tolist() == expected
                assert store[1, slot.index, 0, : slot.length, 0].tolist() == [-e for e in expected]


def grown(draw, known):
    """Make a sequence that shares a prefix with one of those, or starts anew."""
    begin = draw.choice([(), *known]) if known else ()
    begin = begin[: draw.randrange(len(begin) + 1)] if draw.random() < 0.5 else begin
    return (*begin, *(draw.randrange(3) for _ in range(draw.randrange(1, 5))))


@pytest.mark.parametrize("seed", range(40))
def test_slots_hold_what_was_read_into_them(seed):
    """Random turns start, continue, branch and end; prefixes are kept, and the cache is cleared.

    The smallest cache has room for a few kept slots, the largest for all.
    """
    draw = random.Random(seed)
    rows = draw.randrange(1, 5)
    max_bytes = draw.choice([1, 8, 1000]) * 2 * LAYERS * GROWTH * 4
    writer = Writer(rows, max_bytes)
    cache, known = writer.cache, []
    for _ in range(120):
        act = draw.choice(["allocate", "allocate", "read", "read", "release", "keep", "clear"])
        active = cache._slots[: cache.active]
        if act == "allocate" and len(active) < rows:
            ids = grown(draw, known)
            shared = cache.longest_prefix(ids)[0]
            every = [_shared(slot.token_ids, ids) for slot in cache._slots]
            assert shared == (max(every, default=0) if cache._layers else 0)
            slot = cache.allocate(ids)
            assert slot.index == cache.active - 1
            assert slot.length == min(shared, len(ids) - 1)
            writer.sampled[slot] = ids
            writer.read([slot])
            cache.share(slot, ids)
        elif act == "read" and active:
            for slot in active:
                writer.sampled[slot] += (draw.randrange(3),)
            writer.read(active)
        elif act == "release" and active:
            slot = draw.choice(active)
            ids = writer.sampled.pop(slot)
            known.append(ids)
            cache.release(slot, (*ids, 1))  # the last token was drawn, not read
            assert slot.token_ids == ids
        elif act == "keep":
            ids = grown(draw, known)
            cache.keep(ids, writer.layers(ids))
            known.append(ids)
        elif act == "clear" and draw.random() < 0.1 and not active:
            cache.clear()
        writer.check()
        positions = cache._layers[0].shape[3] if cache._layers else 0
        assert cache.nbytes <= max(max_bytes, rows * LAYERS * 2 * positions * 4)


def _shared(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def turn(writer, ids):
    """Sample a sequence and keep it."""
    slot = writer.cache.allocate(ids)
    writer.sampled[slot] = ids
    writer.read([slot])
    writer.cache.release(slot, writer.sampled.pop(slot))
    return slot


def test_a_turn_that_goes_on_stays_in_its_slot():
    writer = Writer(4, 1 << 30)
    first = turn(writer, (1, 2, 3))
    assert writer.cache.allocate((1, 2, 3, 4, 5)) is first
    assert first.length == 3


def test_a_branch_leaves_its_parents_slot_as_it_is():
    writer = Writer(4, 1 << 30)
    parent = turn(writer, (1, 2, 3, 4))
    branch = writer.cache.allocate((1, 2, 9))
    assert branch is not parent
    assert (branch.length, parent.length) == (2, 4)
    assert writer.cache.longest_prefix((1, 2, 3, 4, 5)) == (4, parent)


def test_two_that_go_on_from_one_slot_share_it():
    """The first continues in its slot, the second takes a copy up to where the first began."""
    writer = Writer(4, 1 << 30)
    parent = turn(writer, (1, 2, 3))
    one = writer.cache.allocate((1, 2, 3, 4))
    other = writer.cache.allocate((1, 2, 3, 5))
    assert one is parent
    assert (other is parent, other.length) == (False, 3)


def test_what_was_used_longest_ago_makes_room():
    """Room for three: of 1, 2, 3 the 1 is used again, so 2 is evicted when 4 comes."""
    writer = Writer(1, 3 * 2 * LAYERS * GROWTH * 4)
    for ids in ((1, 1), (2, 2), (3, 3)):
        turn(writer, ids)
    turn(writer, (1, 1, 7))
    turn(writer, (4, 4))
    cache = writer.cache
    assert [cache.longest_prefix(ids)[0] for ids in ((1, 1), (2, 2), (3, 3), (4, 4))] == [
        2,
        0,
        2,
        2,
    ]


def test_slots_of_unfinished_sequences_are_dropped():
    writer = Writer(4, 1 << 30)
    turn(writer, (1, 2, 3))
    slot = writer.cache.allocate((4, 5))
    writer.sampled[slot] = (4, 5)
    writer.read([slot])
    writer.cache.drop_active()
    assert writer.cache.active == 0
    assert writer.cache.longest_prefix((4, 5)) == (0, None)
    assert writer.cache.longest_prefix((1, 2, 3))[0] == 3
