"""Offload frames of a TAP, which stand for many TCP segments: how many, and what is left when single ones are lost.

Layout: virtio-net header (10 bytes, little-endian: flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16,
csum_offset u16), Ethernet, IPv4, TCP. A kernel takes what its own kind hands over without a look at the TCP checksum:
only lengths, the sequence number and the IP checksum have to be right in a part of a frame.
"""

import math
import struct
from itertools import pairwise
from random import Random

VNET_BYTES, ETHERNET_BYTES, IPV4_MIN_BYTES = 10, 14, 20
GSO_TCPV4, GSO_ECN = 1, 0x80
FIN, PSH = 0x01, 0x08
WIRE_BYTES = 24
"""What a packet takes of the wire beside its Ethernet frame: preamble, checksum, gap."""


def num_segments(frame: bytes) -> int:
    """Return the packets that a frame stands for."""
    gso_size = _gso_size(frame)
    return max(1, math.ceil((len(frame) - _headers(frame)) / gso_size)) if gso_size else 1


def wire_bytes(frame: bytes) -> int:
    """Return what all its packets take of the wire."""
    num = num_segments(frame)
    repeated = (num - 1) * (_headers(frame) - VNET_BYTES) if num > 1 else 0
    return len(frame) - VNET_BYTES + repeated + num * WIRE_BYTES


class Losses:
    """Loses each packet with the same probability, whatever frame it travels in; reproducible for a seed."""

    def __init__(self, probability: float, seed: int = 1) -> None:
        self._probability = probability
        self._random = Random(seed)
        self._until_next = self._draw()

    def survivors(self, frame: bytes) -> list[bytes]:
        """Return what arrives of a frame: itself as a rule, nothing, or the parts between its lost segments."""
        num = num_segments(frame)
        if self._until_next >= num:
            self._until_next -= num
            return [frame]
        lost = []
        position = 0
        while position + self._until_next < num:
            position += int(self._until_next)
            lost.append(position)
            position += 1
            self._until_next = self._draw()
        self._until_next -= num - position
        return without(frame, lost)

    def _draw(self) -> float:
        """Return how many packets pass before the next one is lost."""
        if not self._probability:
            return math.inf
        return math.floor(math.log(1.0 - self._random.random()) / math.log(1.0 - self._probability))


def without(frame: bytes, lost: list[int]) -> list[bytes]:
    """Return the runs of segments between the lost ones as frames of their own."""
    num = num_segments(frame)
    bounds = [-1, *lost, num]
    runs = ((before + 1, after) for before, after in pairwise(bounds))
    return [_part(frame, first, end, num) for first, end in runs if first < end]


def _part(frame: bytes, first: int, end: int, num: int) -> bytes:
    """Return segments `[first, end)` of `num`."""
    if (first, end) == (0, num):
        return frame
    size, headers = _gso_size(frame), _headers(frame)
    payload = frame[headers + first * size : headers + end * size]
    head = bytearray(frame[:headers])
    if len(payload) <= size:
        head[1] = 0  # no offload: one packet
        head[4:6] = bytes(2)
    ip = VNET_BYTES + ETHERNET_BYTES
    tcp = ip + (head[ip] & 0x0F) * 4
    struct.pack_into(">H", head, ip + 2, headers - ip + len(payload))
    struct.pack_into(">H", head, ip + 10, 0)
    struct.pack_into(">H", head, ip + 10, _internet_checksum(bytes(head[ip:tcp])))
    sequence = int.from_bytes(head[tcp + 4 : tcp + 8], "big") + first * size
    struct.pack_into(">I", head, tcp + 4, sequence & 0xFFFFFFFF)
    if end < num:
        head[tcp + 13] &= ~(FIN | PSH)
    return bytes(head) + payload


def _gso_size(frame: bytes) -> int:
    """Return the payload of one segment, 0 if the frame is one packet."""
    if frame[1] & ~GSO_ECN != GSO_TCPV4:
        return 0
    return int.from_bytes(frame[4:6], "little")


def _headers(frame: bytes) -> int:
    """Return where the payload of a TCP offload frame begins."""
    ip = VNET_BYTES + ETHERNET_BYTES
    tcp = ip + (frame[ip] & 0x0F) * 4
    return tcp + (frame[tcp + 12] >> 4) * 4


def _internet_checksum(header: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
