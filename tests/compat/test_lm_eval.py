"""lm-evaluation-harness against the running suite and against `transformers`: the same items, the same numbers.

Needs the harness in an environment of its own, whose `lm_eval` PRFAAS_LM_EVAL names, and gguf beside it.
"""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.model.files.catalog import resolve
from tests.support.suite import running_suite

LM_EVAL = os.environ.get("PRFAAS_LM_EVAL", "")
TASKS = Path(__file__).parent / "lm_eval_tasks"
MODEL = "smollm2-135m-instruct"
TOLERANCE = 1e-3  # of a choice's log-likelihood, a sum over a few tokens, in float32
LIMIT_S = 600

pytestmark = [
    pytest.mark.suite,
    pytest.mark.slow,
    pytest.mark.timeout(2 * LIMIT_S),
    pytest.mark.skipif(not LM_EVAL, reason="PRFAAS_LM_EVAL does not name lm-evaluation-harness"),
]

_SAVE = """
import sys, transformers
folder, name, target = sys.argv[1:]
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
"""


class Evaluated(NamedTuple):
    """What the harness found."""

    scores: dict[str, float]
    choices: dict[int, list[tuple[float, bool]]]  # of each item: log-likelihoods, and whether they are greedy


def save_tokenizer(source: Path, target: Path) -> None:
    """Write a GGUF file's tokenizer as `transformers` reads it: the harness cuts texts into tokens itself."""
    python = str(Path(LM_EVAL).with_name("python"))
    run([python, "-c", _SAVE, str(source.parent), source.name, str(target)])


def run(command: list[str]) -> None:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=TASKS, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def evaluated(model: str, arguments: dict[str, Any], folder: Path) -> Evaluated:
    """Run the task; `arguments` are the model's."""
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [LM_EVAL, "--model", model, "--model_args", given, "--tasks", "common_facts"]
    run([*command, "--include_path", str(TASKS), "--log_samples", "--output_path", str(folder), "--batch_size", "1"])
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob("samples_*.jsonl")
    scores = json.loads(results.read_text())["results"]["common_facts"]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    choices = {
        line["doc_id"]: [(float(value), str(greedy) == "True") for value, greedy in line["filtered_resps"]]
        for line in lines
    }
    return Evaluated({name: scores[f"{name},none"] for name in ("acc", "acc_norm")}, choices)


def test_log_likelihoods_and_accuracy_are_those_of_transformers(tmp_path: Path) -> None:
    source, tokenizer = resolve(MODEL, Path("~/.cache/prfaas").expanduser()).source, tmp_path / "tokenizer"
    save_tokenizer(source, tokenizer)
    reads = {"pretrained": source.parent, "gguf_file": source.name, "dtype": "float32"}
    expected = evaluated("hf", reads, tmp_path / "hf")
    folder = tmp_path / "suite"
    folder.mkdir()
    with running_suite(folder, PRFAAS_DTYPE="float32", PRFAAS_KV_BYTES="1GiB") as suite:
        asyncio.run(suite.ready())
        served = {
            "model": MODEL,
            "base_url": f"{suite.url}/v1/completions",
            "tokenizer": tokenizer,
            "num_concurrent": 4,
        }
        found = evaluated("local-completions", served, tmp_path / "served")
        assert asyncio.run(suite.metric("decode-west", "decode_scored_prompt_tokens_total")) > 0
        asyncio.run(suite.assert_idle())
    assert len(expected.choices) == 60
    assert found.scores == expected.scores
    assert 0.3 < found.scores["acc"] < 1, "as good as chance, or too easy to tell anything"
    for item, choices in expected.choices.items():
        for (value, greedy), (own, own_greedy) in zip(choices, found.choices[item], strict=True):
            assert own == pytest.approx(value, abs=TOLERANCE), item
            assert own_greedy == greedy, item
