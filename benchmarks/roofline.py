"""Operations and bytes of a prefill and of a decode step, and the least time a machine needs for them. Pure.

A multiplication and an addition are two operations. Bytes are those that must cross the memory bus even with perfect
caches: weights once a pass, KV once for each pass that reads it; activations are assumed to stay in caches. Norms,
rotary embeddings and soft-max are left out: under 2 % of the operations of any model here. (Williams, Waterman,
Patterson: Roofline, 2009.)
"""

from dataclasses import dataclass

from shared.model.files.config import ModelConfig

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}
"""A dense 8B model with grouped queries, for the figures of a GPU."""


@dataclass(frozen=True)
class Limits:
    """What a machine can do at most."""

    operations_per_s: float
    bytes_per_s: float


H100 = Limits(operations_per_s=989e12, bytes_per_s=3.35e12)
"""NVIDIA H100 SXM, data sheet: dense bfloat16, HBM3."""


@dataclass(frozen=True)
class Work:
    """What has to be done, however it is done."""

    operations: float
    num_bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.num_bytes

    def least_seconds(self, limits: Limits) -> float:
        return max(self.operations / limits.operations_per_s, self.num_bytes / limits.bytes_per_s)

    def bound(self, limits: Limits) -> str:
        """Return which of the two limits is the nearer one."""
        compute, memory = self.operations / limits.operations_per_s, self.num_bytes / limits.bytes_per_s
        return "compute" if compute > memory else "memory"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a number, as stored."""

    weight: float = 2
    kv: float = 2


def layer_parameters(config: ModelConfig) -> int:
    """Return the parameters of all layers' matrices: each meets every token."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = config.hidden_size * (queries + 2 * keys) + queries * config.hidden_size
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def head_parameters(config: ModelConfig) -> int:
    """Return the parameters of the output matrix: it meets tokens that are sampled from, only."""
    return config.vocab_size * config.hidden_size


def kv_bytes_per_token(config: ModelConfig, sizes: Sizes = Sizes()) -> float:
    """Return the bytes of K and V of one token in one layer."""
    return 2 * config.num_kv_heads * config.head_dim * sizes.kv


def kv_bytes(config: ModelConfig, num_tokens: int, sizes: Sizes = Sizes()) -> float:
    """Return the bytes of KV that a sequence of `num_tokens` must hold: windowed layers need their window only."""
    held = sum(min(num_tokens, layer.window or num_tokens) for layer in config.layers)
    return held * kv_bytes_per_token(config, sizes)


def prefill(config: ModelConfig, num_tokens: int, chunk_tokens: int | None = None, sizes: Sizes = Sizes()) -> Work:
    """Return the work of one prompt up to its first token, in passes of `chunk_tokens` (None: in one)."""
    chunk = chunk_tokens or num_tokens
    operations = 2.0 * layer_parameters(config) * num_tokens + 2.0 * head_parameters(config)
    num_passes = -(-num_tokens // chunk)
    num_bytes = (layer_parameters(config) * num_passes + head_parameters(config)) * sizes.weight
    for layer in config.layers:
        window = layer.window or num_tokens
        operations += 4.0 * config.num_heads * config.head_dim * _attended(num_tokens, window)
        read = sum(min(end, num_tokens, window + chunk) for end in range(chunk, num_tokens + chunk, chunk))
        num_bytes += (read + num_tokens) * kv_bytes_per_token(config, sizes)
    return Work(operations, num_bytes)


def decode(config: ModelConfig, batch: int, context: int, sizes: Sizes = Sizes()) -> Work:
    """Return the work of one step: a token for each of `batch` sequences that have `context` tokens of KV."""
    parameters = layer_parameters(config) + head_parameters(config)
    attended = sum(min(context + 1, layer.window or context + 1) for layer in config.layers)
    operations = batch * (2.0 * parameters + 4.0 * config.num_heads * config.head_dim * attended)
    num_bytes = parameters * sizes.weight + batch * attended * kv_bytes_per_token(config, sizes)
    return Work(operations, num_bytes)


def _attended(num_tokens: int, window: int) -> int:
    """Return the sum over positions of how many positions each attends to: 1, 2, ... up to `window`."""
    growing = min(num_tokens, window)
    return growing * (growing + 1) // 2 + (num_tokens - growing) * window
