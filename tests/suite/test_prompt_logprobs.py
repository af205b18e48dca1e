"""Log-probabilities of a long prompt from real processes: those of `transformers`, also when decode dies on the way."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.checkpoints import VOCAB, random_ids, served
from tests.support.suite import SERVICES, Suite, running_suite
from tests.support.waiting import eventually

pytestmark = [pytest.mark.suite, pytest.mark.timeout(300)]

DECODERS = ("decode-west", "decode-west-2")
TOLERANCE = 1e-3  # float32 over thousands of positions, whose sums run in another order
SCORED = "decode_scored_prompt_tokens_total"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Suite, Path]]:
    folder = tmp_path_factory.mktemp("suite")
    settings = served(folder)
    with running_suite(folder, (*SERVICES, "decode-west-2"), **settings) as suite:
        yield suite, Path(settings["PRFAAS_MODEL"])


def expected(path: Path, ids: list[int]) -> list[float]:
    """Return the log-probability of each token but the first, as `transformers` has it."""
    automodel: Any = transformers.AutoModelForCausalLM
    with torch.inference_mode():
        logits = automodel.from_pretrained(path, dtype=torch.float32)(torch.tensor([ids])).logits[0, :-1]
        own = logits.log_softmax(dim=-1).gather(1, torch.tensor(ids[1:]).unsqueeze(1))
    values: list[float] = own.squeeze(1).tolist()
    return values


async def test_a_decode_worker_dies_in_the_middle_and_nothing_is_told_twice(running: tuple[Suite, Path]) -> None:
    suite, path = running
    await suite.ready()
    ids = [3 + token % (VOCAB - 45) for token in random_ids(12_000, seed=8)]
    asked = asyncio.create_task(suite.complete(ids, 2, echo=True, logprobs=1, prompt_logprobs=0))
    told: dict[str, float] = {}

    async def has_begun() -> bool:
        told.update({name: await suite.metric(name, SCORED) for name in DECODERS})
        return any(told.values())

    await eventually(has_begun)
    victim = max(told, key=lambda name: told[name])
    suite.kill(victim)
    assert 0 < told[victim] < len(ids) - 1, "the worker was killed too late to show anything"
    (choice,) = (await asked)["choices"]
    (other,) = (name for name in DECODERS if name != victim)
    assert 0 < await suite.metric(other, SCORED) < len(ids) - 1, "what was told is not computed again"
    own = choice["logprobs"]["token_logprobs"]
    assert len(own) == len(ids) + 2
    assert own[0] is None
    assert own[1 : len(ids)] == pytest.approx(expected(path, ids), abs=TOLERANCE)
    of_prompt = [next(iter(entries.values()))["logprob"] for entries in choice["prompt_logprobs"][1:]]
    assert of_prompt == own[1 : len(ids)]
    again = await suite.complete(ids, 2, echo=True, logprobs=1)
    assert again["choices"][0]["logprobs"] == choice["logprobs"]  # from one worker, to the last bit
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    suite.start(victim)
