"""What sets one family of Llama-like decoders apart: defaults of its `config.json`, and how its files are written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared.model.files.families.fields import ConfigFields

LayerKind = Literal["full_attention", "sliding_attention"]
Metadata = Callable[..., Any]
"""Returns a field of a GGUF file's metadata by its name without the architecture's prefix, or the given default."""


def all_full(_fields: ConfigFields, num_layers: int) -> list[LayerKind]:
    """Return the kinds of layers of a decoder without windows."""
    return ["full_attention"] * num_layers


def by_attention_bias(fields: ConfigFields) -> tuple[bool, bool]:
    """Return whether q, k, v and the output projection have biases, by one flag for all four."""
    bias = fields.flag("attention_bias", default=False)
    return bias, bias


def by_head_dim(_fields: ConfigFields, head_dim: int) -> float:
    """Return what queries are scaled by the inverse root of: the size of a head."""
    return float(head_dim)


def nothing_more(_config: Mapping[str, Any], _field: Metadata) -> dict[str, Any]:
    """Return the fields of `config.json` that a GGUF file spells in its own way: none."""
    return {"hidden_act": "silu"}


@dataclass(frozen=True)
class GgufForm:
    """How llama.cpp writes the files of a family."""

    architecture: str  # `general.architecture`
    permutes_rope: bool = False  # q and k rows are reordered, for a rope that rotates neighbours instead of halves
    stored_norm_offset: float = 0.0  # was added to every norm weight
    more_fields: Callable[[Mapping[str, Any], Metadata], dict[str, Any]] = nothing_more
    tensors_tell_bias: bool = True  # `attention_bias` is whether there is a bias tensor


@dataclass(frozen=True)
class Family:
    """One family. The defaults are Llama's; a family states only where it differs.

    The forward pass never asks for the family: everything here ends in fields of `ModelConfig`.
    """

    model_type: str  # Hugging Face's
    architecture: str  # Hugging Face's class
    gguf: GgufForm | None = None  # None: llama.cpp files this family under another one, or not at all
    default_head_dim: int | None = None  # None: hidden_size / heads
    default_rope_theta: float = 10_000.0
    local_rope_theta: str | None = None  # the field with the base of window layers; None: they have no other one
    layer_kinds: Callable[[ConfigFields, int], list[LayerKind]] = all_full
    biases: Callable[[ConfigFields], tuple[bool, bool]] = by_attention_bias
    query_scalar: Callable[[ConfigFields, int], float] = by_head_dim
    activation_field: str = "hidden_act"
    default_activation: str = "silu"
    norm_offset: float = 0.0  # added to every norm weight
    scales_embeddings: bool = False  # by the root of hidden_size
    qk_norm: bool = False  # queries and keys are normed in each head
    sandwich_norms: bool = False  # norms after attention and after the MLP too
    ties_embeddings: bool = False  # by default
