"""The decoder: embed, then layer by layer, then logits. One class for every family; `ModelConfig` says what differs."""

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, linear, rms_norm, silu

from shared.kv.layout import Dtype
from shared.model.attention import Attention, SdpaAttention
from shared.model.batch import Batch
from shared.model.config import LayerConfig, ModelConfig
from shared.model.paged import PagedKv
from shared.model.rope import RopeSpec
from shared.model.rotary import RotaryTables, inverse_frequencies, rotary_tables, rotate
from shared.model.weights import load_weights


@dataclass(frozen=True)
class _Layer:
    """One layer's tensors. Norm weights are float32 copies with the family's offset added; the rest is mapped."""

    config: LayerConfig
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim]: queries' and keys' weights, for one joint call
    output: Tensor
    output_bias: Tensor | None
    attention_norm: Tensor | None  # after attention, before the residual: sandwich norms only
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    post_mlp_norm: Tensor | None


class Transformer:
    """A model that can be stepped layer by layer. Stateless between calls: K and V live in the `PagedKv` it is given.

    Not for two threads at once (PyTorch's own threads are what runs in parallel).
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], attention: Attention | None = None) -> None:
        self.config = config
        self._attention = attention or SdpaAttention()
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = self._embedding if config.tied_embeddings else weights["lm_head.weight"]
        self._final_norm = self._norm_weight(weights["model.norm.weight"])
        self._layers = [self._build_layer(weights, i) for i in range(config.num_layers)]
        self.dtype = self._embedding.dtype
        self.device = self._embedding.device
        # In the model's dtype, as the checkpoint's own code has it: 25.298 is 25.25 in bfloat16.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=self.dtype).item()
        self._frequencies = {
            layer.rope: inverse_frequencies(layer.rope, config.head_dim).to(self.device) for layer in config.layers
        }
        self._tables: WeakKeyDictionary[Batch, dict[RopeSpec, RotaryTables]] = WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        weights_path: Path,
        dtype: Dtype,
        device: torch.device | str = "cpu",
        attention: Attention | None = None,
    ) -> "Transformer":
        """Map the weight file that `catalog.ensure_weights` made. Raises `ModelFileError` naming what is wrong."""
        return cls(config, load_weights(config, weights_path, dtype, device), attention)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Return hidden states `[num_tokens, hidden_size]` for ids `[num_tokens]`, which must be in the vocabulary."""
        hidden = embedding(token_ids, self._embedding)
        return hidden if self._embedding_scale == 1 else hidden * self._embedding_scale

    @torch.inference_mode()
    def layer(self, index: int, hidden: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run one layer over the step's tokens: `[num_tokens, hidden_size]` to the same.

        Writes this layer's K and V of the step's tokens into their pages; when it returns they are complete and may
        leave the device. Reads the pages of earlier positions in this layer only.
        """
        layer = self._layers[index]
        attended = self._attend(index, layer, self._norm(hidden, layer.input_norm), batch, kv)
        if layer.attention_norm is not None:
            attended = self._norm(attended, layer.attention_norm)
        hidden = hidden + attended
        transformed = self._mlp(layer, self._norm(hidden, layer.mlp_norm))
        if layer.post_mlp_norm is not None:
            transformed = self._norm(transformed, layer.post_mlp_norm)
        return hidden + transformed

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits `[rows, vocab_size]`. Pass the rows that are needed: the vocabulary is large."""
        return linear(self._norm(hidden, self._final_norm), self._head).to(torch.float32)

    def forward(self, token_ids: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        """Run a whole step: hidden states `[num_tokens, hidden_size]` after the last layer."""
        hidden = self.embed(token_ids)
        for index in range(self.num_layers):
            hidden = self.layer(index, hidden, batch, kv)
        return hidden

    def _attend(self, index: int, layer: _Layer, x: Tensor, batch: Batch, kv: PagedKv) -> Tensor:
        config = self.config
        num_rotated = config.num_heads + config.num_kv_heads
        qkv = linear(x, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, config.head_dim)
        rotated = qkv[:, :num_rotated]
        if layer.qk_norm is not None:
            normed = rms_norm(rotated.to(torch.float32), (config.head_dim,), None, config.norm_eps)
            rotated = (normed * layer.qk_norm).to(x.dtype)
        rotated = rotate(rotated, self._rotary(batch, layer.config.rope))
        kv.write(index, batch.slots_of(kv.group_of(index)), rotated[:, config.num_heads :], qkv[:, num_rotated:])
        queries = rotated[:, : config.num_heads]
        out = self._attention.forward(queries, index, batch, kv, config.attention_scale, layer.config.window)
        return linear(out.flatten(1), layer.output, layer.output_bias)

    def _mlp(self, layer: _Layer, x: Tensor) -> Tensor:
        gate, up = linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        active = silu(gate) if self.config.activation == "silu" else gelu(gate, approximate="tanh")
        return linear(active.mul_(up), layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x.to(torch.float32), weight.shape, weight, self.config.norm_eps).to(x.dtype)

    def _norm_weight(self, weight: Tensor) -> Tensor:
        return weight.to(torch.float32) + self.config.norm_offset

    def _rotary(self, batch: Batch, rope: RopeSpec) -> RotaryTables:
        """Return the step's tables, made by the first layer that needs them."""
        tables = self._tables.setdefault(batch, {})
        if rope not in tables:
            tables[rope] = rotary_tables(self._frequencies[rope], batch.positions)
        return tables[rope]

    def _build_layer(self, weights: dict[str, Tensor], index: int) -> _Layer:
        config, prefix = self.config, f"model.layers.{index}"

        def norm(name: str) -> Tensor:
            return self._norm_weight(weights[f"{prefix}.{name}.weight"])

        def optional(name: str) -> Tensor | None:
            return weights.get(f"{prefix}.{name}")

        qk_norm = None
        if config.qk_norm:
            queries, keys = norm("self_attn.q_norm"), norm("self_attn.k_norm")
            qk_norm = torch.stack([queries] * config.num_heads + [keys] * config.num_kv_heads)
        sandwich = config.sandwich_norms
        return _Layer(
            config=config.layers[index],
            input_norm=norm("input_layernorm"),
            qkv=weights[f"{prefix}.self_attn.qkv_proj.weight"],
            qkv_bias=optional("self_attn.qkv_proj.bias"),
            qk_norm=qk_norm,
            output=weights[f"{prefix}.self_attn.o_proj.weight"],
            output_bias=optional("self_attn.o_proj.bias"),
            attention_norm=norm("post_attention_layernorm") if sandwich else None,
            mlp_norm=norm("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"),
            gate_up=weights[f"{prefix}.mlp.gate_up_proj.weight"],
            gate_up_bias=optional("mlp.gate_up_proj.bias"),
            down=weights[f"{prefix}.mlp.down_proj.weight"],
            down_bias=optional("mlp.down_proj.bias"),
            post_mlp_norm=norm("post_feedforward_layernorm") if sandwich else None,
        )
