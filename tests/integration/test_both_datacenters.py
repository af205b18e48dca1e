"""Fifty requests with one long prefix, in two datacenters at once: each block is computed, stored and carried once."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import VOCAB, served
from tests.support.suite import Suite, running_suite

pytestmark = [pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(240)]

SERVICES = (
    *("cachepool-east", "cachepool-west", "prefill-east", "decode-east", "decode-west"),
    *("gateway-east", "gateway-west"),
)
BLOCK, LAYERS, NUM_REQUESTS = 64, 3, 50
PREFIX_TOKENS = 4032
NUM_BLOCKS = PREFIX_TOKENS // BLOCK


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    """Prefill is where the computers are: in the east, for both gateways."""
    environ = served(tmp_path) | {"PRFAAS_CODEC": "raw"}  # so that bytes are known to the last one
    with running_suite(tmp_path, SERVICES, **environ) as suite:
        yield suite


async def test_a_prefix_is_computed_stored_and_carried_once(suite: Suite) -> None:
    await suite.ready()
    names = {
        "computed": ("prefill-east", "prefill_computed_blocks_total"),
        "stored east": ("cachepool-east", "entries_published_total"),
        "pulled west": ("cachepool-west", "pulled_entries_total"),
        "sent": ("cachepool-east", "link_sent_entries_total"),
        "received": ("cachepool-west", "link_received_entries_total"),
        "sent bytes": ("cachepool-east", "link_sent_bytes_total"),
        "received bytes": ("cachepool-west", "link_received_bytes_total"),
        "pulled east": ("cachepool-east", "pulled_entries_total"),
        "written west": ("cachepool-west", "entries_published_total"),
    }
    before = {what: await suite.metric(*name) for what, name in names.items()}
    rng = random.Random(5)
    prefix = [rng.randrange(3, VOCAB) for _ in range(PREFIX_TOKENS)]
    requests = [
        # Tails differ and end within their first block, so that nothing but the prefix is ever a full block.
        suite.complete([*prefix, 3 + number, 7, 8], 4, url=suite.url_of(f"gateway-{('east', 'west')[number % 2]}"))
        for number in range(NUM_REQUESTS)
    ]
    answers = await asyncio.gather(*requests)
    await suite.assert_idle()
    after = {what: await suite.metric(*name) for what, name in names.items()}
    entry_bytes = 2 * BLOCK * 2 * 16 * 4  # K and V of two heads in float32
    assert {what: after[what] - before[what] for what in names} == {
        "computed": NUM_BLOCKS,
        "stored east": NUM_BLOCKS * LAYERS,
        "pulled west": NUM_BLOCKS * LAYERS,
        "sent": NUM_BLOCKS * LAYERS,
        "received": NUM_BLOCKS * LAYERS,
        "sent bytes": NUM_BLOCKS * LAYERS * entry_bytes,
        "received bytes": NUM_BLOCKS * LAYERS * entry_bytes,
        "pulled east": 0,
        "written west": 0,
    }
    assert all(answer["usage"]["prompt_tokens"] == PREFIX_TOKENS + 3 for answer in answers)
    by_tail = {number: answer["choices"][0]["text"] for number, answer in enumerate(answers)}
    alone = await suite.complete([*prefix, 3, 7, 8], 4, url=suite.url_of("gateway-west"))
    assert by_tail[0] == alone["choices"][0]["text"], "asked alone, in the other datacenter, it says the same"
