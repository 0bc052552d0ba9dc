"""bfloat16 linear layers for sampling on CPUs, with weights packed for the matrix unit.

A product with plain weights packs them first, at every call: for the few rows of a sampling step
that costs as much as the product itself. Here they are packed once for each update of the policy.
Layers with the same input, such as those of queries, keys and values, are fused into one product,
because a small product takes less time than its call. Outputs equal those of the plain layers, up
to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROWS = 32
"""Number of rows that the packing is optimised for; any number is served."""


FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that are called in turn with the same input."""


class FusedProduct:
    """The product of one or several layers with the same input. Mutated by `load` and `output`."""

    def __init__(self, names: Sequence[str]) -> None:
        """Fuse layers, by their names in the policy's model; all have a bias, or none has."""
        self.names = tuple(names)
        self.nbytes = 0
        """Size of the weights."""
        self._sizes: list[int] = []
        self._weight: Tensor
        self._bias: Tensor | None = None
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def load(self, layers: Sequence[nn.Linear]) -> None:
        """Pack the current weights of these layers."""
        self._sizes = [layer.out_features for layer in layers]
        plain = torch.cat([layer.weight.detach() for layer in layers]).to(torch.bfloat16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain, ROWS)
        self.nbytes = plain.nbytes
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases).to(torch.bfloat16) if biases else None

    def output(self, index: int, rows: Tensor) -> Tensor:
        """(..., in) to (..., out) of one layer; the other layers' outputs wait for their calls."""
        # Compared by identity: the layers of a module are called with the very same tensor.
        if rows is not self._input or index not in self._outputs:
            fused: Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self._weight, self._bias, "none", [], ""
            )
            self._input = rows
            self._outputs = dict(enumerate(torch.split(fused, self._sizes, -1)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None  # frees it
        return output


class PackedLinear(nn.Module):
    """A linear layer for inference, backed by a fused product."""

    def __init__(self, product: FusedProduct, index: int = 0) -> None:
        super().__init__()
        self._product = product
        self._index = index

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self._product.output(self._index, rows)


def can_pack(model: PreTrainedModel) -> bool:
    """True if packing speeds this model up and this build of torch supports it."""
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        torch.ops.mkldnn._reorder_linear_weight.default  # noqa: B018
        torch.ops.mkldnn._linear_pointwise.default  # noqa: B018
    except (AttributeError, RuntimeError):
        return False
    return supported and model.device.type == "cpu" and model.dtype == torch.bfloat16


def pack_linears(model: PreTrainedModel, source: PreTrainedModel) -> list[FusedProduct]:
    """Replace the linear layers of a model, except those of adapters, with packed ones.

    Args:
        model: a copy of the policy's model; mutated.
        source: the policy's model.

    Returns:
        The products, for `refresh`.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and ".lora_" not in name
    }
    products = []
    for names in _group_names(layers):
        product = FusedProduct(names)
        for index, name in enumerate(names):
            model.set_submodule(name, PackedLinear(product, index))
        products.append(product)
    refresh(products, source)
    return products


def refresh(products: Sequence[FusedProduct], source: PreTrainedModel) -> None:
    """Pack the source's current weights."""
    for product in products:
        product.load([_linear(source, name) for name in product.names])


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _group_names(layers: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Group the names of layers that are fused; a layer on its own is a group, too."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in layers}
    for name in layers:
        module, _, last = name.rpartition(".")
        fused = next((group for group in FUSED if group[0] == last), ())
        names = tuple(f"{module}.{one}" for one in fused)
        members = [layers[one] for one in names if one in layers]
        kinds = {(layer.in_features, layer.bias is None) for layer in members}
        if len(members) == len(fused) and len(kinds) == 1:
            groups.update(dict.fromkeys(names, names))
    return list(dict.fromkeys(groups.values()))
