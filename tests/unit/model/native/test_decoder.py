"""Steps in C: against PyTorch's path, whatever else is in the batch, and with int8 weights."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.kv.layout import Dtype
from shared.model.files.config import ModelConfig
from shared.model.files.convert import quantise_rows
from shared.model.files.stored import int8_tensors, stored_tensors
from shared.model.layers.batch import Batch, Span
from shared.model.layers.layer_weights import ModelWeights
from shared.model.pages.groups import PageGroups
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from tests.support.checkpoints import tables
from tests.support.kernels import kernels

PAGE = 16
LENGTH = 600  # several of the kernel's chunks of 128 positions
CONFIG: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,  # as a group: four, then three
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 133,
    "max_position_embeddings": 2048,
    "sliding_window": 150,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
}
MODEL = ModelConfig.from_dict(CONFIG, "test")


def random_weights(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {t.name: (torch.randn(t.shape, generator=generator) * 0.2).to(dtype) for t in stored_tensors(MODEL)}


def filled(model: Transformer, dtype: Dtype, lengths: list[int]) -> tuple[PagedKv, list[list[list[int]]]]:
    """Return a cache with a random prefix per sequence, each in scattered pages."""
    num_pages = sum(length // PAGE + 2 for length in lengths)
    layout = MODEL.kv_layout(PAGE, dtype)
    kv = PagedKv(layout, num_pages * len(PageGroups.of(layout).groups), PAGE)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(3)).tolist()
    found = []
    for seed, length in enumerate(lengths):
        own, order = tables(kv, order[: length // PAGE + 2]), order[length // PAGE + 2 :]
        ids = torch.randint(MODEL.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
        model.forward(ids, Batch.build([Span(own, 0, length)], PAGE), kv)
        found.append(own)
    return kv, found


def step(model: Transformer, kv: PagedKv, spans: list[Span], ids: list[int]) -> Tensor:
    return model.logits(model.forward(torch.tensor(ids), Batch.build(spans, PAGE), kv)).clone()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_kernels_equal_torch(dtype: Dtype, tolerance: float) -> None:
    weights = ModelWeights.build(MODEL, random_weights(getattr(torch, dtype)))
    native, reference = Transformer(MODEL, weights, kernels=kernels()), Transformer(MODEL, weights)
    assert native.uses_kernels
    assert not reference.uses_kernels
    lengths = [LENGTH, 3, 149, 150, 128, 127]
    kv, found = filled(reference, dtype, lengths)
    spans = [Span(own, length, 1 + i % 2) for i, (own, length) in enumerate(zip(found, lengths, strict=True))]
    ids = list(range(20, 20 + sum(span.num_tokens for span in spans)))
    expected = step(reference, kv, spans, ids)
    assert expected.std() > 0.5, "logits this small would hide an error"
    torch.testing.assert_close(step(native, kv, spans, ids), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
@pytest.mark.parametrize("num_tokens", [8, 9, 17, 63, 64, 300])
def test_steps_of_any_length_equal_torch(dtype: Dtype, tolerance: float, num_tokens: int) -> None:
    weights = ModelWeights.build(MODEL, random_weights(getattr(torch, dtype)))
    native, reference = Transformer(MODEL, weights, kernels=kernels()), Transformer(MODEL, weights)
    kv, found = filled(reference, dtype, [LENGTH])
    spans, ids = [Span(found[0], LENGTH - num_tokens, num_tokens)], [i % 133 for i in range(num_tokens)]
    torch.testing.assert_close(step(native, kv, spans, ids), step(reference, kv, spans, ids), atol=tolerance, rtol=0)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_row_does_not_depend_on_the_others(weights: str) -> None:
    """To the last bit, at any place, in any company, on any number of threads."""
    model, dtype = model_of(weights)
    lengths = [LENGTH, 30, 90, 250, *range(100, 340, 20)]
    counts = [1, 30, 17, 200, *[1] * 12]
    kv, found = filled(model, dtype, lengths)
    spans = [Span(own, length - count, count) for own, length, count in zip(found, lengths, counts, strict=True)]
    ids = [[(7 * i + t) % 133 for t in range(span.num_tokens)] for i, span in enumerate(spans)]
    alone = [step(model, kv, [span], ids[i]) for i, span in enumerate(spans)]
    try:
        for threads, chosen in ((1, range(16)), (2, [5, 0, 9]), (3, range(15, -1, -1)), (2, [0, 1]), (2, [3, 1, 0, 2])):
            torch.set_num_threads(threads)
            together = step(model, kv, [spans[i] for i in chosen], [token for i in chosen for token in ids[i]])
            row = 0
            for i in chosen:
                assert torch.equal(together[row : row + counts[i]], alone[i]), f"{threads} threads, span {i}"
                row += counts[i]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("num_tokens", [16, 17, 300])
def test_long_steps_may_be_left_to_torch(num_tokens: int) -> None:
    """As beside AMX: what is between the products stays in C."""
    weights = ModelWeights.build(MODEL, random_weights(torch.bfloat16))
    native, reference = Transformer(MODEL, weights, kernels=kernels()), Transformer(MODEL, weights)
    assert native._native is not None
    native._native.max_rows = 16
    kv, found = filled(reference, "bfloat16", [LENGTH])
    spans, ids = [Span(found[0], LENGTH - num_tokens, num_tokens)], [i % 133 for i in range(num_tokens)]
    torch.testing.assert_close(step(native, kv, spans, ids), step(reference, kv, spans, ids), atol=0.15, rtol=0)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 65])
def test_products_are_exact_but_for_the_rounding_of_activations(weights: str, rows: int) -> None:
    """At sizes that are no multiple of a tile: against sums in float64."""
    model, _ = model_of(weights)
    hidden = torch.randn(rows, MODEL.hidden_size, generator=torch.Generator().manual_seed(rows))
    head, norm = model._weights.head, model._weights.final_norm
    matrix = head.weight.double() if head.int8 is None else head.int8[0].double() * head.int8[1][:, None]
    normed = torch.nn.functional.rms_norm(hidden, norm.shape, norm, MODEL.norm_eps)
    if weights != "float32" and torch.cpu._is_avx512_bf16_supported():
        normed = normed.bfloat16()
    expected = normed.double() @ matrix.T
    assert (model.logits(hidden).double() - expected).abs().max() <= expected.abs().max() * 2**-11


@pytest.mark.parametrize("kv_only", [False, True])
def test_layers_one_by_one_give_the_same_bits(kv_only: bool) -> None:
    model, dtype = model_of("bfloat16")
    kv, found = filled(model, dtype, [12 * PAGE])
    batch, ids = Batch.build([Span(found[0], 6 * PAGE, 6 * PAGE)], PAGE), torch.arange(6 * PAGE)
    expected = model.forward(ids, batch, kv)
    pages = [kv.blocks_of(layer).clone() for layer in range(model.num_layers)]
    for layer in range(model.num_layers):
        own = found[0][kv.group_of(layer)][6:12]
        kv.keys_of(layer)[own] = kv.values_of(layer)[own] = 0

    hidden = model.embed(ids)
    for layer in range(model.num_layers):
        hidden = model.layer(layer, hidden, batch, kv, kv_only and layer == model.num_layers - 1)

    assert torch.equal(hidden, expected) != kv_only
    assert all(torch.equal(kv.blocks_of(layer), before) for layer, before in enumerate(pages))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_any_cut_of_a_prompt_gives_the_same_bits(weights: str) -> None:
    model, dtype = model_of(weights)
    ids = [i * i % 133 for i in range(LENGTH)]
    whole = cut(model, dtype, ids, [])
    for splits in ([1], [512], [16, 17, 150, 350], [LENGTH - 9, LENGTH - 1], list(range(90, LENGTH, 90))):
        for expected, actual in zip(whole, cut(model, dtype, ids, splits), strict=True):
            assert torch.equal(expected, actual), splits


def cut(model: Transformer, dtype: Dtype, ids: list[int], splits: list[int]) -> list[Tensor]:
    """Return the last logits and all K and V of a prompt that is computed in steps which end at `splits`."""
    layout = MODEL.kv_layout(PAGE, dtype)
    pages = len(ids) // PAGE + 2
    kv = PagedKv(layout, pages * len(PageGroups.of(layout).groups), PAGE)
    own = tables(kv, range(pages))
    steps = pairwise([0, *splits, len(ids)])
    logits = [step(model, kv, [Span(own, start, end - start)], ids[start:end]) for start, end in steps]
    return [logits[-1][-1], *(kv.keys_of(layer) for layer in range(3)), *(kv.values_of(layer) for layer in range(3))]


def model_of(weights: str) -> tuple[Transformer, Dtype]:
    """Return a model, in bfloat16 where its matrices are int8, and its dtype."""
    dtype: Dtype = "float32" if weights == "float32" else "bfloat16"
    tensors = random_weights(getattr(torch, dtype))
    int8 = {}
    for tensor in int8_tensors(MODEL):
        integers, scale = quantise_rows(tensors[tensor.name].float().numpy())
        int8[tensor.name] = torch.from_numpy(integers), torch.from_numpy(scale)
    built = ModelWeights.build(MODEL, tensors, int8 if weights == "int8" else None)
    model = Transformer(MODEL, built, kernels=kernels())
    assert model._native is not None
    model._native.max_rows = None  # beside AMX long steps would be left to PyTorch
    return model, dtype


def test_int8_weights_are_integers_times_scales() -> None:
    """A model of int8 weights is the model whose float weights are what the integers stand for."""
    weights = random_weights(torch.float32)
    int8, plain = {}, dict(weights)
    for tensor in int8_tensors(MODEL):
        integers, scale = map(torch.from_numpy, quantise_rows(weights[tensor.name].numpy()))
        int8[tensor.name] = (integers, scale)
        plain[tensor.name] = integers * scale[:, None]
        assert (plain[tensor.name] - weights[tensor.name]).abs().max() <= scale.max() / 2 + 1e-7
    embedding = "model.embed_tokens.weight"
    model = Transformer(MODEL, ModelWeights.build(MODEL, weights, int8), kernels=kernels())
    reference = ModelWeights.build(MODEL, plain)
    kv, found = filled(model, "float32", [LENGTH])
    span = Span(found[0], LENGTH, 1)
    expected = step(
        Transformer(MODEL, ModelWeights(weights[embedding], reference.layers, reference.final_norm, reference.head)),
        kv,
        [span],
        [11],
    )
    torch.testing.assert_close(step(model, kv, [span], [11]), expected, atol=1e-4, rtol=0)
