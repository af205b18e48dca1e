"""Where a text may be cut so that its pieces, encoded one by one, have the ids of the whole."""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer as Backend

PIECE_CHARS = 1024
"""Pieces are at least that long, unless a special token ends them: a shorter one costs more to find than to encode."""

_LETTERS = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u045f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
"""Some that are letters by every version of Unicode since 5.0: the tokeniser's need not be Python's."""

_AFTER_A_WORD = rf"(?<=[0-9{_LETTERS}])[ \n]"
_BEFORE_LINE_ENDS = r"(?<!\n)\n"

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
"""How these families' tokenisers split words off: no alternative has a letter or digit before a blank."""


class Cuts:
    """The places at which one tokenizer's texts may be cut. Immutable.

    There are three kinds of them, each of which is used only where the tokenizer is known to allow it:

    - Before a special token of the chat template. Added tokens are looked for before anything else, from left to right,
      the longest first. One that no other overlaps or contains is found wherever it stands, and no other rule sees
      across it.
    - Between a word and a blank or line end, where words are split off by a regular expression none of whose
      alternatives has a letter or digit before a blank. Merges stay within words.
    - Before line ends, where those are added tokens themselves and no other token has one inside.
    """

    def __init__(self, marks: Iterable[str], within: str | None) -> None:
        """`marks` are the special tokens, `within` is a pattern that begins where other pieces may."""
        self._marks = re.compile("|".join(map(re.escape, sorted(marks)))) if marks else None
        self._within = re.compile(within) if within else None

    @classmethod
    def of(cls, backend: Backend, candidates: Iterable[str]) -> "Cuts":
        """Return what is known to be safe; `candidates` are texts that may be special tokens to cut at."""
        added = list(backend.get_added_tokens_decoder().values())
        if any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
            return cls((), None)  # they look at their surroundings
        contents = [token.content for token in added]
        special = {token.content for token in added if token.special}
        marks = [text for text in dict.fromkeys(candidates) if text in special and _stands_alone(text, contents)]
        return cls(marks, _within(backend, contents))

    def pieces(self, text: str, min_chars: int = PIECE_CHARS) -> list[str]:
        """Cut a text. Its beginning decides how: a text that goes on has the same pieces but for the last."""
        starts = [0]
        if self._marks is not None:
            starts += [found.start() for found in self._marks.finditer(text) if found.start()]
        pieces: list[str] = []
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            while self._within is not None and (found := self._within.search(text, start + min_chars, end)):
                pieces.append(text[start : found.start()])
                start = found.start()
            pieces.append(text[start:end])
        return pieces


def _stands_alone(text: str, added: Iterable[str]) -> bool:
    """Return whether no added token could be found in place of this one, whatever text surrounds it."""
    if any(char.isspace() or not char.isascii() for char in text):
        return False
    beginnings = tuple(text[:length] for length in range(1, len(text)))
    return not any((text in other and text != other) or other.endswith(beginnings) for other in added)


def _within(backend: Backend, added: Iterable[str]) -> str | None:
    """Return the pattern of the places within plain text, if the tokenizer's parts are known and allow some."""
    normalizer, pre_tokenizers = _state(backend.normalizer), _steps(_state(backend.pre_tokenizer))
    if normalizer not in (None, {"type": "NFC"}) and not _replaces_blanks(normalizer):
        return None
    if not pre_tokenizers:
        with_line_ends = [token for token in added if "\n" in token]
        alone = "\n" in with_line_ends and not any(token.strip("\n") for token in with_line_ends)
        return _BEFORE_LINE_ENDS if alone else None
    if any(re.search(_AFTER_A_WORD, token) for token in added) or _replaces_blanks(normalizer):
        return None
    *first, last = pre_tokenizers
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    is_split = any(_is_known_split(step) for step in first) or last["use_regex"]
    others = [step for step in first if not _is_known_split(step) and step["type"] != "Digits"]
    return _AFTER_A_WORD if is_split and not others else None


def _replaces_blanks(normalizer: Any) -> bool:
    """Return whether all that a normalizer does is to spell a blank otherwise."""
    return normalizer is not None and normalizer["type"] == "Replace" and normalizer["pattern"] == {"String": " "}


def _is_known_split(step: Any) -> bool:
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    return step["pattern"].get("Regex") in (LLAMA3_WORDS, QWEN2_WORDS)


def _steps(pre_tokenizer: Any) -> list[Any]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _state(part: Any) -> Any:
    """Return how a part of the tokenizer is written in `tokenizer.json`."""
    return None if part is None else json.loads(part.__getstate__())
