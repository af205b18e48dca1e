"""The tensors of our weight files: Hugging Face's names and shapes, with q/k/v and gate/up stored as one tensor each.

Fused at conversion, because fusing at load would copy: every process maps the same file and shares its pages.
"""

from dataclasses import dataclass
from typing import Literal

from shared.kv.layout import Dtype
from shared.model.files.config import ModelConfig

Shape = tuple[int, ...]
WeightDtype = Dtype | Literal["int8"]
"""int8: the matrices alone, each row as integers times one float32; it accompanies a file of floats."""

SCALE = "_scale"
"""Ends the name of an int8 matrix's scales."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file: the concatenation, along the first axis, of one or more checkpoint tensors."""

    name: str
    parts: tuple[tuple[str, Shape], ...]

    @property
    def shape(self) -> Shape:
        first = self.parts[0][1]
        return (sum(shape[0] for _, shape in self.parts), *first[1:])


def stored_tensors(config: ModelConfig) -> tuple[StoredTensor, ...]:
    """Return every tensor a weight file of this model holds, in the order in which it is written."""
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [_whole("model.embed_tokens.weight", (vocab, hidden))]
    for layer in range(config.num_layers):
        tensors += _layer(config, f"model.layers.{layer}")
    tensors.append(_whole("model.norm.weight", (hidden,)))
    if not config.tied_embeddings:
        tensors.append(_whole("lm_head.weight", (vocab, hidden)))
    return tuple(tensors)


def int8_tensors(config: ModelConfig) -> tuple[StoredTensor, ...]:
    """Return those that an int8 file holds: every matrix that is multiplied with."""
    looked_up = () if config.tied_embeddings else ("model.embed_tokens.weight",)
    return tuple(t for t in stored_tensors(config) if len(t.shape) == 2 and t.name not in looked_up)


def _whole(name: str, shape: Shape) -> StoredTensor:
    return StoredTensor(name, ((name, shape),))


def _layer(config: ModelConfig, prefix: str) -> list[StoredTensor]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_heads * head, config.num_kv_heads * head
    qkv = (("q_proj", query), ("k_proj", key), ("v_proj", key))
    gate_up = (("gate_proj", inner), ("up_proj", inner))
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"

    def fused(name: str, parts: tuple[tuple[str, int], ...], module: str, kind: str) -> StoredTensor:
        tail: Shape = (hidden,) if kind == "weight" else ()
        return StoredTensor(
            f"{module}.{name}.{kind}", tuple((f"{module}.{part}.{kind}", (rows, *tail)) for part, rows in parts)
        )

    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    tensors = [_whole(f"{prefix}.{norm}.weight", (hidden,)) for norm in norms]
    tensors.append(fused("qkv_proj", qkv, attention, "weight"))
    if config.qkv_bias:
        tensors.append(fused("qkv_proj", qkv, attention, "bias"))
    if config.qk_norm:
        tensors += [_whole(f"{attention}.{norm}.weight", (head,)) for norm in ("q_norm", "k_norm")]
    tensors.append(_whole(f"{attention}.o_proj.weight", (hidden, query)))
    if config.output_bias:
        tensors.append(_whole(f"{attention}.o_proj.bias", (hidden,)))
    tensors.append(fused("gate_up_proj", gate_up, mlp, "weight"))
    tensors.append(_whole(f"{mlp}.down_proj.weight", (hidden, inner)))
    if config.mlp_bias:
        tensors += [fused("gate_up_proj", gate_up, mlp, "bias"), _whole(f"{mlp}.down_proj.bias", (hidden,))]
    return tensors
