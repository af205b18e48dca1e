"""Lanes that break and memory that changes under two engines and their pools: the same tokens as one process."""

from pathlib import Path
from typing import get_args

import pytest

from services.cachepool.serving.outlets import Outlet
from services.cachepool.serving.servicer import PoolServicer
from shared.kv.frame import Frame
from shared.lanes.settings import LaneName
from tests.support.engines import Pools, TwoDatacenters, two_datacenters
from tests.support.ledger import cut_lanes
from tests.support.tiny import greedy_reference, prompt

BLOCK = 64
TOKENS = prompt(333)
NUM_WHOLE = 5 * BLOCK


def pools_with(lane: LaneName, folder: Path) -> Pools:
    return Pools({"lanes": (lane, "grpc") if lane != "grpc" else ("grpc",), "lane_folder": folder / "lanes"})


async def in_the_west(dcs: TwoDatacenters) -> PoolServicer:
    """Have a prompt's blocks in the west's pool, which decode reads from."""
    await dcs.prefill_only(TOKENS)
    await dcs.pull_west(TOKENS)
    assert dcs.pool_west.pool is not None
    return dcs.pool_west.pool.servicer


@pytest.mark.parametrize("lane", ["shared_memory", "socket"])
async def test_a_lane_that_is_cut_in_mid_transfer_changes_no_token(
    lane: LaneName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_datacenters("llama", pools=pools_with(lane, tmp_path)) as dcs:
        servicer = await in_the_west(dcs)
        send, num_cut = servicer._send, 0

        async def cutting(frames: list[Frame], outlet: Outlet) -> None:
            nonlocal num_cut
            if num_cut or outlet.name != lane:
                await send(frames, outlet)
                return
            await send(frames[:2], outlet)
            await outlet.finish() if lane == "shared_memory" else None
            num_cut += 1
            cut_lanes(servicer._lanes._ends)
            await send(frames[2:], outlet)

        monkeypatch.setattr(servicer, "_send", cutting)
        result = await dcs.generate(TOKENS, prefill=False, wait_ms=0)
        assert result.ids == greedy_reference("llama", TOKENS, 8)
        assert result.cached(len(TOKENS)) == NUM_WHOLE
        assert num_cut == 1
        assert dcs.pool_west.metric("lane_sent_bytes_total", lane="grpc") > 0
        await dcs.assert_idle()
        again = await dcs.generate(TOKENS + prompt(70, seed=1), prefill=False, wait_ms=0)
        assert again.ids == greedy_reference("llama", TOKENS + prompt(70, seed=1), 8)
        await dcs.assert_idle()


@pytest.mark.parametrize("lane", get_args(LaneName))
async def test_memory_that_changes_under_a_pool_changes_no_token(
    lane: LaneName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode notices and doubts; the pool forgets what is corrupt and pulls it again."""
    async with two_datacenters("llama", pools=pools_with(lane, tmp_path)) as dcs:
        servicer = await in_the_west(dcs)
        send, num_flipped = servicer._send, 0

        async def flipping(frames: list[Frame], outlet: Outlet) -> None:
            nonlocal num_flipped
            if not num_flipped:
                for corrupt in frames[:2]:
                    assert isinstance(corrupt.payload, memoryview)
                    corrupt.payload.obj[0] ^= 1  # type: ignore[index]
                    num_flipped += 1
            await send(frames, outlet)

        monkeypatch.setattr(servicer, "_send", flipping)
        result = await dcs.generate(TOKENS, prefill=False, wait_ms=0)
        assert result.ids == greedy_reference("llama", TOKENS, 8)
        assert result.cached(len(TOKENS)) == NUM_WHOLE
        assert num_flipped == 2
        assert dcs.decode.metric("corrupt_entries_total") == 2
        assert dcs.pool_west.metric("corrupt_frames_total", source="memory") == 2
        await dcs.assert_idle()
