"""What a Hugging Face `config.json` says about a decoder, as one frozen dataclass for every supported family."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shared.errors import ModelFileError
from shared.kv.layout import Dtype, KvLayout, LayerSpec
from shared.model.files.rope import RopeSpec

Activation = Literal["silu", "gelu_tanh"]
FAMILIES: Final = ("llama", "qwen2", "qwen3", "gemma3_text")
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
        fields = _Fields(raw, source)
        family = fields.text("model_type")
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ModelFileError(f"{source}: model_type {family!r} is not supported (supported: {known})")
        return _build(family, fields)


class _Fields:
    """Typed access to a config whose every complaint names file and field."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def fail(self, field: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.source}: field {field!r} {problem}")

    def _get(self, field: str, default: Any) -> Any:
        value = self.raw.get(field)
        if value is None:
            if default is None:
                raise self.fail(field, "is missing")
            return default
        return value

    def integer(self, field: str, default: int | None = None) -> int:
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(field, f"must be a positive integer, not {value!r}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.fail(field, f"must be a positive number, not {value!r}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self._get(field, default)
        if not isinstance(value, bool):
            raise self.fail(field, f"must be true or false, not {value!r}")
        return value

    def text(self, field: str) -> str:
        value = self._get(field, None)
        if not isinstance(value, str):
            raise self.fail(field, f"must be a string, not {value!r}")
        return value


def _build(family: str, fields: _Fields) -> ModelConfig:
    gemma = family == "gemma3_text"
    for field in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if fields.raw.get(field):
            raise fields.fail(field, "asks for a feature that is not supported")
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads", default=None)
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.fail("num_key_value_heads", f"({num_kv_heads}) must divide num_attention_heads ({num_heads})")
    default_head_dim = {"gemma3_text": 256, "qwen3": 128}.get(family, hidden_size // num_heads)
    head_dim = fields.integer("head_dim", default=default_head_dim)
    if head_dim % 2:
        raise fields.fail("head_dim", f"must be even for rotary embeddings, not {head_dim}")
    attention_bias = fields.flag("attention_bias", default=False)
    query_scalar = fields.number("query_pre_attn_scalar", default=256) if gemma else float(head_dim)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=_layers(family, fields),
        max_context=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        norm_offset=1.0 if gemma else 0.0,
        activation=_activation(fields, "hidden_activation" if gemma else "hidden_act", gemma),
        attention_scale=query_scalar**-0.5,
        embedding_scale=hidden_size**0.5 if gemma else 1.0,
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias and family != "qwen2",
        mlp_bias=fields.flag("mlp_bias", default=False),
        qk_norm=family in ("qwen3", "gemma3_text"),
        sandwich_norms=gemma,
        tied_embeddings=fields.flag("tie_word_embeddings", default=gemma),
        eos_token_ids=_token_ids(fields, "eos_token_id"),
    )


def _activation(fields: _Fields, field: str, gemma: bool) -> Activation:
    value = fields.raw.get(field) or ("gelu_pytorch_tanh" if gemma else "silu")
    if value not in _ACTIVATIONS:
        raise fields.fail(field, f"names an activation that is not supported: {value!r}")
    return _ACTIVATIONS[value]


def _token_ids(fields: _Fields, field: str) -> tuple[int, ...]:
    value = fields.raw.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise fields.fail(field, f"must hold token ids, not {value!r}")
    return tuple(ids)


def _layers(family: str, fields: _Fields) -> tuple[LayerConfig, ...]:
    kinds = _layer_kinds(family, fields)
    window = fields.integer("sliding_window", default=4096) if "sliding_attention" in kinds else None
    default_theta = {"gemma3_text": 1_000_000.0}.get(family, 10_000.0)
    specs: dict[str, LayerConfig] = {}
    for kind in set(kinds):
        local = kind == "sliding_attention"
        rope = _rope_section(fields, kind)
        theta = rope.get("rope_theta")
        if theta is None and family == "gemma3_text" and local:
            theta = fields.raw.get("rope_local_base_freq", 10_000.0)
        if theta is None:
            theta = fields.raw.get("rope_theta", default_theta)
        spec = RopeSpec.from_dict({**rope, "rope_theta": theta}, f"{fields.source}: rope parameters")
        specs[kind] = LayerConfig(window if local else None, spec)
    return tuple(specs[kind] for kind in kinds)


def _layer_kinds(family: str, fields: _Fields) -> list[str]:
    num_layers = fields.integer("num_hidden_layers")
    kinds = fields.raw.get("layer_types")
    if kinds is not None:
        known = {"full_attention", "sliding_attention"}
        if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= known:
            raise fields.fail("layer_types", f"must hold {num_layers} of {sorted(known)}")
        return kinds
    if family == "gemma3_text":
        pattern = fields.integer("sliding_window_pattern", default=6)
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]
    if family in ("qwen2", "qwen3") and fields.flag("use_sliding_window", default=False):
        first = fields.raw.get("max_window_layers", 28)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    return ["full_attention"] * num_layers


def _rope_section(fields: _Fields, kind: str) -> dict[str, Any]:
    """Return the rope settings of one kind of layer, from either spelling.

    transformers 5 writes `rope_parameters`, flat or one section per layer type; older files write `rope_scaling`,
    which for Gemma 3 applies to the full layers only.
    """
    section = fields.raw.get("rope_parameters")
    if section is None:
        section = fields.raw.get("rope_scaling") or {}
        if fields.raw["model_type"] == "gemma3_text" and kind == "sliding_attention":
            section = {}
    if isinstance(section, Mapping) and isinstance(section.get(kind), Mapping):
        section = section[kind]
    if not isinstance(section, Mapping):
        raise fields.fail("rope_parameters", f"must be an object, not {section!r}")
    return dict(section)
