"""The bytes that single tokens stand for: unlike their text they are certain, also for half a character."""

import codecs
import re
from collections.abc import Container

from tokenizers import Tokenizer as Backend

_Utf8 = codecs.getincrementaldecoder("utf-8")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies spell a byte


class TokenBytes:
    """Joined, the bytes of an encoded text's tokens are its UTF-8 bytes (special tokens: their names)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._added = {i: token.content.encode() for i, token in backend.get_added_tokens_decoder().items()}
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        self._is_byte_level = b'"ByteLevel"' in decoder
        self.can_join = decoder.startswith(b'{"type":"ByteLevel"')  # the decoder does nothing but join bytes
        self._byte_of_char = _byte_of_char()
        self._joined: dict[int, bytes] = {}  # of ids that were asked for, like the next
        self._texts: dict[int, str | None] = {}

    def joined(self, token_id: int) -> bytes:
        """Return the bytes that a decoder which joins bytes takes for a token, be it an added one."""
        data = self._joined.get(token_id)
        if data is None:
            piece = self._backend.id_to_token(token_id) or ""
            try:
                data = bytes([self._byte_of_char[char] for char in piece])
            except KeyError:  # as a whole: that is how the library does it
                data = piece.encode()
            self._joined[token_id] = data
        return data

    def text(self, token_id: int) -> str | None:
        """Return the text of a token between two characters; None if it begins or ends inside one, or seems to."""
        if token_id not in self._texts:
            text = self.joined(token_id).decode(errors="replace")
            self._texts[token_id] = None if "\N{REPLACEMENT CHARACTER}" in text else text
        return self._texts[token_id]

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes: none for ids that only the model's output matrix has."""
        if token_id in self._added:
            return self._added[token_id]
        piece = self._backend.id_to_token(token_id) or ""
        if self._is_byte_level:
            return b"".join(bytes([self._byte_of_char[c]]) if c in self._byte_of_char else c.encode() for c in piece)
        byte = _BYTE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


class ByteDetokenizer:
    """As `tokenizer.Detokenizer`, where bytes need no context but those of their character: in half its time."""

    def __init__(self, token_bytes: TokenBytes, skipped_ids: Container[int]) -> None:
        self._bytes_of = token_bytes.joined
        self._text_of = token_bytes.text
        self._skipped_ids = skipped_ids
        self._decoder = _Utf8(errors="replace")
        self._pending = ""
        self._is_inside = False  # a character, or what is taken for one

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is now certain, often empty."""
        if token_id in self._skipped_ids:
            return ""
        if not self._is_inside and (text := self._text_of(token_id)) is not None:
            return text
        self._pending += self._decoder.decode(self._bytes_of(token_id))
        self._is_inside = self._pending.endswith("\N{REPLACEMENT CHARACTER}") or bool(self._decoder.getstate()[0])
        if self._is_inside:
            return ""
        text, self._pending = self._pending, ""
        return text

    def finish(self) -> str:
        """Return what is still pending, an incomplete character as U+FFFD. The stream starts anew."""
        text, self._pending = self._pending + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        self._is_inside = False
        return text


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
