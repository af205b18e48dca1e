"""Models of random weights in the shapes of real ones, and how much of them each section measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.roofline import LLAMA_8B
from shared.model.attention.base import Attention
from shared.model.files.config import ModelConfig
from shared.model.files.stored import stored_tensors
from shared.model.layers.layer_weights import ModelWeights
from shared.model.transformer import Transformer

BLOCK_TOKENS = 64

GEMMA_270M = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 199,
}


@dataclass(frozen=True)
class ServedShape:
    """A model that the whole suite serves. Lengths are those of prompts, limits those of a GPU."""

    name: str
    config: Mapping[str, Any]
    lengths: tuple[int, ...]
    chunk_tokens: int  # of the decode worker
    prefill_chunk_tokens: int
    max_tokens: int
    kv_bytes: int
    pool_bytes: int
    entry_bytes: int  # of the hand-over that is measured without a model
    output_tokens: int = 48
    batch: int = 8
    batch_output_tokens: int = 256  # while other prompts arrive
    arriving_tokens: int | None = None  # of the prompts that arrive beside a running batch; None: not measured
    most_times_alone: Mapping[int, float] = field(default_factory=dict)  # by length: TTFT in times of decode alone
    most_from_pool_s: Mapping[int, float] = field(default_factory=dict)  # by length: TTFT of what decode's pool has


@dataclass(frozen=True)
class Burst:
    """New prompts, so many at once all the time, and how many requests a second are wanted of an H200."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    num_requests: int
    least_per_s: float | None = None


@dataclass(frozen=True)
class DevicePlan:
    """What is measured. Lengths and contexts are tokens."""

    model: str  # of the figures
    config: Mapping[str, Any]
    checked: Mapping[str, Mapping[str, Any]]  # models of the correctness section
    served: tuple[ServedShape, ...]  # models of the suite section; the first is that of the load section
    bursts: tuple[Burst, ...]  # of the load section
    checked_lengths: tuple[int, ...] = (1100, 700, 333)
    prefill_lengths: tuple[int, ...] = (2048, 8192, 32768, 131072)
    chunk_tokens: int = 8192
    decode: tuple[tuple[int, int], ...] = ((1, 8192), (8, 8192), (64, 8192))  # batch, context
    decode_steps: int = 24
    emission_tokens: int = 16384
    repetitions: int = 3
    suite_repetitions: int = 5  # of the suite section


FULL = DevicePlan(
    model="8B GQA",
    config=LLAMA_8B,
    checked={
        # The reference runs on the CPU in float32: depth and vocabulary of the 8B are cut to what that bears.
        "8B GQA, 4 layers": {**LLAMA_8B, "num_hidden_layers": 4, "vocab_size": 8192},
        "Gemma 3 270M": {**GEMMA_270M, "vocab_size": 8192},
        "SmolLM2 135M": SMOLLM2_135M,
    },
    served=(
        ServedShape(
            "8B GQA",
            LLAMA_8B,
            lengths=(2048, 8192),
            chunk_tokens=2048,
            prefill_chunk_tokens=8192,
            max_tokens=32768,
            kv_bytes=14 << 30,
            pool_bytes=16 << 30,
            entry_bytes=256 << 10,
            arriving_tokens=8192,
            most_times_alone={2048: 1.5, 8192: 1.25},
            most_from_pool_s={8192: 0.25},
        ),
        ServedShape(
            "Gemma 3 270M",
            GEMMA_270M,
            lengths=(8192, 32000),
            chunk_tokens=2048,
            prefill_chunk_tokens=8192,
            max_tokens=32768,
            kv_bytes=4 << 30,
            pool_bytes=4 << 30,
            entry_bytes=64 << 10,
            most_times_alone={32000: 1.15},
        ),
    ),
    bursts=(Burst(128, 48, 64, 384, least_per_s=100), Burst(1024, 48, 32, 128, least_per_s=20)),
)
SMALL = DevicePlan(
    model="tiny",
    config={**LLAMA_8B, **TINY},
    checked={"tiny GQA": {**LLAMA_8B, **TINY}, "tiny windows": {**GEMMA_270M, **TINY, "sliding_window": 40}},
    served=(
        ServedShape(
            "tiny GQA",
            {**LLAMA_8B, **TINY},
            lengths=(200, 500),
            chunk_tokens=128,
            prefill_chunk_tokens=256,
            max_tokens=1024,
            kv_bytes=64 << 20,
            pool_bytes=64 << 20,
            entry_bytes=48 << 10,
            output_tokens=8,
            batch=2,
            batch_output_tokens=64,
            arriving_tokens=500,
        ),
    ),
    bursts=(Burst(100, 4, 4, 8),),
    checked_lengths=(150, 90, 33),
    prefill_lengths=(128, 256),
    chunk_tokens=128,
    decode=((1, 100), (3, 64)),
    decode_steps=3,
    emission_tokens=256,
    repetitions=1,
    suite_repetitions=1,
)


def random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Return normal deviates that keep the size of what passes through; norms near one."""
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for tensor in stored_tensors(config):
        values = torch.empty(tensor.shape, dtype=dtype, device=device).normal_(generator=generator)
        if len(tensor.shape) == 1:
            values = values.mul_(0.1).add_(1 - config.norm_offset)
        else:
            values = values.mul_(tensor.shape[-1] ** -0.5)
        weights[tensor.name] = values
    return weights


def transformer(config: ModelConfig, weights: Mapping[str, Tensor], attention: Attention) -> Transformer:
    return Transformer(config, ModelWeights.build(config, weights), attention)


def config_of(shape: Mapping[str, Any]) -> ModelConfig:
    return replace(ModelConfig.from_dict(shape), eos_token_ids=())
