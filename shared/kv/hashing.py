"""Content addresses of KV blocks, `key_i = sha256(key_{i-1} ‖ tokens_i)`: equal prefixes, equal keys, everywhere."""

import hashlib
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache

from shared.ids import BlockKey, LayoutHash, ModelFingerprint
from shared.kv.codec.spec import Fidelity

KEY_BYTES = 32
_DOMAIN = b"prfaas.kv.v1"


@lru_cache(maxsize=1024)  # a gateway has one model, and a salt for each tenant
def root_key(
    fingerprint: ModelFingerprint, layout_hash: LayoutHash, salt: str = "", fidelity: Fidelity = Fidelity.LOSSLESS
) -> BlockKey:
    """Return the key that every chain of one model, KV layout (dtype included) and tenant salt starts from.

    A lossy class has chains of its own: a lossy block cannot pose as a lossless one, nor can what was computed on it.
    """
    parts = [fingerprint, layout_hash, salt]
    if fidelity is not Fidelity.LOSSLESS:
        parts.append(fidelity.name.lower())
    digest = hashlib.sha256(_DOMAIN)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)  # lengths keep ("ab", "c") and ("a", "bc") apart
    return BlockKey(digest.digest())


def chain_keys(root: BlockKey, token_ids: Sequence[int], block_tokens: int) -> list[BlockKey]:
    """Return the key of every full block of `token_ids`. Tokens enter the hash as little-endian uint32."""
    packed = array("I", token_ids[: len(token_ids) // block_tokens * block_tokens])
    if sys.byteorder == "big":
        packed.byteswap()
    data = packed.tobytes()
    step = block_tokens * packed.itemsize
    keys: list[BlockKey] = []
    previous = root
    for start in range(0, len(data), step):
        previous = BlockKey(hashlib.sha256(previous + data[start : start + step]).digest())
        keys.append(previous)
    return keys


def num_prefix_blocks(num_tokens: int, block_tokens: int) -> int:
    """Return how many blocks of a prompt are worth computing ahead of it: all full ones, but never the last token's."""
    return max(0, (num_tokens - 1) // block_tokens)
