"""Samplers: prefixes of token ids in, completions of one turn out.

opening               opens the sampler that a config asks for
sampler               the Sampler protocol, requests and stop criteria
transformers_sampler  the built-in sampler
kv_cache              its KV cache: a slot per sequence
forward               its forward passes over all sequences at once
draw                  its draws, reproducible
packed_weights        its bfloat16 linear layers for CPUs
vllm_sampler          the protocol on top of a vLLM engine
vllm_engine           vLLM in this process
vllm_server           vLLM in a process of its own
"""

from __future__ import annotations

from learners.sampling.opening import open_sampler, resolve_turns
from learners.sampling.sampler import Request, Sampler, SamplerStats
from learners.sampling.transformers_sampler import TransformersSampler

__all__ = [
    "Request",
    "Sampler",
    "SamplerStats",
    "TransformersSampler",
    "open_sampler",
    "resolve_turns",
]
