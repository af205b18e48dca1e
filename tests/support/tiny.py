"""Tiny random models in memory: the suite's own classes, no files."""

import random
from functools import lru_cache
from pathlib import Path

import torch

from shared.engine.loaded import LoadedModel
from shared.ids import ModelFingerprint
from shared.model.files.catalog import ModelFiles
from shared.model.files.config import ModelConfig
from shared.model.files.stored import stored_tensors
from shared.model.layers.batch import Batch, Span
from shared.model.layers.layer_weights import ModelWeights
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from tests.support.kernels import kernels

torch.set_num_threads(1)  # two threads fight over matrices this small

VOCAB_SIZE, MAX_MODEL_LEN = 199, 2048

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}

GEMMA3 = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 16,
    "sliding_window": 100,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}

MODELS = {"llama": LLAMA, "gemma3": GEMMA3}
BYTES = {"bytes": {**LLAMA, "vocab_size": 288, "eos_token_id": 2}}  # the tokenizer is in `structured.py`


def tiny_model(name: str, num_pages: int = 128, block_tokens: int = 64, directory: Path | None = None) -> LoadedModel:
    """Return a float32 model whose weights depend on its name only, with pages of its own.

    `directory` has its tokenizer; by default it has none.
    """
    config = ModelConfig.from_dict((MODELS | BYTES)[name], name)
    generator = torch.Generator().manual_seed(1)
    weights = {
        t.name: torch.ones(t.shape) if "norm" in t.name else torch.randn(t.shape, generator=generator) * 0.2
        for t in stored_tensors(config)
    }
    layout = config.kv_layout(block_tokens, "float32")
    files = ModelFiles(name, directory or Path(name), ModelFingerprint(name), Path(name), Path(name))
    kv = PagedKv(layout, num_pages, block_tokens)
    transformer = Transformer(config, ModelWeights.build(config, weights), kernels=kernels())
    return LoadedModel(files, config, layout, transformer, kv, config.max_context)


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    """Return random tokens without the one that ends a text."""
    rng = random.Random(seed)
    return [rng.randrange(1, VOCAB_SIZE) for _ in range(num_tokens)]


@lru_cache
def _oracle(name: str) -> LoadedModel:
    return tiny_model(name)


def greedy_reference(name: str, token_ids: list[int], num_tokens: int) -> list[int]:
    """Generate in one process: the whole prompt in one pass, then token by token; no blocks, no pool, no sharing."""
    model = _oracle(name)
    tokens = list(token_ids)
    reservation = model.kv.reserve([], len(tokens) + num_tokens)
    assert reservation is not None, "the oracle's pages are too few"
    start = 0
    for _ in range(num_tokens):
        batch = Batch.build([Span(reservation.tables, start, len(tokens) - start)], model.kv.page_tokens)
        hidden = model.transformer.forward(torch.tensor(tokens[start:]), batch, model.kv)
        start = len(tokens)
        tokens.append(int(model.transformer.logits(hidden[-1:]).argmax()))
    model.kv.release(reservation)
    return tokens[len(token_ids) :]
