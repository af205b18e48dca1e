"""A model's tensors, sorted by layer: what `transformer` and the native kernels compute with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from shared.model.files.config import LayerConfig, ModelConfig


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are worth asking for.

    Without AVX-512 PyTorch multiplies them one by one: a product of float32 copies, the copying included, is faster and
    rounds less.
    """
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Matrix:
    """A linear map, `[rows, cols]`, with its bias `[rows]`; mapped memory, never written.

    `int8` holds the same rows as integers with one float32 scale each (`weights.load_int8`): what the kernels in C read
    instead. Products in PyTorch read `weight`.
    """

    weight: Tensor
    bias: Tensor | None = None
    int8: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias` for `[num_tokens, cols]`, in the dtype of `x`."""
        if self.weight.dtype is torch.bfloat16 and not multiplies_bfloat16(self.weight.device.type):
            bias = None if self.bias is None else self.bias.float()
            return linear(x.float(), self.weight.float(), bias).to(x.dtype)
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Norm weights are float32 copies with the family's offset added."""

    config: LayerConfig
    input_norm: Tensor
    qkv: Matrix
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim]: queries' and keys' weights, for one joint call
    output: Matrix
    attention_norm: Tensor | None  # after attention, before the residual: sandwich norms only
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    post_mlp_norm: Tensor | None


@dataclass(frozen=True)
class ModelWeights:
    """All of a model. The embedding is `[vocab_size, hidden_size]`; the head is the same memory when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Matrix

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        int8: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> "ModelWeights":
        """Sort the tensors of a weight file (see `stored`)."""
        parts = _Parts(config, weights, int8 or {})
        head = "model.embed_tokens" if config.tied_embeddings else "lm_head"
        return cls(
            embedding=weights["model.embed_tokens.weight"],
            layers=tuple(parts.layer(index) for index in range(config.num_layers)),
            final_norm=parts.norm("model.norm"),
            head=parts.matrix(head),
        )


@dataclass(frozen=True)
class _Parts:
    config: ModelConfig
    weights: Mapping[str, Tensor]
    int8: Mapping[str, tuple[Tensor, Tensor]]

    def norm(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"].to(torch.float32) + self.config.norm_offset

    def matrix(self, name: str) -> Matrix:
        weight = f"{name}.weight"
        return Matrix(self.weights[weight], self.weights.get(f"{name}.bias"), self.int8.get(weight))

    def layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qk_norm = None
        if config.qk_norm:
            queries, keys = self.norm(f"{attention}.q_norm"), self.norm(f"{attention}.k_norm")
            qk_norm = torch.stack([queries] * config.num_heads + [keys] * config.num_kv_heads)
        sandwich = config.sandwich_norms
        return LayerWeights(
            config=config.layers[index],
            input_norm=self.norm(f"{prefix}.input_layernorm"),
            qkv=self.matrix(f"{attention}.qkv_proj"),
            qk_norm=qk_norm,
            output=self.matrix(f"{attention}.o_proj"),
            attention_norm=self.norm(f"{prefix}.post_attention_layernorm") if sandwich else None,
            mlp_norm=self.norm(f"{prefix}.{'pre_feedforward' if sandwich else 'post_attention'}_layernorm"),
            gate_up=self.matrix(f"{mlp}.gate_up_proj"),
            down=self.matrix(f"{mlp}.down_proj"),
            post_mlp_norm=self.norm(f"{prefix}.post_feedforward_layernorm") if sandwich else None,
        )
