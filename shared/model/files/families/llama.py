"""Llama 2 and 3, and what is built like them: SmolLM2, Yi, TinyLlama."""

from shared.model.files.families.family import Family, GgufForm

LLAMA = Family("llama", "LlamaForCausalLM", GgufForm("llama", permutes_rope=True))
