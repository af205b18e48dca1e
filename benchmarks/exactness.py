"""Is disaggregated output the model's own? Greedy tokens through the running suite against `transformers.generate`.

Starts the suite in float32, prefill in the other datacenter, and compares 64 tokens for real text at block and window
edges, cold, half cached and fully cached, eight prompts at once, and with lz4 frames. Every check must be met: one
token that differs is a bug, not noise.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import aiohttp
from tqdm import tqdm

from benchmarks import harness
from benchmarks.harness import Check, Report, Row
from benchmarks.suite import URL, suite
from shared.model.files.catalog import resolve

MODELS = ("smollm2-135m-instruct", "gemma3-270m")


class Battery(NamedTuple):
    """What is compared; lengths in tokens."""

    edges: tuple[int, ...]  # of prompts that are asked alone and cold
    long: int  # of the prompt that is asked half cached, fully cached and cold
    num_tokens: int = 64  # of every answer
    num_at_once: int = 8


WHOLE = Battery((1, 63, 64, 65, 511, 512, 513, 575, 576, 577, 1088), 3000)
LZ4 = Battery((65, 577, 1088), 3000)  # the codec knows nothing of edges: a few show that it changes nothing
QUICK = Battery((1, 64, 65, 577), 700, 16)


class Oracle:
    """`transformers` on the model's own GGUF file: weights, configuration and generation loop are all its own."""

    def __init__(self, model: str) -> None:
        import torch  # deferred, both: seconds that --help need not cost
        import transformers

        source = resolve(model, Path("~/.cache/prfaas").expanduser()).source
        self._torch = torch
        transformers_model: Any = transformers.AutoModelForCausalLM
        self._model = transformers_model.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32
        ).eval()

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return `num_tokens` greedy tokens after `prompt`; the end of a sequence does not stop it."""
        ids = self._torch.tensor([list(prompt)])
        with self._torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        generated: list[int] = out[0, len(prompt) :].tolist()
        return generated


class ExactnessClient:
    """Asks the suite for greedy token ids."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def tokenize(self, text: str) -> list[int]:
        ids: list[int] = (await self._post("/tokenize", {"prompt": text}))["tokens"]
        return ids

    async def generate(self, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], int]:
        """Return the generated ids and how many tokens of the prompt came from a cache."""
        body = {
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = await self._post("/v1/completions", body)
        return answer["choices"][0]["token_ids"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(self._url + path, json=body) as response:
            answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise RuntimeError(f"{path}: {answer}")
        return answer


def prompts(ids: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut real text into prompts that share no block: each starts elsewhere in it."""
    cut = []
    position = 1  # behind a possible BOS, which would be the same everywhere
    for length in lengths:
        cut.append(list(ids[position : position + length]))
        position += length
    assert len(cut[-1]) == lengths[-1], "the text is too short"
    return cut


async def compare(client: ExactnessClient, oracle: Oracle, codec: str, battery: Battery) -> list[Row]:
    """One row for each comparison."""
    num_tokens, num_at_once = battery.num_tokens, battery.num_at_once
    ids = await client.tokenize("\n".join(topics[name] for name in sorted(topics))[:120_000])
    rows: list[Row] = []
    *singles, long = prompts(ids, [*battery.edges, battery.long])
    bar = tqdm(total=len(singles) + 3 + num_at_once, desc=f"exactness {codec}", leave=False)

    def note(case: str, prompt: Sequence[int], got: tuple[list[int], int], expected: list[int]) -> None:
        same = sum(1 for a, b in zip(got[0], expected, strict=False) if a == b)
        rows.append(
            {
                "codec": codec,
                "case": case,
                "prompt_tokens": len(prompt),
                "cached_tokens": got[1],
                "tokens": len(expected),
                "equal": same if got[0] != expected else len(expected),
            }
        )
        bar.update()

    for prompt in singles:
        note("edge", prompt, await client.generate(prompt, num_tokens), oracle.generate(prompt, num_tokens))
    expected = oracle.generate(long, num_tokens)
    half = [*long[: len(long) // 2]]
    await client.generate(half, 1)
    await asyncio.sleep(0.5)  # placement events
    note("half cached", long, await client.generate(long, num_tokens), expected)
    await asyncio.sleep(0.5)
    note("fully cached", long, await client.generate(long, num_tokens), expected)
    cold = long[1:]
    note("cold", cold, await client.generate(cold, num_tokens), oracle.generate(cold, num_tokens))
    together = prompts(ids[200:], [97 + 61 * i for i in range(num_at_once)])
    answers = await asyncio.gather(*(client.generate(prompt, num_tokens) for prompt in together))
    for prompt, answer in zip(together, answers, strict=True):
        note(f"{num_at_once} at once", prompt, answer, oracle.generate(prompt, num_tokens))
    bar.close()
    return rows


def measure(options: argparse.Namespace) -> Report:
    report = Report(settings={"dtype": "float32", "source": "Python's language reference"})
    for model in MODELS[:1] if options.quick else MODELS:
        oracle = Oracle(model)
        for codec in ("raw",) if options.quick else ("raw", "lz4"):
            battery = QUICK if options.quick else WHOLE if codec == "raw" else LZ4
            environ = {"PRFAAS_MODEL": model, "PRFAAS_DTYPE": "float32", "PRFAAS_CODEC": codec}
            with suite(
                PRFAAS_KV_BYTES="2GiB",
                PRFAAS_ROUTING_POLICY="threshold",
                PRFAAS_OFFLOAD_THRESHOLD_TOKENS="0",
                PRFAAS_DECODE_THRESHOLD_TOKENS="0",
                **environ,
            ):
                rows = asyncio.run(_compare(oracle, codec, battery))
            report.rows += [{"model": model, **row} for row in rows]
    for row in report.rows:
        name = f"{row['model']}, {row['codec']}, {row['case']}, {row['prompt_tokens']} tokens: equal tokens"
        equal, tokens = int(row["equal"] or 0), int(row["tokens"] or 0)
        report.checks.append(Check(name, equal, f"= {tokens}", equal == tokens))
    return report


async def _compare(oracle: Oracle, codec: str, battery: Battery) -> list[Row]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        return await compare(ExactnessClient(session, URL), oracle, codec, battery)


if __name__ == "__main__":
    sys.exit(harness.main("exactness", measure, description=__doc__))
