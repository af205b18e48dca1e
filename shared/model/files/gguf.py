"""GGUF model files in Hugging Face's terms: config, special tokens, chat template, and weights by their HF names."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from shared.errors import ModelFileError
from shared.model.files.families import BY_GGUF_ARCHITECTURE, BY_MODEL_TYPE
from shared.model.files.gguf_file import GgufFile
from shared.model.files.safetensors_file import Rows
from shared.model.files.stored import Shape

_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_SANDWICH_NAMES = {  # with norms on both sides of the MLP, llama.cpp's `ffn_norm` is the one before it
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Return the `config.json` that the checkpoint behind this file has. Raises `ModelFileError`."""
    meta = file.metadata
    architecture = meta.get("general.architecture")
    family = BY_GGUF_ARCHITECTURE.get(str(architecture))
    if family is None or family.gguf is None:
        known = ", ".join(BY_GGUF_ARCHITECTURE)
        raise ModelFileError(f"{file.path}: architecture {architecture!r} is not supported (supported: {known})")

    def field(name: str, default: Any = None) -> Any:
        value = meta.get(f"{architecture}.{name}", default)
        if value is None:
            raise ModelFileError(f"{file.path}: field '{architecture}.{name}' is missing")
        return value

    for feature in ("attn_logit_softcapping", "final_logit_softcapping", "expert_count"):
        if meta.get(f"{architecture}.{feature}"):
            raise ModelFileError(f"{file.path}: field '{architecture}.{feature}' asks for an unsupported feature")
    heads, hidden = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", hidden // heads)
    if field("rope.dimension_count", head_dim) != head_dim:
        raise ModelFileError(f"{file.path}: field '{architecture}.rope.dimension_count' differs from the head size")
    config = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": len(meta.get("tokenizer.ggml.tokens", ())) or field("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, str(architecture)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": family.gguf.tensors_tell_bias and "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos_token_ids(file),
    }
    return config | family.gguf.more_fields(config, field)


def _rope(file: GgufFile, architecture: str) -> dict[str, Any]:
    meta = file.metadata
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": meta.get(f"{architecture}.rope.freq_base", 10_000.0)}
    scaling = meta.get(f"{architecture}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": meta[f"{architecture}.rope.scaling.factor"]}
    elif scaling not in ("none", ""):
        rope["rope_type"] = scaling  # refused, by name, when the config is read
    if "rope_freqs.weight" in file.tensors:
        factors = np.concatenate(list(file.rows("rope_freqs.weight")))
        rope |= {"rope_type": "factors", "factors": [float(f) for f in factors]}
    return rope


def eos_token_ids(file: GgufFile) -> list[int]:
    """Return the tokens that end a generation: end of text and, for chat models, end of turn."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [file.metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return list(dict.fromkeys(int(i) for i in found if i is not None))


_SAMPLING_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""GGUF's names of what Hugging Face's `generation_config.json` recommends."""


def sampling_defaults(file: GgufFile) -> dict[str, float]:
    """Return how a file recommends to choose tokens, in Hugging Face's words; most files say nothing."""
    found: dict[str, float] = {}
    for name, key in _SAMPLING_KEYS.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is not None:
            found[name] = value if isinstance(value, int) else round(value, 6)  # a float32: 0.6 is 0.60000002
    return found


class GgufWeights:
    """A GGUF file's tensors by Hugging Face name, with llama.cpp's rearrangements undone."""

    def __init__(self, file: GgufFile, config: dict[str, Any]) -> None:
        self._file = file
        self._config = config
        family = BY_MODEL_TYPE[config["model_type"]]
        assert family.gguf is not None, "a config that was read from a GGUF file"
        self._form = family.gguf
        self._names = _LAYER_NAMES | (_SANDWICH_NAMES if family.sandwich_norms else {})
        self.source = str(file.path)

    def shape(self, name: str) -> Shape | None:
        tensor = self._file.tensors.get(self._gguf_name(name))
        return None if tensor is None else tensor.shape

    def rows(self, name: str) -> Iterator[Rows]:
        """Yield one tensor as float32 slices of its first axis."""
        slices = self._file.rows(self._gguf_name(name))
        if self._form.stored_norm_offset and name.endswith("norm.weight"):
            offset = np.float32(self._form.stored_norm_offset)
            return (part - offset for part in slices)
        if self._form.permutes_rope and ".self_attn.q_proj." in name:
            return iter([_unpermute(np.concatenate(list(slices)), self._config["num_attention_heads"])])
        if self._form.permutes_rope and ".self_attn.k_proj." in name:
            return iter([_unpermute(np.concatenate(list(slices)), self._config["num_key_value_heads"])])
        return slices

    def _gguf_name(self, name: str) -> str:
        if name in _GLOBAL_NAMES:
            return _GLOBAL_NAMES[name]
        _, _, layer, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{self._names[module]}.{kind}"


def _unpermute(weights: Rows, num_heads: int) -> Rows:
    """Undo llama.cpp's reordering of q and k rows, made for a rope that rotates neighbours instead of halves."""
    pairs = weights.reshape(num_heads, weights.shape[0] // num_heads // 2, 2, *weights.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weights.shape)
