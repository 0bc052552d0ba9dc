"""Linear layers of a sampler on a CPU, in bfloat16, with weights laid out for the matrix unit.

A product with weights as they are first lays them out, at every call: for the few rows of a
sampling step that costs as much as the product. Here it is done once for each update of the policy.
The products are those of the plain layers, up to rounding.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 32
"""Of the products that weights are laid out for; any number of rows is served."""


class PackedLinear(nn.Module):
    """A linear layer for inference, by weights of its own. Mutated by `take`."""

    def __init__(self, name: str, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.name = name
        """Of the layer in the policy's model."""
        self.bias = bias
        self.nbytes = 0
        """Of the weights."""
        self._weight: Tensor

    def take(self, weight: Tensor) -> None:
        """Compute with (out, in) weights as they are now."""
        plain = weight.detach().to(torch.bfloat16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain, ROWS)
        self.nbytes = plain.nbytes

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self.bias, "none", [], ""
        )
        return found


def can_pack(model: "PreTrainedModel") -> bool:
    """Whether there is something to gain, and this torch knows how."""
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        torch.ops.mkldnn._reorder_linear_weight.default  # noqa: B018
        torch.ops.mkldnn._linear_pointwise.default  # noqa: B018
    except (AttributeError, RuntimeError):
        return False
    return supported and model.device.type == "cpu" and model.dtype == torch.bfloat16


def pack(model: "PreTrainedModel", source: "PreTrainedModel") -> list[PackedLinear]:
    """Replace the linear layers of a model, adapters left out, by packed ones.

    Args:
        model: a copy of the policy's model; mutated.
        source: the policy's model.

    Returns:
        The new layers: `refresh` gives them the source's weights.
    """
    packed = []
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and ".lora_" not in name:
            packed.append(PackedLinear(name, layer.bias))
            model.set_submodule(name, packed[-1])
    refresh(packed, source)
    return packed


def refresh(packed: list[PackedLinear], source: "PreTrainedModel") -> None:
    """Compute with the source's weights as they are now."""
    for layer in packed:
        weight = source.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        layer.take(weight)
