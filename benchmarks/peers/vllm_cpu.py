"""vLLM's CPU build, in one process, on a Hugging Face directory in bfloat16. Runs in a Python of its own."""

import argparse
import os
import time
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's steps are then ours to time
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
os.environ.update(SETTINGS)

import vllm  # noqa: E402 - it reads its settings when it is imported

from benchmarks.peers.protocol import serve  # noqa: E402

MAX_SEQUENCES = 8


class Vllm:
    """The engine that `vllm serve` runs, stepped by hand: prefix cache off, no compilation."""

    def __init__(self, model: str, num_threads: int, max_model_len: int) -> None:
        self._llm = vllm.LLM(
            model=model,
            dtype="bfloat16",
            enforce_eager=True,
            block_size=32,
            max_model_len=max_model_len,
            max_num_seqs=MAX_SEQUENCES,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self._num_threads = num_threads
        self._num_requests = 0

    def about(self) -> dict[str, Any]:
        import torch

        found = torch.get_num_threads()
        if found != self._num_threads:
            raise RuntimeError(f"vLLM took {found} threads instead of {self._num_threads}")
        return {"version": vllm.__version__, "torch": torch.__version__, "block_size": 32, "enforce_eager": True}

    def prefill(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self._add(prompt, 1)
        while self._llm.llm_engine.has_unfinished_requests():
            self._llm.llm_engine.step()
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        engine = self._llm.llm_engine
        # Prompts start one after the other: those that start first get as many more tokens, until all run together.
        for prompt in prompts:
            self._add(prompt, steps + 2 * len(prompts))
        seconds: list[float] = []
        known: dict[str, int] = {}
        while engine.has_unfinished_requests():
            started = time.perf_counter()
            grown = 0
            for output in engine.step():
                length = len(output.outputs[0].token_ids)
                grown += length == known.get(output.request_id, 0) + 1 and length > 1
                known[output.request_id] = length
            if grown == len(prompts):
                seconds.append(time.perf_counter() - started)
        return seconds[:steps]

    def _add(self, prompt: list[int], max_tokens: int) -> None:
        self._num_requests += 1
        params = vllm.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._llm.llm_engine.add_request(str(self._num_requests), {"prompt_token_ids": prompt}, params)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: Vllm(options.model, options.threads, options.max_model_len))
