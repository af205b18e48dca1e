"""The check at ingress tells intact from corrupt frames, and makes the intact ones independent of their message."""

from services.cachepool.integrity import check
from shared.ids import BlockKey
from shared.kv.codec import Payload
from tests.support.samples import frame, key


def test_corrupt_frames_are_sorted_out() -> None:
    good, other = frame(key("a"), 0), frame(key("b"), 1)
    bad = [
        good._replace(payload=b"\0" + good.payload[1:]),
        good._replace(layer=1),
        good._replace(layer=1 << 31),
        good._replace(key=key("b")),
        good._replace(key=BlockKey(key("b")[:31])),
        good._replace(raw_bytes=0),
        good._replace(checksum=good.checksum ^ 1),
    ]
    checked = check([good, *bad, other])
    assert checked.intact == [good, other]
    assert checked.corrupt == bad


def test_what_is_kept_is_kept_of_intact_frames_only() -> None:
    good = frame(key("a"), 0)
    bad = good._replace(checksum=good.checksum ^ 1)
    kept: list[bytes] = []

    def keep(payload: Payload) -> Payload:
        kept.append(bytes(payload))
        return memoryview(kept[-1])

    checked = check([bad, good], keep)
    assert checked.intact == [good]
    assert isinstance(checked.intact[0].payload, memoryview)
    assert checked.corrupt == [bad]
    assert kept == [good.payload]
