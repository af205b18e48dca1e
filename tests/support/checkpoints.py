"""Tiny random checkpoints of every family, made by transformers, and this suite's model loaded from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from shared.model.attention.base import Attention
from shared.model.files.catalog import ensure_weights, resolve
from shared.model.files.config import ModelConfig
from shared.model.layers.batch import Batch, Span
from shared.model.pages.groups import PageGroups
from shared.model.pages.kv import PagedKv
from shared.model.transformer import Transformer
from tests.support.kernels import cache_with_kernels, kernels

VOCAB = 300
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama-tied-mha": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama3-rope": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_theta": 5000.0},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": 11},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 24,
    },
}


@dataclass
class Tiny:
    """One checkpoint, the oracle that wrote it and our model read from it."""

    path: Path
    oracle: Any
    config: ModelConfig
    model: Transformer

    def cache(self, num_pages: int = 16, page_tokens: int = 8) -> PagedKv:
        """Return pages for `tables`, `num_pages` for each page group."""
        layout = self.config.kv_layout(page_tokens, "float32")
        return PagedKv(layout, num_pages * len(PageGroups.of(layout).groups), page_tokens)

    def expected(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.as_tensor(self.oracle(torch.tensor([list(ids)])).logits[0])

    def with_attention(self, attention: Attention) -> Transformer:
        files = resolve(str(self.path), self.path / "cache")
        return Transformer.load(
            self.config, ensure_weights(files, "float32"), "float32", attention=attention, kernels=kernels()
        )

    def without_kernels(self) -> Transformer:
        files = resolve(str(self.path), self.path / "cache")
        return Transformer.load(self.config, ensure_weights(files, "float32"), "float32")


def save_checkpoint(name: str, path: Path) -> Any:
    """Write the checkpoint `name` of `CONFIGS` with a byte-level tokenizer, and return the model behind it."""
    settings = _COMMON | CONFIGS[name]
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(**settings)
    automodel: Any = transformers.AutoModelForCausalLM
    oracle = automodel.from_config(config).eval()
    for parameter_name, parameter in oracle.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:  # trivial at birth: they would hide mistakes
            parameter.data.normal_(mean=0.5, std=0.3)
    oracle.save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return oracle


def served(folder: Path) -> dict[str, str]:
    """Write a checkpoint whose context is 16,384 tokens; return the settings of a suite that serves it, exactly."""
    path = folder / "model"
    save_checkpoint("llama", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
    return {
        "PRFAAS_MODEL": str(path),
        "PRFAAS_CACHE_DIR": str(cache_with_kernels(folder)),
        "PRFAAS_DTYPE": "float32",
        "PRFAAS_KV_BYTES": "512MiB",
        "PRFAAS_THREADS": "1",
    }


def load(name: str, path: Path) -> Tiny:
    oracle = save_checkpoint(name, path)
    files = resolve(str(path), path / "cache")
    model = Transformer.load(files.config(), ensure_weights(files, "float32"), "float32", kernels=kernels())
    return Tiny(path, oracle, files.config(), model)


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer: three special tokens, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    return tokenizer


def random_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, VOCAB, (count,), generator=generator).tolist()
    return ids


def tables(kv: PagedKv, pages: Sequence[int]) -> list[list[int]]:
    """Return the tables of a sequence that has the pages `pages` in each group's own part of the pool."""
    part = kv.num_pages // kv.num_groups
    return [[group * part + page for page in pages] for group in range(kv.num_groups)]


def run(
    model: Transformer, kv: PagedKv, pages: Sequence[int], ids: Sequence[int], splits: Sequence[int]
) -> torch.Tensor:
    """Run `ids` as one sequence in chunks that end at `splits`; return the logits of every position."""
    hidden = []
    start = 0
    for end in [*splits, len(ids)]:
        batch = Batch.build([Span(tables(kv, pages), start, end - start)], kv.page_tokens)
        hidden.append(model.forward(torch.tensor(ids[start:end]), batch, kv))
        start = end
    return model.logits(torch.cat(hidden))
