"""`transformers` on the model's own GGUF file, dequantised: bfloat16, scaled_dot_product_attention, its own cache."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.peers.protocol import serve


def load(gguf: Path) -> Any:
    """Return the model in bfloat16."""
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()


def export(gguf: Path, directory: Path) -> None:
    """Write the model as a Hugging Face directory, for engines that read nothing else."""
    model = load(gguf)
    model.hf_quantizer = None  # it came from a quantised file, its weights are plain numbers now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(directory)


class Transformers:
    """The whole prompt in one pass with logits for its last token only, then one token a pass."""

    def __init__(self, gguf: Path, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._model = load(gguf)

    def about(self) -> dict[str, Any]:
        return {"version": transformers.__version__, "torch": torch.__version__}

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._step(torch.tensor([prompt]), transformers.DynamicCache(config=self._model.config))
        return time.perf_counter() - started

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        cache = transformers.DynamicCache(config=self._model.config)
        tokens = self._step(torch.tensor(prompts), cache)
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            tokens = self._step(tokens, cache)
            seconds.append(time.perf_counter() - started)
        return seconds

    def _step(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Return the next token of each row, `[batch, 1]`."""
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        next_ids: torch.Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
        next_ids.tolist()  # a server has to know them
        return next_ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--export", type=Path, metavar="DIR", help="write a Hugging Face directory instead")
    options = parser.parse_args()
    if options.export is not None:
        export(options.gguf, options.export)
    else:
        serve(lambda: Transformers(options.gguf, options.threads))
