"""Qwen 2 and 2.5: biases at q, k and v; windows in the upper layers, if they are switched on."""

from shared.model.files.families.family import Family, GgufForm, LayerKind
from shared.model.files.families.fields import ConfigFields


def layer_kinds(fields: ConfigFields, num_layers: int) -> list[LayerKind]:
    """Return windows from `max_window_layers` on, if `use_sliding_window` says so."""
    first = fields.raw.get("max_window_layers", 28) if fields.flag("use_sliding_window", default=False) else num_layers
    return ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    GgufForm("qwen2", tensors_tell_bias=False),
    layer_kinds=layer_kinds,
    biases=lambda _fields: (True, False),
)
