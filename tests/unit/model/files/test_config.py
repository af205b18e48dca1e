"""Reading config.json: both spellings of rope settings, layer kinds, and complaints that name file and field."""

from typing import Any

import pytest
import transformers

from shared.errors import ModelFileError
from shared.model.files.config import ModelConfig
from shared.model.files.rope import RopeSpec
from shared.model.layers.rotary import inverse_frequencies
from tests.support.checkpoints import CONFIGS, LLAMA3_ROPE

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GEMMA = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 32}


def windows(raw: dict[str, Any]) -> list[int | None]:
    return [layer.window for layer in ModelConfig.from_dict(raw).layers]


def thetas(raw: dict[str, Any]) -> list[float]:
    return [layer.rope.theta for layer in ModelConfig.from_dict(raw).layers]


def test_old_and_new_rope_spellings_agree() -> None:
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = ModelConfig.from_dict(LLAMA | {"rope_theta": 10_000.0, "rope_scaling": scaling})
    assert old == ModelConfig.from_dict(LLAMA | {"rope_parameters": LLAMA3_ROPE})
    assert old.layers[0].rope.kind == "llama3"


def test_gemma_defaults_from_an_old_config() -> None:
    raw = GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert windows(raw) == [32, 32, 32, 32, 32, None, 32]
    assert thetas(raw) == [1e4] * 5 + [1e6, 1e4]
    assert [layer.rope.factor for layer in ModelConfig.from_dict(raw).layers] == [1] * 5 + [8, 1]


def test_multimodal_gemma_is_read_through_its_text_config() -> None:
    assert ModelConfig.from_dict({"model_type": "gemma3", "text_config": GEMMA}) == ModelConfig.from_dict(GEMMA)


def test_qwen2_windows_only_when_switched_on() -> None:
    raw = LLAMA | {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1}
    assert windows(raw) == [None, None]
    assert windows(raw | {"use_sliding_window": True}) == [None, 16]


def test_kv_layout() -> None:
    layout = ModelConfig.from_dict(GEMMA).kv_layout(64, "bfloat16")
    assert layout.num_layers == 7
    assert layout.entry_bytes(0) == 2 * 64 * 2 * 16 * 2
    assert [group.window for group in layout.groups] == [32, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "dir/config.json: model_type 'mamba' is not supported"),
        ({"hidden_size": None}, "dir/config.json: field 'hidden_size' is missing"),
        ({"hidden_size": "64"}, "field 'hidden_size' must be a positive integer"),
        ({"num_key_value_heads": 3}, "field 'num_key_value_heads' .* must divide"),
        ({"hidden_act": "relu6"}, "field 'hidden_act' .*relu6"),
        ({"final_logit_softcapping": 30.0}, "field 'final_logit_softcapping'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"layer_types": ["full_attention"]}, "field 'layer_types'"),
    ],
)
def test_errors_name_file_and_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        ModelConfig.from_dict(LLAMA | change, source="dir/config.json")


def test_not_an_object() -> None:
    with pytest.raises(ModelFileError, match="expected a JSON object"):
        ModelConfig.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_frequencies_are_bit_equal_to_transformers(name: str) -> None:
    """A frequency that is off by one bit is off by a growing angle at each later position."""
    raw = {k: v for k, v in CONFIGS[name].items() if k != "query_pre_attn_scalar"}
    oracle = transformers.AutoConfig.for_model(**raw, head_dim=16, num_hidden_layers=3)
    sections = oracle.rope_parameters
    for section in sections.values() if "full_attention" in sections else [sections]:
        spec = RopeSpec.from_dict(section, name)
        if spec.kind == "default":
            continue  # transformers computes it inside the model; the logits tests cover it
        oracle.rope_parameters = section
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        expected, _ = ROPE_INIT_FUNCTIONS[spec.kind](oracle, "cpu")
        assert inverse_frequencies(spec, 16).equal(expected)
