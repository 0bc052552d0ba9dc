"""A sampler's forward pass: the unread tokens of all its rows, each after what its line holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from learners.errors import UsageError
from learners.policy import (
    ROW_COST,
    Recorder,
    Rectangle,
    Step,
    forward_tree,
    packed,
    takes_trees,
    unused_mask,
    windows,
)
from learners.sampling.kv_cache import Lines

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rectangles(lengths: Sequence[int], first: int = 0) -> Iterator[slice]:
    """Neighbours that fill at least half of a rectangle as wide as the longest of them.

    Args:
        lengths: of rows that stand one after the other, at least 1.
        first: index of the first.

    Yields:
        Which rows, from `first` on; each is in one slice.
    """
    begin = widest = filled = 0
    for index, length in enumerate(lengths):
        widest, filled = max(widest, length), filled + length
        if widest * (index + 1 - begin) > 2 * filled:
            yield slice(first + begin, first + index)
            begin, widest, filled = index, length, length
    if lengths:
        yield slice(first + begin, first + len(lengths))


class LineReader:
    """Reads rows into the lines of a store. Mutates those lines only."""

    def __init__(self, model: PreTrainedModel, lines: Lines) -> None:
        """Read with `model`.

        Raises:
            UsageError: a layer keeps something else than keys and values of every position.
        """
        self._model, self._lines = model, lines
        self._mixes = takes_trees(model)
        self._windows = windows(model)
        others = sorted(kind for kind, width in self._windows.items() if width == 0)
        if others:
            raise UsageError(
                f"--sampler transformers cannot go back in layers of {', '.join(others)}, as "
                "branches and turns do; give --sampler vllm"
            )

    def last_states(
        self, unread: Sequence[Sequence[int]], known: Sequence[int], before: int
    ) -> Tensor:
        """(R, D) states of the last token of each row.

        Rows under way and rows that join stand in one pass without padding, so that weights are
        read once; where the model's attention is not ours, in several, the joining ones padded.

        Args:
            unread: of R rows, the active lines in their order.
            known: tokens that their lines hold.
            before: the first rows, which have one unread token each; the others join.
        """
        if self._mixes:
            return self._mixed(unread, torch.tensor(known), before)
        joining = rectangles([len(row) for row in unread[before:]], before)
        parts = [slice(0, before), *joining]
        return torch.cat(
            [self._padded(unread[p], torch.tensor(known[p]), p) for p in parts if unread[p]]
        )

    def _mixed(self, unread: Sequence[Sequence[int]], known: Tensor, before: int) -> Tensor:
        counts = torch.tensor([len(row) for row in unread])
        starts = counts.cumsum(0) - counts
        lines = torch.arange(len(unread)).repeat_interleave(counts)  # (U,)
        positions = known[lines] + torch.arange(len(lines)) - starts[lines]
        step = Step(
            before,
            self._mask(known[:before, None]),
            tuple(
                self._rectangle(rows, starts[rows], counts[rows], known[rows])
                for rows in rectangles(counts[before:].tolist(), before)
            ),
        )
        span = max(m.shape[-1] for m in (step.single_mask, *(part.mask for part in step.others)))
        ids = torch.tensor([token for row in unread for token in row])
        everywhere = slice(0, len(unread))
        hidden = self._forward(ids[None], lines[None], positions[None], everywhere, span, step)
        last: Tensor = hidden[0, starts + counts - 1]
        return last

    def _rectangle(self, rows: slice, starts: Tensor, counts: Tensor, known: Tensor) -> Rectangle:
        """How the attention sees these rows, which join; all but `rows` is (J,)."""
        steps = torch.arange(int(counts.max()))
        filled = steps < counts[:, None]  # (J, Q)
        places = (starts[:, None] + steps) * filled
        device = self._model.device
        mask = self._mask(known[:, None] + steps)
        return Rectangle(rows, places.to(device), mask, filled.to(device))

    def _padded(self, unread: Sequence[Sequence[int]], known: Tensor, rows: slice) -> Tensor:
        width = max(map(len, unread))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in unread])
        positions = known[:, None] + torch.arange(width)  # (R, Q)
        lines = torch.arange(rows.start, rows.stop)[:, None].expand(-1, width)
        hidden = self._forward(ids, lines, positions, rows, int(known.max()) + width, None)
        last: Tensor = hidden[torch.arange(len(unread)), torch.tensor([len(r) - 1 for r in unread])]
        return last

    def _mask(self, positions: Tensor, window: int | None = None) -> Tensor:
        """(R, 1, Q, T) 0 for what tokens at (R, Q) positions look at, -inf for all else."""
        span = int(positions.max()) + 1 if positions.numel() else 0
        places = torch.arange(span)
        unseen = places > positions[:, :, None]
        if window is not None:
            unseen |= places <= positions[:, :, None] - window
        mask = torch.zeros(unseen.shape, dtype=self._model.dtype).masked_fill_(unseen, -torch.inf)
        return mask[:, None].to(self._model.device)

    def _forward(
        self,
        ids: Tensor,
        lines: Tensor,
        positions: Tensor,
        rows: slice,
        span: int,
        step: Step | None,
    ) -> Tensor:
        """(B, T, D) last states of (B, T) tokens; see `Lines.expect`."""
        device = self._model.device
        self._lines.expect(rows, span, lines.to(device), positions.to(device))
        options: dict[str, Tensor | Step | dict[str, Tensor]] = {}
        if step is None:
            masks = {kind: self._mask(positions, width) for kind, width in self._windows.items()}
            options["attention_mask"] = masks if len(masks) > 1 else next(iter(masks.values()))
        else:
            options["attention_mask"] = unused_mask(positions).to(device)
            options["step"] = step
        hidden: Tensor = self._model.base_model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            past_key_values=self._lines,
            use_cache=True,
            **options,
        ).last_hidden_state
        return hidden


class Read(NamedTuple):
    """Keys and values of prefixes that were read together."""

    tokens: int
    """That were computed."""
    kept: list[Iterator[tuple[Tensor, Tensor]]]
    """Per prefix and layer (H, length, D) keys and values."""


def read_together(model: PreTrainedModel, prefixes: Sequence[tuple[int, ...]]) -> Read | None:
    """Read prefixes in one forward pass, shared tokens once; None where that is no less work.

    Args:
        model: in inference.
        prefixes: none empty.
    """
    if len(prefixes) < 2 or not takes_trees(model):
        return None
    tree = packed(prefixes)
    apart = sum(map(len, prefixes))
    if len(tree.token_ids) + ROW_COST * len(tree.layout.spans) >= apart:
        return None
    tree, recorder = tree.to(model.device), Recorder()
    forward_tree(model, tree, recorder)
    paths = [p[: len(prefix)] for p, prefix in zip(tree.places, prefixes, strict=True)]
    return Read(len(tree.token_ids), [recorder.along(path) for path in paths])
