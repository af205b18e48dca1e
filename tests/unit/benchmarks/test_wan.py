"""The emulated WAN without a kernel: when a frame arrives, what a link's queue drops, what a lost segment leaves."""

import struct

import pytest

from benchmarks.wan.line import Direction, Line
from benchmarks.wan.segments import GSO_TCPV4, VNET_BYTES, WIRE_BYTES, Losses, num_segments, wire_bytes, without

MSS = 1000
HEADERS = VNET_BYTES + 14 + 20 + 20


def tcp_frame(num_bytes: int, sequence: int = 7, flags: int = 0x18) -> bytes:
    """An offload frame whose payload says at each position which segment it is of."""
    gso_type, gso_size = (GSO_TCPV4, MSS) if num_bytes > MSS else (0, 0)
    vnet = struct.pack("<BBHHHH", 1, gso_type, HEADERS - VNET_BYTES, gso_size, 34, 16)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + num_bytes, 1, 0, 64, 6, 0, bytes(4), bytes(4))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, sequence, 0, 0x50, flags, 100, 0, 0)
    payload = bytes(index // MSS for index in range(num_bytes))
    return vnet + bytes(14) + ip + tcp + payload


def payload(frame: bytes) -> bytes:
    return frame[HEADERS:]


def test_a_frame_arrives_after_its_turn_on_the_link_and_the_delay() -> None:
    direction = Direction(Line(delay_s=0.1, rate_bytes_per_s=1000))
    direction.push(b"first", 500, now=10.0)
    direction.push(b"second", 250, now=10.0)
    assert direction.next_due == pytest.approx(10.6)
    assert direction.pop(10.59) is None
    assert direction.pop(10.61) == b"first"
    assert direction.pop(10.84) is None
    assert direction.pop(10.86) == b"second"
    assert (direction.frames_carried, direction.bytes_carried) == (2, 750)


def test_a_full_queue_drops() -> None:
    direction = Direction(Line(delay_s=0.1, rate_bytes_per_s=1000, queue_bytes=1000))
    for _ in range(5):
        direction.push(b"frame", 600, now=1.0)
    assert (direction.frames_carried, direction.frames_dropped) == (2, 3)
    direction.push(b"frame", 600, now=2.0)
    assert direction.frames_carried == 3


def test_a_frame_takes_the_wire_of_all_its_packets() -> None:
    assert (num_segments(tcp_frame(MSS)), num_segments(tcp_frame(3500))) == (1, 4)
    assert wire_bytes(tcp_frame(3500)) == 3500 + 4 * (54 + WIRE_BYTES)


@pytest.mark.parametrize(
    ("lost", "left"), [([0], [[1, 2, 3]]), ([3], [[0, 1, 2]]), ([1], [[0], [2, 3]]), ([0, 1, 2, 3], [])]
)
def test_a_lost_segment_leaves_the_others(lost: list[int], left: list[list[int]]) -> None:
    frame = tcp_frame(3500)
    parts = without(frame, lost)
    assert [sorted(set(payload(part))) for part in parts] == left
    for part, segments in zip(parts, left, strict=True):
        tcp = HEADERS - 20
        assert int.from_bytes(part[tcp + 4 : tcp + 8], "big") == 7 + segments[0] * MSS
        assert int.from_bytes(part[VNET_BYTES + 16 : VNET_BYTES + 18], "big") == 40 + len(payload(part))
        assert bool(part[tcp + 13] & 0x08) == (segments[-1] == 3), "only the last part pushes"
        assert num_segments(part) == len(segments)
        header = struct.unpack(">10H", part[VNET_BYTES + 14 : VNET_BYTES + 34])
        total = sum(header)
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF, "the IP header has its checksum"


def test_packets_are_lost_with_the_given_probability_whatever_they_travel_in() -> None:
    losses, num_left, num_sent = Losses(0.05), 0, 0
    for _ in range(1000):
        num_left += sum(num_segments(part) for part in losses.survivors(tcp_frame(20_000)))
        num_sent += 20
    assert 1 - num_left / num_sent == pytest.approx(0.05, rel=0.1)
