"""LoRA adapters (arXiv 2106.09685), injected in place: the model keeps its class.

A checkpoint's weights have the adapters merged in, so that any program can load them; the adapters
are saved next to them, for resuming the run. Needs the package peft.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learners.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FILE = "adapters.safetensors"


def add_adapters(model: PreTrainedModel, rank: int, alpha: int | None, seed: int) -> None:
    """Freeze a model and add trainable adapters to its linear layers, but not to its head.

    Args:
        model: mutated; its outputs do not change until the adapters are trained.
        rank: of every adapter.
        alpha: adapters are scaled by alpha / rank; None: twice the rank.
        seed: of the adapters' initial weights.

    Raises:
        UsageError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"--lora-rank {rank} needs the package peft: pip install 'appo-gym[lora]'"
        ) from error
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)


def has_adapters(model: PreTrainedModel) -> bool:
    """True if `add_adapters` was called on a model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the model's weights by their original names, with the adapters merged in."""
    state = dict(model.state_dict())
    for name, layer in _layers(model):
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            if key.startswith(f"{name}.base_layer."):
                state[key.replace(".base_layer.", ".")] = value
        weight = layer.base_layer.weight
        state[f"{name}.weight"] = weight.detach() + layer.get_delta_weight("default").detach()
    return state


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone."""
    adapters = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(adapters, folder / FILE)


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Read the file of `save_adapters` into a model that has adapters."""
    saved = load_file(folder / FILE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])


@contextmanager
def disable_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Compute with the frozen weights alone in the block."""
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _layers(model: PreTrainedModel) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
