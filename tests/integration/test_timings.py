"""What engines say of a prompt's times, with real models, pools and lanes in between."""

import pytest

from shared.timings import NEVER_S, NO_LAYERS
from tests.support.engines import two_datacenters
from tests.support.tiny import MODELS, prompt

BLOCK = 64


@pytest.mark.parametrize("name", MODELS)
async def test_the_first_token_brings_when_each_layer_landed(name: str) -> None:
    async with two_datacenters(name) as dcs:
        result = await dcs.generate(prompt(577), 8)
        (times,) = result.timings
        model = dcs.decode.model
        assert model is not None
        landed_first, landed_last = times.landed
        assert len(landed_first) == model.layout.num_layers
        assert NEVER_S not in landed_last, "every layer of a prompt has entries that are needed"
        assert all(map(float.__le__, landed_first, landed_last))
        assert times.admitted_s <= min(landed_first)
        assert landed_last[0] <= times.gate_opened_s <= times.computed_s
        assert max(landed_last) <= times.computed_s
        assert times.computed_tokens == result.decode_computed == 577 % BLOCK
        assert 0 < times.fetched_bytes <= 9 * model.layout.block_bytes
        again = await dcs.generate(prompt(577), 8)
        (times,) = again.timings
        assert (times.landed, times.fetched_bytes) == (NO_LAYERS, 0), "the device has all of it"
        assert times.computed_s > 0.0
        await dcs.assert_idle()
