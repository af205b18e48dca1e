"""Text to token ids and back, with the model's own special-token rules. No torch."""

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from shared.errors import ModelFileError
from shared.model.text.bos import prepend_token
from shared.model.text.chat import ChatTemplate, find_template
from shared.model.text.cuts import Cuts
from shared.model.text.token_bytes import ByteDetokenizer, TokenBytes

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of half a UTF-8 character


class Tokenizer:
    """A model's tokeniser and chat template. Immutable and safe to call from several threads.

    Encoding is CPU-bound and releases the GIL only in part: keep long texts off an event loop.
    """

    def __init__(self, backend: Backend, chat: ChatTemplate, eos_ids: tuple[int, ...]) -> None:
        self._backend = backend
        self.cuts = Cuts.of(backend, chat.literals)
        self._bytes = TokenBytes(backend)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.added_ids = {token.content: i for i, token in added.items()}  # found in a text before anything else
        self.chat = chat
        self.eos_ids = eos_ids  # any of them ends a generation

    @classmethod
    def load(cls, directory: Path, chat_template: str | None = None) -> "Tokenizer":
        """Read `tokenizer.json` and its companions. `chat_template` (a path or the text) overrides the model's.

        Raises `ModelFileError` with the file and what is wrong with it.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise ModelFileError(f"{path}: cannot be read as a tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        settings = _read_json(directory / "tokenizer_config.json")
        special = {key: _token_text(settings.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        if settings.get("add_bos_token") and special["bos_token"] and not backend.encode("").ids:
            prepend_token(backend, special["bos_token"])  # stated beside tokenizer.json, not in it
        template, source = find_template(directory, settings, chat_template)
        return cls(backend, ChatTemplate(template, source, special), _eos_ids(directory, backend, special["eos_token"]))

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included; the model's output matrix may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """Return what `tokenizer.json` says, for other libraries that read it."""
        return self._backend.to_str()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`. With `add_special_tokens`, BOS where the model wants one; text from a chat
        template holds it already."""
        # "Fast" is without the places of tokens in the text, which nobody asks for.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    @cached_property
    def affixes(self) -> tuple[Sequence[int], Sequence[int]] | None:
        """The ids that are added before and after those of every text; None where that is not all that is added."""
        whole, bare = (self.encode("a b", add) for add in (True, False))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; ids beyond the vocabulary have none."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one token stands for, by itself."""
        return self._bytes.of(token_id)

    def detokenizer(
        self, skip_special_tokens: bool = True, shown: Collection[int] = ()
    ) -> "Detokenizer | ByteDetokenizer":
        """Return an incremental decoder for one stream of ids. `shown`: special tokens that are not skipped."""
        skipped = self.special_ids.difference(shown) if skip_special_tokens else frozenset[int]()
        if self._bytes.can_join:
            return ByteDetokenizer(self._bytes, skipped)
        return Detokenizer(self, skipped)


class Detokenizer:
    """Decodes one stream of ids as they come. The pieces it returns, joined, are the decoded whole.

    A token's text can depend on those before it (spaces, bytes of one character), so it decodes a short tail with and
    without the new ids and returns the difference, once that does not end inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, skipped_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._tail: list[int] = []  # ids that give context, then ids whose text is pending
        self._num_context = 0

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is now certain, often empty."""
        if token_id in self._skipped_ids:
            return ""
        self._tail.append(token_id)
        pending = self._pending()
        if not pending or pending.endswith(_REPLACEMENT):
            return ""
        self._tail = self._tail[self._num_context :]
        self._num_context = len(self._tail)
        return pending

    def finish(self) -> str:
        """Return what is still pending, an incomplete character as U+FFFD. The stream starts anew."""
        pending = self._pending()
        self._tail, self._num_context = [], 0
        return pending

    def _pending(self) -> str:
        known = self._tokenizer.decode(self._tail[: self._num_context], skip_special_tokens=False)
        return self._tokenizer.decode(self._tail, skip_special_tokens=False)[len(known) :]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: expected a JSON object")
    return content


def _token_text(value: Any) -> str:
    """Return a special token's text: configs hold it as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _eos_ids(directory: Path, backend: Backend, eos_token: str) -> tuple[int, ...]:
    """Collect the ids that end a generation, from every file that may name some."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        content = _read_json(directory / name)
        value = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
        found += value if isinstance(value, list) else [] if value is None else [value]
    token = backend.token_to_id(eos_token) if eos_token else None
    if token is not None:
        found.append(token)
    return tuple(dict.fromkeys(found))
