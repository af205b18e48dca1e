"""Mistral 7B and its kin: Llama with one window for all layers, or none. llama.cpp files them under `llama`."""

from shared.model.files.families.family import Family, LayerKind
from shared.model.files.families.fields import ConfigFields


def layer_kinds(fields: ConfigFields, num_layers: int) -> list[LayerKind]:
    """Return one kind for all layers: windows if the configuration names one."""
    kind: LayerKind = "full_attention" if fields.raw.get("sliding_window") is None else "sliding_attention"
    return [kind] * num_layers


MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    layer_kinds=layer_kinds,
    biases=lambda _fields: (False, False),
)
