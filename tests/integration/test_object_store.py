"""The object tier against real stores: an S3-protocol server, a local folder, a disk that is really full."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.cachepool.tiers.bucket import Bucket, open_client
from services.cachepool.tiers.objects import object_path
from shared.errors import BlockMissing, CorruptFrame, Overloaded, PrfaasError, Unavailable
from shared.rpc.client import Channels
from tests.support.buckets import s3_server
from tests.support.pools import CHAIN, Fetching, Running, entries, publish, serving
from tests.support.samples import BLOCK_BYTES, keys, wanting
from tests.support.waiting import until

OTHER = keys("other", 4)


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "a folder" / "pools").as_uri()
        return
    with s3_server(monkeypatch) as address:
        yield address


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels() as channels:
        yield channels


async def written(running: Running, num_objects: int) -> None:
    await until(lambda: running.count("objects_written_total") == num_objects)


async def test_a_pool_writes_reads_evicts_and_recovers(url: str, channels: Channels) -> None:
    async with serving(channels, object_url=url, pool_bytes=4 * BLOCK_BYTES) as west:
        await publish(west, CHAIN)
        await written(west, 4)
        await publish(west, OTHER)
        await written(west, 8)
        fetched = await Fetching(west.client, wanting(CHAIN)).done()
        assert sorted(fetched.got) == sorted(entries(CHAIN))
        assert west.count("object_entries_read_total") == 12
        object_bytes = int(west.count("object_stored_bytes"))
    async with serving(
        channels, object_url=url, pool_bytes=100 * BLOCK_BYTES, object_bytes=object_bytes // 2
    ) as reborn:
        await until(lambda: reborn.count("objects_dropped_total", reason="evicted") == 4)
        assert reborn.count("objects_recovered_total") == 8
        fetched = await Fetching(reborn.client, wanting([*CHAIN, *OTHER]), wait_s=0).done()
        assert (len(fetched.got), len(fetched.missing)) == (12, 12)
        assert reborn.count("object_failures_total", operation="read", kind="unavailable") == 0


async def test_failures_are_errors_of_ours(url: str) -> None:
    calls: list[tuple[str, str]] = []

    def on_call(operation: str, seconds: float, error: PrfaasError | None) -> None:
        assert seconds >= 0
        calls.append((operation, error.code if error else "ok"))

    bucket = Bucket(open_client(f"{url}/pool", 5.0), 5.0, on_call)
    with pytest.raises(BlockMissing):
        await bucket.read("00/none", 0, 1)
    with pytest.raises(BlockMissing):
        await bucket.head("00/none", 10)
    await bucket.put("00/some", [b"01234", memoryview(b"56789")])
    assert bytes(await bucket.read("00/some", 3, 4)) == b"3456"
    for offset, length in ((8, 4), (20, 4)):
        with pytest.raises(CorruptFrame):
            await bucket.read("00/some", offset, length)
    head = await bucket.head("00/some", 100)
    assert (head.data, head.object_bytes) == (b"0123456789", 10)
    assert [name async for names in bucket.names() for name in names] == ["00/some"]
    await bucket.delete("00/some")
    await bucket.delete("00/some")
    assert [name async for names in bucket.names() for name in names] == []
    assert calls[0] == ("read", "block_missing")
    assert ("put", "ok") in calls


async def test_an_s3_server_that_is_gone_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as address:
        bucket = Bucket(open_client(address, 5.0), 5.0, lambda *_: None)
        missing = Bucket(open_client("s3://nosuchbucket/x", 5.0), 5.0, lambda *_: None)
        await bucket.put("00/some", [b"x"])
        with pytest.raises(Unavailable):
            await missing.put("00/some", [b"x"])
    with pytest.raises(Unavailable):
        await bucket.put("00/some", [b"x"])


async def test_remains_of_unfinished_writes_are_swept(channels: Channels, tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    async with serving(channels, object_url=url) as west:
        await publish(west, CHAIN)
        await written(west, 4)
    folder = tmp_path / "cachepool-local"
    remains = folder / f"{object_path(CHAIN[0])}#1"
    remains.write_bytes(b"half")
    os.utime(remains, (1, 1))
    async with serving(channels, object_url=url) as reborn:
        await until(lambda: reborn.count("objects_recovered_total") == 4)
        assert reborn.count("objects_torn_total") == 1
        assert not remains.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_disk_that_is_really_full(channels: Channels, small_disk: Path) -> None:
    bucket = Bucket(open_client(small_disk.as_uri(), 5.0), 5.0, lambda *_: None)
    with pytest.raises(Overloaded):
        await bucket.put("00/big", [bytes(2 << 20)])
    assert files(small_disk) == [], "a failed write leaves nothing"
    (small_disk / "filler").write_bytes(bytes((1 << 20) - (40 << 10)))
    async with serving(channels, object_url=small_disk.as_uri()) as west:
        many = keys("many", 40)
        for name in many:
            await publish(west, [name])
        await until(lambda: west.count("object_writes_waiting") == 0)
        assert west.count("object_failures_total", operation="put", kind="overloaded") > 0
        assert (await Fetching(west.client, wanting(many)).done()).missing == set()
        assert west.count("objects_stored") > 0
    (small_disk / "filler").unlink()
    async with serving(channels, object_url=small_disk.as_uri()) as reborn:
        await until(lambda: reborn.count("objects_recovered_total") > 0)
        assert reborn.count("objects_torn_total") == 0
