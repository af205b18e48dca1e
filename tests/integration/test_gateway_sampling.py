"""The gateway's pipeline over real decode workers: a lost worker and several choices change no token."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from services.gateway.app import GatewayParts, make_parts, make_pipeline
from services.gateway.model import ServedModel
from services.gateway.request.attempt import HandOffTerms
from services.gateway.request.choices import Choices
from services.gateway.request.generation import GenerationRequest, Prepared
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.text import TextRules
from services.gateway.request.usage import PromptUsage
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.router import Router
from shared.bus.events import MembershipEvent
from shared.deadline import Deadline
from shared.ids import Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.metrics import Metrics
from shared.rpc.client import Channels
from shared.sampling.constraint import Constraint, ConstraintKind
from shared.sampling.params import SamplingParams
from tests.support.engines import Node, two_datacenters
from tests.support.gateway import tiny_tokenizer
from tests.support.tiny import MAX_MODEL_LEN, VOCAB_SIZE, prompt
from tests.support.waiting import LIMIT_S

WARM = SamplingParams(
    max_tokens=30,
    temperature=1.5,
    top_k=60,
    presence_penalty=1.0,
    frequency_penalty=0.5,
    repetition_penalty=1.3,
    logit_bias=((5, 2.0),),
    seed=11,
    min_tokens=20,
    stop_token_ids=tuple(range(100, 130)),
    num_logprobs=2,
)


@dataclass
class World:
    parts: GatewayParts
    pipeline: Pipeline
    workers: list[Node]

    def request(self, token_ids: list[int], sampling: SamplingParams) -> GenerationRequest:
        keys = self.parts.model.prefix_keys(token_ids, "")
        return GenerationRequest(token_ids, keys, sampling, "")

    def computed(self) -> float:
        return sum(worker.metric("decode_computed_prompt_tokens_total") for worker in self.workers)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """Two decode workers, each with a pool of its own, and no prefill."""
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels())
        one, two = [await stack.enter_async_context(two_datacenters("llama", directory=directory)) for _ in range(2)]
        model = one.decode.model
        assert model is not None
        fingerprint = ModelFingerprint(model.files.fingerprint)
        served = ServedModel("tiny", tiny_tokenizer(directory), model.layout, fingerprint, VOCAB_SIZE, MAX_MODEL_LEN)
        parts = make_parts(served, channels, Metrics())
        for number, dcs in enumerate((one, two)):
            event = MembershipEvent(
                worker=WorkerId(f"decode-{number}"),
                role="decode",
                dc=Datacenter("west"),
                address=dcs.decode.address,
                fingerprint=fingerprint,
                layout_hash=LayoutHash(model.layout.hash),
                model_name="tiny",
                epoch=Epoch(1),
                pool_address=dcs.pool_west.address,
            )
            parts.registry.apply_membership(event, time.monotonic())
        routing = Router(Datacenter("west"), model.layout, Threshold(1024), "raw")
        yield World(parts, make_pipeline(parts, routing, HandOffTerms(block_wait_ms=1000)), [one.decode, two.decode])


async def generate(world: World, request: GenerationRequest, lose_after: int | None = None) -> list[tuple[int, float]]:
    """Return tokens with their log-probabilities; the worker that serves is stopped once there are `lose_after`."""
    found: list[tuple[int, float]] = []
    tally = PromptUsage(len(request.token_ids))
    async with aclosing(world.pipeline.generate(request, tally, Deadline.after(2 * LIMIT_S))) as events:
        async for event in events:
            found += [(token, told.logprob) for token, told in zip(event.ids, event.logprobs, strict=True)]
            if lose_after is not None and len(found) >= lose_after:
                lose_after = None
                serving = [worker for worker in world.workers if worker.inflight.count]
                await serving[0].server.stop(0)
    return found


GUIDED = replace(
    WARM, stop_token_ids=(0,), constraint=Constraint(ConstraintKind.REGEX, '\\{"a":\\[([1-9]{2},){8}0\\]\\}')
)


@pytest.mark.parametrize("sampling", [WARM, GUIDED], ids=["free", "guided"])
@pytest.mark.parametrize("lose_after", [1, 9])
async def test_a_lost_worker_changes_no_token(tmp_path: Path, lose_after: int, sampling: SamplingParams) -> None:
    async with world(tmp_path) as first:
        request = first.request(prompt(90), sampling)
        whole = await generate(first, request)
    assert len(whole) >= 20
    async with world(tmp_path) as second:
        continued = await generate(second, request, lose_after)
        assert [token for token, _ in continued] == [token for token, _ in whole]
        assert [value for _, value in continued] == pytest.approx([value for _, value in whole], abs=1e-3)
        assert all(worker.metric("generation_tokens_total") > 0 for worker in second.workers)


async def test_choices_share_what_the_first_has_computed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.parts.registry.lost(WorkerId("decode-1"))
        request = here.request(prompt(300), WARM)
        requests = tuple(
            GenerationRequest(request.token_ids, request.keys, WARM.for_choice(number), "") for number in range(3)
        )
        prepared = Prepared(requests, TextRules(), num_choices=3)
        ids: list[list[int]] = [[], [], []]
        async with Choices(
            here.pipeline, here.parts.model.tokenizer, here.parts.metrics, prepared, Deadline.after(2 * LIMIT_S)
        ) as choices:
            async for deltas in choices:
                for delta in deltas:
                    ids[delta.choice] += delta.ids
        tail = 300 % 64
        assert here.computed() == 300 + 2 * tail
        assert (choices.usage.prompt_tokens, choices.usage.cached_tokens) == (300, 0)
        assert len({tuple(tokens) for tokens in ids}) == 3
        for number, expected in enumerate(ids):
            alone = await generate(here, requests[number])
            assert [token for token, _ in alone] == expected
