"""A model directory of random weights, in the shape of a real model, for processes that load their model from files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.device.shapes import config_of, random_weights
from shared.model.files import safetensors_file
from shared.model.files.catalog import resolve
from shared.model.files.convert import file_tensors
from shared.model.files.safetensors_file import Tensor


def write_model(directory: Path, cache_dir: Path, shape: Mapping[str, Any], device: torch.device) -> None:
    """Make `directory` a model of `shape`, its weights where conversion would have put them.

    Every token is a word of its own: `t0`, `t1`, ...
    """
    directory.mkdir(parents=True)
    config = config_of(shape)
    (directory / "config.json").write_text(json.dumps({**shape, "eos_token_id": config.vocab_size - 1}))
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(config.vocab_size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"), pretty=False)
    # What the fingerprint is made of, in place of a checkpoint that nobody reads.
    mark = np.zeros(1, dtype=np.float32)
    safetensors_file.write(directory / "model.safetensors", [Tensor("random", "F32", (1,))], [mark])
    files = resolve(str(directory), cache_dir)
    files.weights_dir.mkdir(parents=True)
    weights = random_weights(config, torch.bfloat16, device)

    def chunks() -> Iterator[NDArray[Any]]:
        for tensor in file_tensors(config, "bfloat16"):
            yield weights[tensor.name].cpu().view(torch.uint16).numpy()

    path = files.weights_dir / "weights-bfloat16.safetensors"
    safetensors_file.write(path, file_tensors(config, "bfloat16"), chunks())
