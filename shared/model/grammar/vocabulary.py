"""The model's tokens as the grammar compiler wants them, and masks over them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from shared.model.text.tokenizer import Tokenizer

Mask = NDArray[np.uint32]
"""Words `[num_words]`: bit `i % 32` of word `i // 32` is set where token `i` may follow."""


@dataclass(frozen=True)
class GrammarVocabulary:
    """A model's tokens with the bytes that they stand for. Immutable, and safe to use from several threads."""

    backend: LLTokenizer
    num_words: int  # of a mask: for all tokens of the tokeniser, and for all rows of the model's output
    eos_ids: frozenset[int]
    absent: tuple[int, ...]  # ids that the tokeniser has and the model has not

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> "GrammarVocabulary":
        """Read a tokeniser; takes up to seconds. `vocab_size`: rows of the model's output matrix."""
        num_ids = max(vocab_size, tokenizer.vocab_size)
        eos_ids = [token for token in tokenizer.eos_ids if token < num_ids]
        backend = LLTokenizer(tokenizer.to_json(), n_vocab=num_ids, eos_token=eos_ids or None)
        absent = tuple(range(vocab_size, num_ids))
        return cls(backend, (num_ids + 31) // 32, frozenset(backend.eos_tokens), absent)

    @classmethod
    def load(cls, directory: Path, vocab_size: int) -> "GrammarVocabulary":
        """Read the tokeniser in a model's directory. Raises `ModelFileError`."""
        return cls.of(Tokenizer.load(directory), vocab_size)

    def without(self, mask: Mask, ids: Iterable[int]) -> Mask:
        """Return a mask in which none of `ids` may follow: the same one, if none might."""
        narrowed = mask
        for token in ids:
            word, bit = token // 32, np.uint32(1 << token % 32)
            if word < self.num_words and narrowed[word] & bit:
                narrowed = mask.copy() if narrowed is mask else narrowed
                narrowed[word] &= ~bit
        return narrowed
