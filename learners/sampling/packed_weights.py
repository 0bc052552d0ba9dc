"""Linear layers of a sampler on a CPU, in bfloat16, with weights laid out for the matrix unit.

A product with weights as they are first lays them out, at every call: for the few rows of a
sampling step that costs as much as the product. Here it is done once for each update of the policy.
Layers that read the same rows, such as those of queries, keys and values, are one product: a small
one takes less time than its call. The products are those of the plain layers, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROWS = 32
"""Of the products that weights are laid out for; any number of rows is served."""


TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that are given the same rows, one after the other."""


class Product:
    """One or several layers' product with the same rows. Mutated by `take` and every product."""

    def __init__(self, names: Sequence[str]) -> None:
        """Of layers by their names in the policy's model; all have a bias, or none has."""
        self.names = tuple(names)
        self.nbytes = 0
        """Of the weights."""
        self._sizes: list[int] = []
        self._weight: Tensor
        self._bias: Tensor | None = None
        self._rows: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def take(self, layers: Sequence[nn.Linear]) -> None:
        """Compute with the weights of these layers as they are now."""
        self._sizes = [layer.out_features for layer in layers]
        plain = torch.cat([layer.weight.detach() for layer in layers]).to(torch.bfloat16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain, ROWS)
        self.nbytes = plain.nbytes
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases).to(torch.bfloat16) if biases else None

    def part(self, index: int, rows: Tensor) -> Tensor:
        """(..., in) to (..., out) of one of the layers; the others' parts wait to be asked for."""
        if rows is not self._rows or index not in self._waiting:
            whole: Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self._weight, self._bias, "none", [], ""
            )
            self._rows = rows
            self._waiting = dict(enumerate(torch.split(whole, self._sizes, -1)))
        found = self._waiting.pop(index)
        if not self._waiting:
            self._rows = None
        return found


class PackedLinear(nn.Module):
    """A linear layer for inference: its part of a product."""

    def __init__(self, product: Product, index: int = 0) -> None:
        super().__init__()
        self._product = product
        self._index = index

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self._product.part(self._index, rows)


def can_pack(model: PreTrainedModel) -> bool:
    """Whether there is something to gain, and this torch knows how."""
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        torch.ops.mkldnn._reorder_linear_weight.default  # noqa: B018
        torch.ops.mkldnn._linear_pointwise.default  # noqa: B018
    except (AttributeError, RuntimeError):
        return False
    return supported and model.device.type == "cpu" and model.dtype == torch.bfloat16


def pack(model: PreTrainedModel, source: PreTrainedModel) -> list[Product]:
    """Replace the linear layers of a model, adapters left out, by packed ones.

    Args:
        model: a copy of the policy's model; mutated.
        source: the policy's model.

    Returns:
        The products: `refresh` gives them the source's weights.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and ".lora_" not in name
    }
    products = []
    for names in _groups(layers):
        product = Product(names)
        for index, name in enumerate(names):
            model.set_submodule(name, PackedLinear(product, index))
        products.append(product)
    refresh(products, source)
    return products


def refresh(products: Sequence[Product], source: PreTrainedModel) -> None:
    """Compute with the source's weights as they are now."""
    for product in products:
        product.take([_linear(source, name) for name in product.names])


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _groups(layers: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Names of the layers, those together that are one product."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in layers}
    for name in layers:
        module, _, last = name.rpartition(".")
        together = next((group for group in TOGETHER if group[0] == last), ())
        names = tuple(f"{module}.{one}" for one in together)
        found = [layers[one] for one in names if one in layers]
        kinds = {(layer.in_features, layer.bias is None) for layer in found}
        if len(found) == len(together) and len(kinds) == 1:
            groups.update(dict.fromkeys(names, names))
    return list(dict.fromkeys(groups.values()))
