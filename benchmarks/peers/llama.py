"""llama.cpp through llama-cpp-python's low-level API, on a GGUF file as it is. Runs in a Python of its own."""

import argparse
import ctypes
import time
from typing import Any

import llama_cpp as c

from benchmarks.peers.protocol import serve

UBATCH = 512
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Llama:
    """One model; a context of the size that the work in hand needs, made before its clock starts."""

    def __init__(self, path: str, num_threads: int, ubatch: int = UBATCH) -> None:
        self._quiet = _LOG(lambda _level, _text, _data: None)
        c.llama_log_set(self._quiet, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self._num_threads = num_threads
        self._ubatch = ubatch
        self._sampler = c.llama_sampler_init_greedy()
        self._context: Any = None
        self._shape = (0, 0)
        self._batch = c.llama_batch_init(ubatch, 0, 1)

    def about(self) -> dict[str, Any]:
        system = c.llama_print_system_info().decode()
        return {
            "version": c.__version__,
            "ubatch": self._ubatch,
            "system": ", ".join(
                part.split(" = ")[0].split(": ")[-1].strip() for part in system.split("|") if "= 1" in part
            ),
        }

    def prefill(self, prompt: list[int]) -> float:
        self._open(1, len(prompt) + 1)
        started = time.perf_counter()
        self._run_prompt(0, prompt)
        return time.perf_counter() - started

    def decode(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._open(len(prompts), len(prompts[0]) + steps + 1)
        tokens = [self._run_prompt(sequence, prompt) for sequence, prompt in enumerate(prompts)]
        position = len(prompts[0])
        seconds = []
        for step in range(steps):
            started = time.perf_counter()
            self._fill([(token, position + step, sequence, True) for sequence, token in enumerate(tokens)])
            self._compute()
            tokens = [self._sample(row) for row in range(len(prompts))]
            seconds.append(time.perf_counter() - started)
        return seconds

    def _open(self, num_sequences: int, num_tokens: int) -> None:
        """Have an empty context for so many sequences of so many tokens."""
        num_tokens = -(-num_tokens // 256) * 256
        if self._shape != (num_sequences, num_tokens):
            if self._context is not None:
                c.llama_free(self._context)
            params = c.llama_context_default_params()
            params.n_ctx = num_sequences * num_tokens
            params.n_seq_max = num_sequences
            params.n_batch = params.n_ubatch = self._ubatch
            params.n_threads = params.n_threads_batch = self._num_threads
            params.swa_full = False
            params.kv_unified = False
            params.no_perf = True
            self._context = c.llama_init_from_model(self._model, params)
            if not self._context:
                raise RuntimeError(f"no context for {num_sequences} x {num_tokens} tokens")
            self._shape = (num_sequences, num_tokens)
        c.llama_memory_clear(c.llama_get_memory(self._context), True)

    def _run_prompt(self, sequence: int, prompt: list[int]) -> int:
        for first in range(0, len(prompt), self._ubatch):
            chunk = prompt[first : first + self._ubatch]
            last = len(prompt) - 1
            self._fill([(token, first + i, sequence, first + i == last) for i, token in enumerate(chunk)])
            self._compute()
        return self._sample(-1)

    def _fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits

    def _compute(self) -> None:
        if code := c.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def _sample(self, row: int) -> int:
        return int(c.llama_sampler_sample(self._sampler, self._context, row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ubatch", type=int, default=UBATCH)
    options = parser.parse_args()
    serve(lambda: Llama(options.gguf, options.threads, options.ubatch))
