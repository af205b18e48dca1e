"""Encoding of texts whose beginnings come again: a conversation's next turn is not encoded from its beginning."""

from array import array
from collections import OrderedDict
from sys import getsizeof
from threading import Lock
from typing import NamedTuple

from shared.model.text.cuts import PIECE_CHARS
from shared.model.text.tokenizer import Tokenizer

MIN_CHARS = PIECE_CHARS // 4
"""Shorter texts are encoded as they come: finding pieces of them is not worth while."""

_ENTRY_BYTES = 300  # of the dictionary, its links, the key's tuple, the two objects' heads


class CacheFigures(NamedTuple):
    """What a cache has done and what it takes."""

    cached_chars: int  # of texts, found
    encoded_chars: int  # of texts, encoded
    num_bytes: int


class CachedTokenizer:
    """Keeps the ids of the pieces of texts, those used last, up to a number of bytes. Safe to call from threads.

    A piece is found by its own text, wherever it stands, and only under the salt that it was kept under: how long an
    answer takes tells nobody what those with another salt have asked.
    """

    def __init__(self, tokenizer: Tokenizer, max_bytes: int) -> None:
        """`max_bytes` 0: nothing is kept."""
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self._ids: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._lock = Lock()
        self._num_bytes = self._cached_chars = self._encoded_chars = 0

    @property
    def figures(self) -> CacheFigures:
        return CacheFigures(self._cached_chars, self._encoded_chars, self._num_bytes)

    def encode(self, text: str, salt: str, add_special_tokens: bool = True) -> list[int]:
        """Return what the tokenizer would."""
        affixes = self._tokenizer.affixes if add_special_tokens else ((), ())
        if not self._max_bytes or len(text) < MIN_CHARS or affixes is None:
            with self._lock:
                self._encoded_chars += len(text)
            return self._tokenizer.encode(text, add_special_tokens)
        ids = array("I", affixes[0])
        for piece in self._tokenizer.cuts.pieces(text):
            ids.extend(self._piece((salt, piece)))
        ids.extend(affixes[1])
        return ids.tolist()

    def _piece(self, key: tuple[str, str]) -> "array[int]":
        _, text = key
        with self._lock:
            known = self._ids.get(key)
            if known is not None:
                self._ids.move_to_end(key)
                self._cached_chars += len(text)
                return known
            self._encoded_chars += len(text)
        ids = array("I", self._tokenizer.encode(text, add_special_tokens=False))
        with self._lock:
            if key not in self._ids:
                self._ids[key] = ids
                self._num_bytes += _size(key, ids)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _size(*self._ids.popitem(last=False))
        return ids


def _size(key: tuple[str, str], ids: "array[int]") -> int:
    return _ENTRY_BYTES + getsizeof(key[1]) + ids.itemsize * len(ids)
