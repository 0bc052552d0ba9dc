"""Keys and values of the rows being sampled, and of prefixes worth keeping.

`RowCache` is what transformers' attention layers write to and read from: one line per row, rows of
different lengths side by side, a finished row leaves at once. `PrefixStore` keeps finished rows, so
that a turn that goes on, a branch, or a second root starts from what was already computed.
`read_together` reads several prefixes at once, and what they share only once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from learners.attention import takes_trees
from learners.packing import ROW_COST, packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROWTH = 128
"""Positions by which a full cache grows."""


class RowCache:
    """Stands where transformers expects a `Cache`; mutated by every forward pass.

    Keys and values are (rows, heads, positions, width) per layer. Set `rows` and `positions` before
    a forward pass over (R, Q) tokens; what earlier rows hold beyond their length is never attended.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.rows = slice(0, 0)
        """Rows of the next forward pass."""
        self.positions: Tensor = torch.zeros(0)
        """(R, Q) where its tokens go."""
        self.span = 0
        """Positions that its attention looks at."""
        self._layers: list[tuple[Tensor, Tensor]] = []

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write (R, H, Q, D) keys and values; return (R, H, span, D) of the same rows."""
        if layer_idx == len(self._layers):
            empty = keys.new_zeros((self.rows.stop, keys.shape[1], self.span, keys.shape[3]))
            self._layers.append((empty, empty.clone()))
        self._reserve(layer_idx)
        kept = self._layers[layer_idx]
        # Not scatter_: for bfloat16 on a CPU it copies the whole store to float32 and back.
        lines = torch.arange(len(keys), device=keys.device)[:, None]
        for store, new in zip(kept, (keys, values), strict=True):
            store[self.rows][lines, :, self.positions] = new.transpose(1, 2)
        seen = (self.rows, slice(None), slice(0, self.span))
        return kept[0][seen], kept[1][seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so this is never used to make them."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers)

    def move(self, source: int, target: int) -> None:
        """Let row `target` become a copy of row `source`."""
        for keys, values in self._layers:
            keys[target] = keys[source]
            values[target] = values[source]

    def read(self, row: int, length: int) -> Tensor | None:
        """(layers, 2, H, length, D) of a row, copied; None before the first forward pass."""
        if not self._layers:
            return None
        pairs = [torch.stack([k[row, :, :length], v[row, :, :length]]) for k, v in self._layers]
        return torch.stack(pairs)

    def write(self, row: int, kept: Tensor, length: int) -> None:
        """Put the first `length` positions of what `read` returned into a row."""
        for layer, (keys, values) in enumerate(kept):
            if layer == len(self._layers):
                empty = keys.new_zeros((row + 1, keys.shape[0], length, keys.shape[2]))
                self._layers.append((empty, empty.clone()))
            self._reserve(layer, row + 1, length)
            self._layers[layer][0][row, :, :length] = keys[:, :length]
            self._layers[layer][1][row, :, :length] = values[:, :length]

    def _reserve(self, layer: int, rows: int = 0, span: int = 0) -> None:
        """Grow a layer to hold the rows and span of the next pass, or those given."""
        store = self._layers[layer][0]
        rows, span = max(rows, self.rows.stop), max(span, self.span)
        if store.shape[0] >= rows and store.shape[2] >= span:
            return
        grown_span = store.shape[2] if store.shape[2] >= span else span + GROWTH
        shape = (max(rows, store.shape[0]), store.shape[1], grown_span, store.shape[3])
        grown = []
        for old in self._layers[layer]:
            new = old.new_zeros(shape)
            new[: old.shape[0], :, : old.shape[2]] = old
            grown.append(new)
        self._layers[layer] = (grown[0], grown[1])


class _Recorder:
    """Stands where transformers expects a `Cache`; keeps what one forward pass over a row makes."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        """(H, U, D) keys and values of each."""

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        self.layers.append((keys[0], values[0]))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class Read(NamedTuple):
    """Keys and values of prefixes that were read together."""

    tokens: int
    """That were computed."""
    kept: list[Tensor]
    """Per prefix (layers, 2, H, length, D)."""


def read_together(model: "PreTrainedModel", prefixes: Sequence[tuple[int, ...]]) -> Read | None:
    """Read prefixes in one forward pass, shared tokens once; None where that is no less work.

    Args:
        model: in inference.
        prefixes: none empty.
    """
    if len(prefixes) < 2 or not takes_trees(model):
        return None
    tree = packed(prefixes)
    padded = len(prefixes) * max(map(len, prefixes))
    if len(tree.token_ids) + ROW_COST * len(tree.layout.spans) >= padded:
        return None
    tree, recorder = tree.to(model.device), _Recorder()
    model.base_model(
        input_ids=tree.token_ids[None],
        position_ids=tree.positions[None],
        attention_mask=tree.positions.new_zeros((1, 1, 1, 0)),
        past_key_values=recorder,
        use_cache=True,
        tree=tree.layout,
    )
    kept = []
    for places, prefix in zip(tree.places, prefixes, strict=True):
        path = places[: len(prefix)]
        pairs = [torch.stack([k[:, path], v[:, path]]) for k, v in recorder.layers]
        kept.append(torch.stack(pairs))
    return Read(len(tree.token_ids), kept)


@dataclass(frozen=True)
class Prefix:
    """Tokens whose keys and values are kept."""

    token_ids: tuple[int, ...]
    kept: Tensor
    """(layers, 2, H, length, D)"""


class PrefixStore:
    """Finished rows by recency, up to a number of bytes. Mutated by `keep` and `forget`."""

    def __init__(self, most_bytes: int = 2_000_000_000) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self.peak_bytes = 0
        """Most that it ever held."""
        self._entries: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def keep(self, token_ids: tuple[int, ...], kept: Tensor) -> None:
        """Keep a row; what was used longest ago makes room."""
        if token_ids in self._entries:
            self._drop(token_ids)
        self._entries[token_ids] = Prefix(token_ids, kept)
        self._bytes += kept.nbytes
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        while self._bytes > self._most_bytes and self._entries:
            self._drop(next(iter(self._entries)))

    def longest(self, token_ids: tuple[int, ...]) -> tuple[int, Prefix | None]:
        """How many leading tokens are known, and the row that knows them."""
        best, found = 0, None
        for entry in self._entries.values():
            shared = entry.token_ids
            if len(shared) <= best or shared[:best] != token_ids[:best]:
                continue
            pairs = zip(shared[best:], token_ids[best:], strict=False)
            length = best + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if length > best:
                best, found = length, entry
        if found is not None:
            self._entries.move_to_end(found.token_ids)
        return best, found

    def forget(self) -> None:
        """Drop everything: the weights have changed."""
        self._entries.clear()
        self._bytes = 0

    def _drop(self, token_ids: tuple[int, ...]) -> None:
        self._bytes -= self._entries.pop(token_ids).kept.nbytes
