"""Operations and bytes against counts made by hand."""

import pytest

from benchmarks.roofline import (
    H100,
    LLAMA_8B,
    Limits,
    Sizes,
    Work,
    decode,
    head_parameters,
    kv_bytes,
    layer_parameters,
    prefill,
)
from shared.model.files.config import ModelConfig
from tests.support.tiny import GEMMA3, LLAMA

TINY = ModelConfig.from_dict(LLAMA)
WINDOWED = ModelConfig.from_dict(GEMMA3)
LARGE = ModelConfig.from_dict(LLAMA_8B)


def test_parameters_of_an_8b_model() -> None:
    assert layer_parameters(LARGE) == 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    assert layer_parameters(LARGE) + 2 * head_parameters(LARGE) == pytest.approx(8.03e9, rel=0.001)


def attended_by_hand(config: ModelConfig, num_tokens: int) -> int:
    return sum(
        min(position + 1, layer.window or position + 1) for layer in config.layers for position in range(num_tokens)
    )


@pytest.mark.parametrize("config", [TINY, WINDOWED])
@pytest.mark.parametrize("num_tokens", [1, 99, 100, 101, 300])
def test_prefill_operations_count_each_query_with_each_key_it_sees(config: ModelConfig, num_tokens: int) -> None:
    matrices = 2 * layer_parameters(config) * num_tokens + 2 * head_parameters(config)
    attention = 4 * config.num_heads * config.head_dim * attended_by_hand(config, num_tokens)
    assert prefill(config, num_tokens).operations == matrices + attention


def test_chunks_read_weights_and_earlier_kv_again() -> None:
    kv = 2 * TINY.num_kv_heads * TINY.head_dim * 2 * TINY.num_layers
    whole, chunked = prefill(TINY, 256), prefill(TINY, 256, 64)
    assert chunked.operations == whole.operations
    assert chunked.num_bytes - whole.num_bytes == 3 * 2 * layer_parameters(TINY) + (64 + 128 + 192) * kv


def test_a_last_chunk_that_is_not_full_reads_no_more_than_there_is() -> None:
    assert prefill(TINY, 100, 64).num_bytes < prefill(TINY, 128, 64).num_bytes


def test_a_decode_step_reads_weights_once_and_kv_for_each_sequence() -> None:
    one, eight = decode(TINY, 1, 99), decode(TINY, 8, 99)
    kv = 100 * 2 * TINY.num_kv_heads * TINY.head_dim * 2 * TINY.num_layers
    assert eight.num_bytes - one.num_bytes == 7 * kv
    assert eight.operations == 8 * one.operations


def test_windowed_layers_stop_growing() -> None:
    full = sum(layer.window is None for layer in WINDOWED.layers)
    token = 2 * WINDOWED.num_kv_heads * WINDOWED.head_dim * 2
    assert kv_bytes(WINDOWED, 1000) - kv_bytes(WINDOWED, 900) == 100 * full * token
    assert decode(WINDOWED, 1, 1000).num_bytes - decode(WINDOWED, 1, 900).num_bytes == 100 * full * token


def test_smaller_weights_are_read_faster() -> None:
    bound = decode(LARGE, 1, 512).least_seconds(H100)
    assert decode(LARGE, 1, 512, Sizes(weight=1)).least_seconds(H100) == pytest.approx(bound / 2, rel=0.01)


def test_the_nearer_limit_decides() -> None:
    limits = Limits(operations_per_s=100, bytes_per_s=10)
    assert Work(1000, 50).least_seconds(limits) == 10
    assert Work(1000, 50).bound(limits) == "compute"
    assert Work(100, 50).least_seconds(limits) == 5
    assert Work(100, 50).bound(limits) == "memory"
    assert Work(100, 50).intensity == 2
