"""The bytes that single tokens stand for: unlike their text they are certain, also for half a character."""

import re

from tokenizers import Tokenizer as Backend

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies spell a byte


class TokenBytes:
    """Immutable. Joined, the bytes of an encoded text's tokens are its UTF-8 bytes (special tokens: their names)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._added = {i: token.content.encode() for i, token in backend.get_added_tokens_decoder().items()}
        self._is_byte_level = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
        self._byte_of_char = _byte_of_char()

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes: none for ids that only the model's output matrix has."""
        if token_id in self._added:
            return self._added[token_id]
        piece = self._backend.id_to_token(token_id) or ""
        if self._is_byte_level:
            return b"".join(bytes([self._byte_of_char[c]]) if c in self._byte_of_char else c.encode() for c in piece)
        byte = _BYTE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
