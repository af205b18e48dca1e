"""GGUF to Hugging Face: a tiny checkpoint of each family written as llama.cpp would, read back and compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from shared.errors import ModelFileError
from shared.model.files.catalog import ensure_weights, resolve
from shared.model.files.gguf_file import GgufFile
from shared.model.files.gguf_tokenizer import build_tokenizer
from shared.model.pages.kv import PagedKv
from shared.model.text.tokenizer import Tokenizer
from shared.model.transformer import Transformer
from tests.support.checkpoints import Tiny, byte_tokenizer, load, random_ids, run

_ARCHITECTURE = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
_NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def write_gguf(tiny: Tiny, name: str, path: Path, sampling: Mapping[str, float] = {}) -> Path:
    """Write a checkpoint as llama.cpp's converter does, in float32: permuted q and k, Gemma's norms plus one.

    `sampling`: what it recommends."""
    architecture = _ARCHITECTURE[name]
    writer = gguf.GGUFWriter(path, architecture)
    config = tiny.oracle.config
    for key, value in sampling.items():
        if isinstance(value, int):
            writer.add_int32(f"general.sampling.{key}", value)
        else:
            writer.add_float32(f"general.sampling.{key}", value)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1_000_000.0)
    if architecture == "qwen3":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)
    _add_tokenizer(writer)
    for key, tensor in tiny.oracle.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        writer.add_tensor(_gguf_name(key, architecture), _gguf_values(key, tensor, tiny, architecture))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocab = sorted(byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [*(token for token, _ in vocab), "he", "ll", "hell"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), 300)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}<{{ m['content'] }}>{% endfor %}")


def _gguf_name(key: str, architecture: str) -> str:
    module, kind = key.rsplit(".", 1)
    names = _NAMES | {"post_attention_layernorm": "ffn_norm"}
    if architecture == "gemma3":
        names |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    short = names.get(module) or names[module.rsplit(".", 1)[-1]]
    return f"blk.{module.split('.')[2]}.{short}.{kind}" if ".layers." in module else f"{short}.{kind}"


def _gguf_values(key: str, tensor: torch.Tensor, tiny: Tiny, architecture: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = tensor.float().numpy()
    if architecture == "gemma3" and "norm" in key:
        return values + np.float32(1)
    if architecture == "llama" and ("q_proj" in key or "k_proj" in key):
        heads = tiny.config.num_heads if "q_proj" in key else tiny.config.num_kv_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values


@pytest.fixture(params=sorted(_ARCHITECTURE))
def converted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tiny, Path]:
    name: str = request.param
    tiny = load(name, tmp_path / "hf")
    if name == "gemma3":  # what a GGUF file cannot say, transformers and llama.cpp assume
        tiny.oracle.config.layer_types = ["sliding_attention"] * 3
        for layer in tiny.oracle.model.layers:
            layer.self_attn.scaling = 16**-0.5
            layer.layer_type = layer.self_attn.layer_type = "sliding_attention"
            layer.self_attn.sliding_window, layer.self_attn.is_sliding = 12, True
    return tiny, write_gguf(tiny, name, tmp_path / f"{name}.gguf")


def test_a_gguf_file_gives_the_checkpoint_s_logits(converted: tuple[Tiny, Path], tmp_path: Path) -> None:
    tiny, path = converted
    files = resolve(str(path), tmp_path / "cache")
    config = files.config()
    model = Transformer.load(config, ensure_weights(files, "float32"), "float32")
    ids = random_ids(40)
    kv = PagedKv(config.kv_layout(8, "float32"), 8, 8)
    expected = tiny.expected(ids)
    torch.testing.assert_close(run(model, kv, range(5), ids, [17]), expected, atol=1e-4, rtol=0)
    tokenizer = Tokenizer.load(files.path)
    ids = tokenizer.encode("hello </s>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode([ids[1]]) == "hell"
    assert tokenizer.decode(ids) == "hello "
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.chat.render([{"role": "user", "content": "x"}]) == "<s><x>"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(load("llama", tmp_path / "hf"), "llama", tmp_path / "model.gguf")


def test_what_it_recommends_for_sampling_is_kept(tmp_path: Path) -> None:
    sampling = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05, "mirostat": 1}
    path = write_gguf(load("llama", tmp_path / "hf"), "llama", tmp_path / "model.gguf", sampling)
    said = json.loads((resolve(str(path), tmp_path / "cache").path / "generation_config.json").read_text())
    recommended = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    assert said == {"eos_token_id": said["eos_token_id"], **recommended}


def test_quantised_blocks_are_dequantised_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((10, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr("shared.model.files.safetensors_file._SLICE_ELEMENTS", 200)
    slices = list(GgufFile(tmp_path / "q.gguf").rows("w"))
    assert [len(part) for part in slices] == [3, 3, 3, 1]
    expected = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(np.concatenate(slices), expected)


@pytest.mark.parametrize("length", [0, 3, 30, 500, 9000])
def test_a_cut_off_file_is_named(gguf_file: Path, tmp_path: Path, length: int) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:length])
    with pytest.raises(ModelFileError, match=r"damaged\.gguf: "):
        resolve(str(damaged), tmp_path / "cache")


def test_a_file_cut_in_its_weights_is_named(gguf_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match=r"damaged\.gguf: cut off: tensor"):
        resolve(str(damaged), tmp_path / "cache")


def test_a_vocabulary_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"m\.gguf: tokenizer.ggml.merges holds"):
        build_tokenizer(GgufFile(tmp_path / "m.gguf"))


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time " * 100)
    with pytest.raises(ModelFileError, match="does not start with the letters GGUF"):
        resolve(str(path), tmp_path / "cache")


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="architecture 'mamba' is not supported"):
        resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")
