"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Kept:
    """What forward passes kept for their backward passes. Mutated by `counting`."""

    def __init__(self) -> None:
        self.bytes = self.tokens = 0
        """Of the pass that kept most, and the tokens it computed."""

    @contextmanager
    def counting(self, parameters: Iterable[Tensor], tokens: int) -> Iterator[None]:
        """Count what the block keeps, the parameters left out."""
        weights = {p.untyped_storage().data_ptr() for p in parameters}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        if sum(storages.values()) > self.bytes:
            self.bytes, self.tokens = sum(storages.values()), tokens


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
