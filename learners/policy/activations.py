"""Observers of forward passes: of tensors saved for backward passes, and of keys and values.

Neither changes what a pass computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SavedTensors:
    """Size of what forward passes save for their backward passes. Mutated by `count`."""

    def __init__(self) -> None:
        self.bytes = self.tokens = 0
        """Size of the pass that saved most, and the number of tokens it computed."""

    @contextmanager
    def count(self, parameters: Iterable[Tensor], tokens: int) -> Iterator[None]:
        """Count what the block saves, `parameters` excluded."""
        weights = {p.untyped_storage().data_ptr() for p in parameters}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            # By storage: views of one tensor are saved several times and take memory once.
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        if sum(storages.values()) > self.bytes:
            self.bytes, self.tokens = sum(storages.values()), tokens


KeepPrefix = Callable[[tuple[int, ...], Iterable[tuple[Tensor, Tensor]]], None]
"""Takes (T,) token ids and, for each layer, their (H, T, D) keys and values."""


class KVRecorder:
    """Records the keys and values of one forward pass; transformers takes it for a `Cache`."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        """(H, U, D) keys and values of each layer."""

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Record a layer's (1, H, U, D) keys and values; the layer attends to nothing else."""
        self.layers.append((keys[0], values[0]))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nothing precedes the pass."""
        return 0

    def select(self, path: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each layer, the (H, n, D) keys and values of the n tokens of a path."""
        return ((keys[:, path], values[:, path]) for keys, values in self.layers)
