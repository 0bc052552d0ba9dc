"""Samplers: prefixes of token ids in, completions of one turn out.

sampler               the Sampler protocol, requests and stop criteria
transformers_sampler  the built-in sampler
kv_cache              keys and values of running and finished sequences
forward               one forward pass over the unread tokens of all rows
draw                  draws tokens reproducibly
packed_weights        bfloat16 linear layers for CPUs
vllm_sampler          the protocol on top of a vLLM engine
vllm_engine           vLLM in this process
vllm_server           vLLM in a process of its own
opening               opens the sampler that a config asks for
"""

from __future__ import annotations

from learners.sampling.opening import open_sampler, turns
from learners.sampling.sampler import Request, Sampler, SamplerStats
from learners.sampling.transformers_sampler import TransformersSampler

__all__ = ["Request", "Sampler", "SamplerStats", "TransformersSampler", "open_sampler", "turns"]
