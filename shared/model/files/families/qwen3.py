"""Qwen 3: queries and keys are normed in each head; windows as in Qwen 2."""

from shared.model.files.families.family import Family, GgufForm
from shared.model.files.families.qwen2 import layer_kinds

QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    GgufForm("qwen3"),
    default_head_dim=128,
    layer_kinds=layer_kinds,
    qk_norm=True,
)
