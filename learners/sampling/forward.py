"""Forward passes of the built-in sampler: unread tokens of all sequences, and shared prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from learners.errors import UsageError
from learners.policy import (
    ROW_COST,
    KVRecorder,
    RaggedLayout,
    Rectangle,
    attention_windows,
    forward_tree,
    pack_tree,
    supports_trees,
    unused_mask,
)
from learners.sampling.kv_cache import KVCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelRunner:
    """Runs a model on the unread tokens of sequences in a KV cache. Mutates the cache only."""

    def __init__(self, model: PreTrainedModel, cache: KVCache) -> None:
        """Read with `model`.

        Raises:
            UsageError: a layer's state is something other than keys and values of all positions.
        """
        self._model, self._cache = model, cache
        self._supports_ragged = supports_trees(model)
        self._windows = attention_windows(model)
        kinds = sorted(kind for kind, width in self._windows.items() if width == 0)
        if kinds:
            raise UsageError(
                f"--sampler transformers cannot go back in layers of {', '.join(kinds)}, as "
                "branches and turns do; give --sampler vllm"
            )

    def forward(
        self, unread: Sequence[Sequence[int]], lengths: Sequence[int], decodes: int
    ) -> Tensor:
        """Read tokens; return the (R, D) last hidden states of each sequence's last token.

        Sequences under way and joining ones share one ragged pass, so that weights are read once.
        With another attention than ours it takes several passes, padded for joining sequences.

        Args:
            unread: tokens of R sequences, which are the active slots in order.
            lengths: number of positions that their slots have filled.
            decodes: the number of sequences under way. They come first, with one unread token each;
                the others join.
        """
        if self._supports_ragged:
            return self._forward_ragged(unread, torch.tensor(lengths), decodes)
        joining = split_rectangles([len(row) for row in unread[decodes:]], decodes)
        parts = [slice(0, decodes), *joining]
        return torch.cat(
            [
                self._forward_padded(unread[p], torch.tensor(lengths[p]), p)
                for p in parts
                if unread[p]
            ]
        )

    def _forward_ragged(
        self, unread: Sequence[Sequence[int]], lengths: Tensor, decodes: int
    ) -> Tensor:
        counts = torch.tensor([len(row) for row in unread])
        starts = counts.cumsum(0) - counts
        slots = torch.arange(len(unread)).repeat_interleave(counts)  # (U,)
        positions = lengths[slots] + torch.arange(len(slots)) - starts[slots]
        layout = RaggedLayout(
            decodes,
            self._mask(lengths[:decodes, None]),
            tuple(
                self._rectangle(rows, starts[rows], counts[rows], lengths[rows])
                for rows in split_rectangles(counts[decodes:].tolist(), decodes)
            ),
        )
        masks = [layout.decode_mask, *(part.mask for part in layout.prefills)]
        span = max(mask.shape[-1] for mask in masks)
        ids = torch.tensor([token for row in unread for token in row])
        every = slice(0, len(unread))
        hidden = self._call_model(ids[None], slots[None], positions[None], every, span, layout)
        last: Tensor = hidden[0, starts + counts - 1]
        return last

    def _rectangle(self, rows: slice, starts: Tensor, counts: Tensor, lengths: Tensor) -> Rectangle:
        """Lay out joining rows for the attention; all tensors are (J,)."""
        offsets = torch.arange(int(counts.max()))
        filled = offsets < counts[:, None]  # (J, Q)
        indices = (starts[:, None] + offsets) * filled
        device = self._model.device
        mask = self._mask(lengths[:, None] + offsets)
        return Rectangle(rows, indices.to(device), mask, filled.to(device))

    def _forward_padded(
        self, unread: Sequence[Sequence[int]], lengths: Tensor, rows: slice
    ) -> Tensor:
        width = max(map(len, unread))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in unread])
        positions = lengths[:, None] + torch.arange(width)  # (R, Q)
        slots = torch.arange(rows.start, rows.stop)[:, None].expand(-1, width)
        span = int(lengths.max()) + width
        hidden = self._call_model(ids, slots, positions, rows, span, None)
        last: Tensor = hidden[torch.arange(len(unread)), torch.tensor([len(r) - 1 for r in unread])]
        return last

    def _mask(self, positions: Tensor, window: int | None = None) -> Tensor:
        """(R, 1, Q, T) 0 where tokens at (R, Q) positions attend, -inf elsewhere."""
        span = int(positions.max()) + 1 if positions.numel() else 0
        keys = torch.arange(span)
        hidden = keys > positions[:, :, None]
        if window is not None:
            hidden |= keys <= positions[:, :, None] - window
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype).masked_fill_(hidden, -torch.inf)
        return mask[:, None].to(self._model.device)

    def _call_model(
        self,
        ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        attended: slice,
        span: int,
        layout: RaggedLayout | None,
    ) -> Tensor:
        """(B, T, D) last hidden states of (B, T) tokens; arguments as in `KVCache.expect`."""
        device = self._model.device
        self._cache.expect(attended, span, slots.to(device), positions.to(device))
        options: dict[str, Tensor | RaggedLayout | dict[str, Tensor]] = {}
        if layout is None:
            masks = {kind: self._mask(positions, width) for kind, width in self._windows.items()}
            options["attention_mask"] = masks if len(masks) > 1 else next(iter(masks.values()))
        else:
            options["attention_mask"] = unused_mask(positions).to(device)
            options["ragged"] = layout
        hidden: Tensor = self._model.base_model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
            **options,
        ).last_hidden_state
        return hidden


def split_rectangles(lengths: Sequence[int], first: int = 0) -> Iterator[slice]:
    """Split consecutive rows so that padding fills at most half of each part.

    Args:
        lengths: of consecutive rows, at least 1.
        first: index of the first row.

    Yields:
        Slices of rows, from `first` on, that together cover each row once.
    """
    begin = widest = filled = 0
    for index, length in enumerate(lengths):
        widest, filled = max(widest, length), filled + length
        if widest * (index + 1 - begin) > 2 * filled:
            yield slice(first + begin, first + index)
            begin, widest, filled = index, length, length
    if lengths:
        yield slice(first + begin, first + len(lengths))


class SharedPrefill(NamedTuple):
    """Keys and values of prefixes that were read as one tree."""

    tokens: int
    """Number of tokens that were computed."""
    layers: list[Iterator[tuple[Tensor, Tensor]]]
    """For each prefix, the (H, length, D) keys and values of each layer."""


def prefill_shared(
    model: PreTrainedModel, prefixes: Sequence[tuple[int, ...]]
) -> SharedPrefill | None:
    """Read prefixes in one forward pass, shared tokens once; None if that would cost no less.

    Args:
        model: in inference mode.
        prefixes: none empty.
    """
    if len(prefixes) < 2 or not supports_trees(model):
        return None
    tree = pack_tree(prefixes)
    separate_cost = sum(map(len, prefixes))
    if len(tree.token_ids) + ROW_COST * len(tree.layout.spans) >= separate_cost:
        return None
    tree, recorder = tree.to(model.device), KVRecorder()
    forward_tree(model, tree, recorder)
    paths = [p[: len(prefix)] for p, prefix in zip(tree.indices, prefixes, strict=True)]
    return SharedPrefill(len(tree.token_ids), [recorder.select(path) for path in paths])
