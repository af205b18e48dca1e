"""Gemma 3: windows in five of six layers, norms around attention and MLP, weights of norms stored around zero."""

from collections.abc import Mapping
from typing import Any

from shared.model.files.families.family import Family, GgufForm, LayerKind, Metadata
from shared.model.files.families.fields import ConfigFields

_27B_LAYERS = 62  # the one Gemma 3 that scales its queries by hidden_size / heads


def layer_kinds(fields: ConfigFields, num_layers: int) -> list[LayerKind]:
    """Return windows in all layers but each sixth, or another one by `sliding_window_pattern`."""
    pattern = fields.integer("sliding_window_pattern", default=6)
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]


def gguf_fields(config: Mapping[str, Any], field: Metadata) -> dict[str, Any]:
    """Return what a GGUF file says of windows, or leaves to who knows the family."""
    num_layers = config["num_hidden_layers"]
    scalar = config["hidden_size"] // config["num_attention_heads"]
    local = {"rope_type": "default", "rope_theta": field("rope.local.freq_base", 10_000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": field("attention.sliding_window"),
        "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(num_layers)],
        "query_pre_attn_scalar": scalar if num_layers == _27B_LAYERS else config["head_dim"],
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }


GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    GgufForm("gemma3", stored_norm_offset=1.0, more_fields=gguf_fields),
    default_head_dim=256,
    default_rope_theta=1_000_000.0,
    local_rope_theta="rope_local_base_freq",
    layer_kinds=layer_kinds,
    query_scalar=lambda fields, _head_dim: fields.number("query_pre_attn_scalar", default=256),
    activation_field="hidden_activation",
    default_activation="gelu_pytorch_tanh",
    norm_offset=1.0,
    scales_embeddings=True,
    qk_norm=True,
    sandwich_norms=True,
    ties_embeddings=True,
)
