"""The sampler's store: what a line holds is what was read into it, whatever moved meanwhile."""

import random

import pytest
import torch

from learners.sampling.kv_cache import GROWTH, Lines

LAYERS = 2


def value(layer, token, position):
    """What a layer's key is at a token: no two places are alike."""
    return float(token * 10_000 + position * 10 + layer)


class Writer:
    """Reads tokens into active lines as a model's forward pass does; knows what they must hold."""

    def __init__(self, rows, most_bytes):
        self.lines = Lines(rows, most_bytes)
        self.sampled = {}
        """Active line -> all of its tokens, read or not."""

    def read(self, group):
        """Forward pass over the unread tokens of the lines at these places, padded on the right."""
        lines = self.lines
        rows = slice(group[0].place, group[-1].place + 1)
        unread = [self.sampled[line][line.known :] for line in group]
        width = max(map(len, unread))
        known = torch.tensor([line.known for line in group])
        span = int(known.max()) + width
        at = torch.arange(rows.start, rows.stop)[:, None].expand(-1, width)
        lines.expect(rows, span, at, known[:, None] + torch.arange(width))
        for layer in range(LAYERS):
            keys = torch.full((len(group), 1, width, 1), -1.0)
            for row, (line, ids) in enumerate(zip(group, unread, strict=True)):
                for at, token in enumerate(ids):
                    keys[row, 0, at, 0] = value(layer, token, line.known + at)
            seen, _ = lines.update(keys, -keys, layer)
            assert seen.shape == (len(group), 1, span, 1)
        for line, ids in zip(group, unread, strict=True):
            line.known += len(ids)

    def kept(self, token_ids):
        """Of each layer, what somebody else read."""
        for layer in range(LAYERS):
            keys = [value(layer, token, at) for at, token in enumerate(token_ids)]
            yield torch.tensor(keys)[None, :, None], -torch.tensor(keys)[None, :, None]

    def check(self):
        """Every line holds its own tokens, also past what others may share."""
        lines = self.lines
        assert [line.place for line in lines._lines] == list(range(len(lines._lines)))
        assert sorted(lines._sorted, key=id) == sorted(lines._lines, key=id)
        assert [line.token_ids for line in lines._sorted] == sorted(
            line.token_ids for line in lines._lines
        )
        for line in lines._lines:
            ids = self.sampled.get(line, line.token_ids)
            for layer, store in enumerate(lines._layers):
                expected = [value(layer, ids[at], at) for at in range(line.known)]
                assert store[0, line.place, 0, : line.known, 0].tolist() == expected
                assert store[1, line.place, 0, : line.known, 0].tolist() == [-e for e in expected]


def grown(draw, known):
    """A sequence that begins like one of those, or anew."""
    begin = draw.choice([(), *known]) if known else ()
    begin = begin[: draw.randrange(len(begin) + 1)] if draw.random() < 0.5 else begin
    return (*begin, *(draw.randrange(3) for _ in range(draw.randrange(1, 5))))


@pytest.mark.parametrize("seed", range(40))
def test_lines_hold_what_was_read_into_them(seed):
    """Random turns: begun, gone on with, branched, kept from outside, ended, all forgotten.

    The least store has room for a few kept lines, the largest for all.
    """
    draw = random.Random(seed)
    rows = draw.randrange(1, 5)
    most = draw.choice([1, 8, 1000]) * 2 * LAYERS * GROWTH * 4
    writer = Writer(rows, most)
    lines, known = writer.lines, []
    for _ in range(120):
        act = draw.choice(["take", "take", "read", "read", "release", "keep", "forget"])
        active = lines._lines[: lines.active]
        if act == "take" and len(active) < rows:
            ids = grown(draw, known)
            shared = lines.longest(ids)[0]
            every = [_shared(line.token_ids, ids) for line in lines._lines]
            assert shared == (max(every, default=0) if lines._layers else 0)
            line = lines.take(ids)
            assert line.place == lines.active - 1
            assert line.known == min(shared, len(ids) - 1)
            writer.sampled[line] = ids
            writer.read([line])
            lines.share(line, ids)
        elif act == "read" and active:
            for line in active:
                writer.sampled[line] += (draw.randrange(3),)
            writer.read(active)
        elif act == "release" and active:
            line = draw.choice(active)
            ids = writer.sampled.pop(line)
            known.append(ids)
            lines.release(line, (*ids, 1))  # the last token was drawn, not read
            assert line.token_ids == ids
        elif act == "keep":
            ids = grown(draw, known)
            lines.keep(ids, writer.kept(ids))
            known.append(ids)
        elif act == "forget" and draw.random() < 0.1 and not active:
            lines.forget()
        writer.check()
        positions = lines._layers[0].shape[3] if lines._layers else 0
        assert lines.held_bytes <= max(most, rows * LAYERS * 2 * positions * 4)


def _shared(one, other):
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def turn(writer, ids):
    """A sequence that was sampled and kept."""
    line = writer.lines.take(ids)
    writer.sampled[line] = ids
    writer.read([line])
    writer.lines.release(line, writer.sampled.pop(line))
    return line


def test_a_turn_that_goes_on_stays_in_its_line():
    writer = Writer(4, 1 << 30)
    first = turn(writer, (1, 2, 3))
    assert writer.lines.take((1, 2, 3, 4, 5)) is first
    assert first.known == 3


def test_a_branch_leaves_its_parents_line_as_it_is():
    writer = Writer(4, 1 << 30)
    parent = turn(writer, (1, 2, 3, 4))
    branch = writer.lines.take((1, 2, 9))
    assert branch is not parent
    assert (branch.known, parent.known) == (2, 4)
    assert writer.lines.longest((1, 2, 3, 4, 5)) == (4, parent)


def test_two_that_go_on_from_one_line_share_it():
    """The first goes on in it, the second takes a copy; the copy ends where the line did."""
    writer = Writer(4, 1 << 30)
    parent = turn(writer, (1, 2, 3))
    one = writer.lines.take((1, 2, 3, 4))
    other = writer.lines.take((1, 2, 3, 5))
    assert one is parent
    assert (other is parent, other.known) == (False, 3)


def test_what_was_used_longest_ago_makes_room():
    """Room for three: of 1, 2, 3 the 1 is used again, so 2 ends when 4 comes."""
    writer = Writer(1, 3 * 2 * LAYERS * GROWTH * 4)
    for ids in ((1, 1), (2, 2), (3, 3)):
        turn(writer, ids)
    turn(writer, (1, 1, 7))
    turn(writer, (4, 4))
    lines = writer.lines
    assert [lines.longest(ids)[0] for ids in ((1, 1), (2, 2), (3, 3), (4, 4))] == [2, 0, 2, 2]


def test_lines_that_nobody_brought_to_an_end_are_dropped():
    writer = Writer(4, 1 << 30)
    turn(writer, (1, 2, 3))
    line = writer.lines.take((4, 5))
    writer.sampled[line] = (4, 5)
    writer.read([line])
    writer.lines.abandon()
    assert writer.lines.active == 0
    assert writer.lines.longest((4, 5)) == (0, None)
    assert writer.lines.longest((1, 2, 3))[0] == 3
