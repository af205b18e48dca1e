"""What all fetches and publications of an engine share."""

from collections.abc import Iterator

import pytest

from shared.engine.codecs import CodecThreads
from shared.engine.thread import WorkThread
from shared.engine.transfer import SHARE_BYTES, PageTransfer, TransferMetrics
from shared.ids import BlockKey
from shared.kv.frame import headers_of, seal_all
from shared.metrics import Metrics
from tests.support.tiny import tiny_model

NUM_ENTRIES = 7
KEYS = [BlockKey(bytes([i]) * 32) for i in range(NUM_ENTRIES)]


@pytest.fixture(params=[1, 3])
def transfer(request: pytest.FixtureRequest) -> Iterator[PageTransfer]:
    copier, codecs = WorkThread("copier"), CodecThreads(request.param)
    yield PageTransfer(tiny_model("llama").kv, copier, TransferMetrics(Metrics()), codecs=codecs)
    codecs.close()
    copier.close()


@pytest.mark.parametrize("num_bytes", [100, SHARE_BYTES])
def test_checksums_in_several_threads_are_those_of_one(transfer: PageTransfer, num_bytes: int) -> None:
    payloads = [bytes([i]) * num_bytes for i in range(NUM_ENTRIES)]
    frames = seal_all(KEYS, 3, payloads)
    assert transfer.digests(headers_of(frames), payloads) == [frame.checksum for frame in frames]
    assert transfer.digests([], []) == []
