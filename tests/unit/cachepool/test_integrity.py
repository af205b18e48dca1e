"""The check at ingress tells intact from corrupt frames, inline and in a thread alike."""

from dataclasses import replace

import pytest

from services.cachepool import integrity
from services.cachepool.integrity import check
from shared.ids import BlockKey
from tests.unit.cachepool.samples import frame, key


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20])
async def test_corrupt_frames_are_sorted_out(monkeypatch: pytest.MonkeyPatch, inline_bytes: int) -> None:
    monkeypatch.setattr(integrity, "INLINE_BYTES", inline_bytes)
    good, other = frame(key("a"), 0), frame(key("b"), 1)
    bad = [
        replace(good, payload=b"\0" + good.payload[1:]),
        replace(good, layer=1),
        replace(good, layer=1 << 31),
        replace(good, key=key("b")),
        replace(good, key=BlockKey(key("b")[:31])),
        replace(good, raw_bytes=0),
        replace(good, checksum=good.checksum ^ 1),
    ]
    checked = await check([good, *bad, other])
    assert checked.intact == [good, other]
    assert checked.corrupt == bad
