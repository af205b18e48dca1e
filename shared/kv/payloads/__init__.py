"""Many payloads at once: their checksums, their way out of pages and into them, each in one call without the
interpreter's lock.

Calls for one payload each let go of the lock each time. Beside a thread that computes, to get it back takes as long as
the interpreter's switch interval, which is longer than to read a hundred payloads.
"""

from shared.kv.payloads.copies import addresses_of, copy_in, copy_in_sealed
from shared.kv.payloads.digests import MAX_HEADER_BYTES, MIN_HEADER_BYTES, SHORT_BYTES, copy_out, digest, digests
from shared.kv.payloads.native import load_payload_kernels

__all__ = [
    "MAX_HEADER_BYTES",
    "MIN_HEADER_BYTES",
    "SHORT_BYTES",
    "addresses_of",
    "copy_in",
    "copy_in_sealed",
    "copy_out",
    "digest",
    "digests",
    "load_payload_kernels",
]
