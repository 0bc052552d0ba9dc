"""Prefixes read in one forward pass, what they share only once, with their keys and values."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from learners.attention import takes_trees
from learners.packing import ROW_COST, packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keep = Callable[[tuple[int, ...], Iterable[tuple[Tensor, Tensor]]], None]
"""Takes (T,) tokens, and of each layer their (H, T, D) keys and values."""


class Recorder:
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

    def along(self, path: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each layer (H, n, D) keys and values at the n places of a path."""
        return ((keys[:, path], values[:, path]) for keys, values in self.layers)


class Read(NamedTuple):
    """Keys and values of prefixes that were read together."""

    tokens: int
    """That were computed."""
    kept: list[Iterator[tuple[Tensor, Tensor]]]
    """Per prefix and layer (H, length, D) keys and values."""


def read_together(model: "PreTrainedModel", prefixes: Sequence[tuple[int, ...]]) -> Read | None:
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
    model.base_model(
        input_ids=tree.token_ids[None],
        position_ids=tree.positions[None],
        attention_mask=tree.positions.new_zeros((1, 1, 1, 0)),
        past_key_values=recorder,
        use_cache=True,
        tree=tree.layout,
    )
    paths = [p[: len(prefix)] for p, prefix in zip(tree.places, prefixes, strict=True)]
    return Read(len(tree.token_ids), [recorder.along(path) for path in paths])
