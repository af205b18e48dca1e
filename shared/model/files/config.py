"""What a Hugging Face `config.json` says about a decoder, as one frozen dataclass for every supported family."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from shared.errors import ModelFileError
from shared.kv.layout import Dtype, KvLayout, LayerSpec
from shared.model.files.families import BY_MODEL_TYPE
from shared.model.files.families.family import Family, LayerKind
from shared.model.files.families.fields import ConfigFields
from shared.model.files.rope import RopeSpec

Activation = Literal["silu", "gelu_tanh"]
_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class LayerConfig:
    """What may differ between layers of one decoder."""

    window: int | None  # None: full attention; W: position q attends to (q - W, q]
    rope: RopeSpec


@dataclass(frozen=True)
class ModelConfig:
    """One decoder. Families differ in these fields only; the forward pass never asks for the family."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_context: int  # tokens
    norm_eps: float
    norm_offset: float  # added to every norm weight: 1 for Gemma, whose weights are stored around zero
    activation: Activation
    attention_scale: float
    embedding_scale: float
    qkv_bias: bool
    output_bias: bool  # of the attention output projection
    mlp_bias: bool
    qk_norm: bool
    sandwich_norms: bool  # norms after attention and after the MLP too, before the residual is added
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def kv_layout(self, block_tokens: int, dtype: Dtype) -> KvLayout:
        """Return the layout of this model's KV cache in blocks of `block_tokens`."""
        specs = tuple(LayerSpec(layer.window, self.num_kv_heads, self.head_dim) for layer in self.layers)
        return KvLayout(specs, dtype, block_tokens)

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Read `config.json`. Raises `ModelFileError` naming the file and what is wrong with it."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelFileError(f"{path}: no such file; a model directory needs a config.json") from None
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from error
        return cls.from_dict(raw, source=str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> "ModelConfig":
        """Build from the content of a `config.json` of any supported family.

        Raises `ModelFileError`, whose message starts with `source`, for an unknown family, a missing field or a
        feature that would change the numbers and is not implemented.
        """
        if not isinstance(raw, Mapping):
            raise ModelFileError(f"{source}: expected a JSON object, found {type(raw).__name__}")
        if raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), Mapping):
            raw = {**raw["text_config"], "model_type": "gemma3_text"}
        fields = ConfigFields(raw, source)
        model_type = fields.text("model_type")
        family = BY_MODEL_TYPE.get(model_type)
        if family is None:
            known = ", ".join(BY_MODEL_TYPE)
            raise ModelFileError(f"{source}: model_type {model_type!r} is not supported (supported: {known})")
        return _build(family, fields)


def _build(family: Family, fields: ConfigFields) -> ModelConfig:
    for field in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if fields.raw.get(field):
            raise fields.fail(field, "asks for a feature that is not supported")
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads", default=None)
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.fail("num_key_value_heads", f"({num_kv_heads}) must divide num_attention_heads ({num_heads})")
    head_dim = fields.integer("head_dim", default=family.default_head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise fields.fail("head_dim", f"must be even for rotary embeddings, not {head_dim}")
    qkv_bias, output_bias = family.biases(fields)
    return ModelConfig(
        family=family.model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=_layers(family, fields),
        max_context=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        norm_offset=family.norm_offset,
        activation=_activation(family, fields),
        attention_scale=family.query_scalar(fields, head_dim) ** -0.5,
        embedding_scale=hidden_size**0.5 if family.scales_embeddings else 1.0,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=fields.flag("mlp_bias", default=False),
        qk_norm=family.qk_norm,
        sandwich_norms=family.sandwich_norms,
        tied_embeddings=fields.flag("tie_word_embeddings", default=family.ties_embeddings),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def _activation(family: Family, fields: ConfigFields) -> Activation:
    value = fields.raw.get(family.activation_field) or family.default_activation
    if value not in _ACTIVATIONS:
        raise fields.fail(family.activation_field, f"names an activation that is not supported: {value!r}")
    return _ACTIVATIONS[value]


def _layers(family: Family, fields: ConfigFields) -> tuple[LayerConfig, ...]:
    kinds = _layer_kinds(family, fields)
    window = fields.integer("sliding_window", default=4096) if "sliding_attention" in kinds else None
    specs: dict[str, LayerConfig] = {}
    for kind in set(kinds):
        is_local = kind == "sliding_attention"
        rope = _rope_section(family, fields, kind)
        theta = rope.get("rope_theta")
        if theta is None and family.local_rope_theta is not None and is_local:
            theta = fields.raw.get(family.local_rope_theta, 10_000.0)
        if theta is None:
            theta = fields.raw.get("rope_theta", family.default_rope_theta)
        spec = RopeSpec.from_dict({**rope, "rope_theta": theta}, f"{fields.source}: rope parameters")
        specs[kind] = LayerConfig(window if is_local else None, spec)
    return tuple(specs[kind] for kind in kinds)


def _layer_kinds(family: Family, fields: ConfigFields) -> list[LayerKind]:
    num_layers = fields.integer("num_hidden_layers")
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        return family.layer_kinds(fields, num_layers)
    known = set(get_args(LayerKind))
    if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= known:
        raise fields.fail("layer_types", f"must hold {num_layers} of {sorted(known)}")
    return kinds


def _rope_section(family: Family, fields: ConfigFields, kind: str) -> dict[str, Any]:
    """Return the rope settings of one kind of layer, from either spelling.

    transformers 5 writes `rope_parameters`, flat or one section per layer type; older files write `rope_scaling`,
    which applies to the full layers only where window layers have a base of their own.
    """
    section = fields.raw.get("rope_parameters")
    if section is None:
        section = fields.raw.get("rope_scaling") or {}
        if family.local_rope_theta is not None and kind == "sliding_attention":
            section = {}
    if isinstance(section, Mapping) and isinstance(section.get(kind), Mapping):
        section = section[kind]
    if not isinstance(section, Mapping):
        raise fields.fail("rope_parameters", f"must be an object, not {section!r}")
    return dict(section)
