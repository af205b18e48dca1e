"""What passes on the Unix socket between a pool and a process that maps its memory. All numbers are little-endian.

    process -> pool   HELLO    magic, token
    pool -> process   WELCOME  magic, attachment, bytes of the memory, where touched memory ends; with the descriptor
    process -> pool   NUMBER   the process reads and writes nothing of this stream any more
    pool -> process   NUMBER   where touched memory ends now

The socket stays open for as long as the process has the memory mapped: its end is how the pool knows that it has not.
"""

import struct

MAGIC = b"prfaasM1"
TOKEN_BYTES = 32
HELLO = struct.Struct(f"<8s{TOKEN_BYTES}s")
WELCOME = struct.Struct("<8sQQQ")
NUMBER = struct.Struct("<Q")
READ_BYTES = 8192
"""Of one read; so that one peer keeps nobody waiting."""


class Numbers:
    """Puts numbers together of what is read in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[int]:
        """Return the numbers that are whole now, in order."""
        data = self._rest + data
        end = len(data) // NUMBER.size * NUMBER.size
        self._rest = data[end:]
        return [number for (number,) in NUMBER.iter_unpack(data[:end])]
