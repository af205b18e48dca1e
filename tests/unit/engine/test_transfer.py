"""Checksums in several threads are those of one."""

from collections.abc import Iterator

import pytest

from shared.engine.codecs import CodecThreads
from shared.engine.thread import WorkThread
from shared.engine.transfer import SHARE_BYTES, FetchMetrics, PageTransfer
from shared.ids import BlockKey
from shared.kv.frame import raw_headers, seal_all
from shared.metrics import Metrics
from tests.support.tiny import tiny_model

NUM_ENTRIES = 7
KEYS = [BlockKey(bytes([i]) * 32) for i in range(NUM_ENTRIES)]


@pytest.fixture(params=[1, 3])
def transfer(request: pytest.FixtureRequest) -> Iterator[PageTransfer]:
    copier, codecs = WorkThread("copier"), CodecThreads(request.param)
    yield PageTransfer(tiny_model("llama").kv, copier, FetchMetrics(Metrics()), codecs=codecs)
    codecs.close()
    copier.close()


@pytest.mark.parametrize("num_bytes", [100, SHARE_BYTES])
def test_what_is_digested_and_verified(transfer: PageTransfer, num_bytes: int) -> None:
    payloads = [bytes([i]) * num_bytes for i in range(NUM_ENTRIES)]
    frames = seal_all(KEYS, 3, payloads)
    found = transfer.digests(raw_headers(KEYS, 3, num_bytes), payloads)
    assert found == [frame.checksum for frame in frames]
    frames[5] = frames[5]._replace(layer=4)
    assert transfer.verified(frames) == [i != 5 for i in range(NUM_ENTRIES)]
    assert transfer.verified([]) == []
