"""Pieces of texts, encoded one by one, against the whole: the tokenisers of both built-in models, and other kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from shared.model.files.catalog import BUILT_IN, resolve
from shared.model.text.bos import prepend_token
from shared.model.text.cached import MIN_CHARS, CachedTokenizer
from shared.model.text.chat import ChatTemplate
from shared.model.text.cuts import LLAMA3_WORDS, QWEN2_WORDS, Cuts
from shared.model.text.tokenizer import Tokenizer
from tests.support.texts import real_text

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>", "<bos>")
FRAGMENTS = (
    *MARKS,
    *("<|im_", "start|>", "<", ">", "|", "<table>", "[multimodal]"),
    *(" ", "  ", "\n", "\n\n", "\n\n\n", "\r\n", "\t", "\t\t", "\u00a0", "\u2581", "\u3000"),
    *("the", "The", " of", "it's", "I'll", "x=1", "2048", "3.14", "don't\n", "end.\n", "f(x) {\n", "  return"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "猫",
        "日本語",
        "。\n",
        "🙂",
        "👩‍👩‍👧",
        "한국어 ",
        "русский ",
        "ﬁ",
        "²",
        "\u200b",
        "\x00",
    ),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=24).map("".join)


def trained(pre_tokenizer: Any, normalizer: Any = None, marks: tuple[Any, ...] = MARKS) -> Backend:
    """A small vocabulary with merges of its own, split as larger ones are."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([real_text(60_000)], trainer)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([mark if isinstance(mark, AddedToken) else AddedToken(mark) for mark in marks])
    return backend


def split_by(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def sentencepiece() -> Any:
    return normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def tokenizer_of(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, ChatTemplate("<|im_start|><|im_end|>", "test", {"eos_token": "<eos>"}), ())


MADE: dict[str, Callable[[], Backend]] = {
    "gpt2": lambda: trained(gpt2()),
    "llama3": lambda: trained(split_by(LLAMA3_WORDS)),
    "qwen2": lambda: trained(split_by(QWEN2_WORDS), normalizers.NFC()),
    "llama2": lambda: trained(None, sentencepiece()),
    "metaspace": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "prefixed": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


@pytest.fixture(scope="module", params=[*BUILT_IN, *MADE])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param in MADE:
        return tokenizer_of(MADE[request.param]())
    directory: Path = resolve(request.param, tmp_path_factory.mktemp("cache")).path
    return Tokenizer.load(directory)


@given(text=TEXTS, min_chars=st.integers(1, 12))
@example(text="word  next<|im_end|>\n<|im_start|>user\nIt's 10 o'clock \n\n now", min_chars=1)
def test_pieces_have_the_ids_of_the_whole(tokenizer: Tokenizer, text: str, min_chars: int) -> None:
    pieces = tokenizer.cuts.pieces(text, min_chars)
    assert "".join(pieces) == text
    encoded = [token_id for piece in pieces for token_id in tokenizer.encode(piece, add_special_tokens=False)]
    assert encoded == tokenizer.encode(text, add_special_tokens=False)


@given(text=TEXTS, more=TEXTS, min_chars=st.integers(1, 12))
def test_a_text_that_goes_on_keeps_its_pieces(tokenizer: Tokenizer, text: str, more: str, min_chars: int) -> None:
    pieces = tokenizer.cuts.pieces(text, min_chars)
    if not more.startswith(tuple("|>imstarend_<bos")):  # it may complete a special token
        assert tokenizer.cuts.pieces(text + more, min_chars)[: len(pieces) - 1] == pieces[:-1]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2"])
def test_prose_is_cut_to_about_the_size_asked_for(name: str) -> None:
    pieces = tokenizer_of(MADE[name]()).cuts.pieces(real_text(20_000), 500)
    assert all(500 <= len(piece) < 800 for piece in pieces[:-1])


def test_unknown_kinds_are_cut_at_special_tokens_alone() -> None:
    text = "one two\nthree<|im_start|>four five"
    for name in ("llama2", "metaspace", "prefixed"):
        assert tokenizer_of(MADE[name]()).cuts.pieces(text, 1) == ["one two\nthree", "<|im_start|>four five"]


@pytest.mark.parametrize(
    "marks",
    [
        (*MARKS, "<|im_start|>user"),  # it could be found in place of a shorter one
        (*MARKS, "x<|im"),  # before which another could begin
        (*MARKS, AddedToken("<wide>", rstrip=True)),
        (*MARKS, AddedToken("<word>", single_word=True)),
    ],
)
def test_a_token_that_another_may_displace_is_no_place_to_cut(marks: tuple[Any, ...]) -> None:
    cuts = Cuts.of(trained(gpt2(), marks=marks), ["<|im_start|>"])
    assert cuts.pieces("a<|im_start|>b", 100) == ["a<|im_start|>b"]


@given(parts=st.lists(TEXTS, min_size=1, max_size=6), salts=st.lists(st.sampled_from(["", "a"]), min_size=6))
def test_what_is_remembered_is_what_the_tokenizer_says(
    tokenizer: Tokenizer, parts: list[str], salts: list[str]
) -> None:
    cached = CachedTokenizer(tokenizer, 4000)
    text = real_text(MIN_CHARS)
    for part, salt in zip(parts, salts, strict=False):
        text += part
        for add_special_tokens in (True, False):
            assert cached.encode(text, salt, add_special_tokens) == tokenizer.encode(text, add_special_tokens)
        assert cached.figures.num_bytes <= 4000


def test_a_conversation_that_goes_on_is_encoded_from_where_it_is_new() -> None:
    cached = CachedTokenizer(tokenizer_of(MADE["gpt2"]()), 1 << 20)
    text = real_text(10_000)
    cached.encode(text, "")
    before = cached.figures
    assert (before.cached_chars, before.encoded_chars) == (0, 10_000)
    cached.encode(text + "<|im_start|> and more", "")
    later = cached.figures
    assert later.encoded_chars - before.encoded_chars == len("<|im_start|> and more")
    assert later.cached_chars == 10_000


def test_salts_share_nothing_and_no_memory_keeps_nothing() -> None:
    tokenizer, text = tokenizer_of(MADE["gpt2"]()), real_text(5000)
    cached = CachedTokenizer(tokenizer, 1 << 20)
    for salt in ("", "a", "b"):
        cached.encode(text, salt)
    assert cached.figures.cached_chars == 0
    without = CachedTokenizer(tokenizer, 0)
    assert without.encode(text, "") == without.encode(text, "") == tokenizer.encode(text)
    assert without.figures == (0, 10_000, 0)


def test_the_pieces_used_last_are_kept() -> None:
    tokenizer = tokenizer_of(MADE["gpt2"]())
    cached = CachedTokenizer(tokenizer, 30_000)
    kept = real_text(3000)
    for number in range(40):
        cached.encode(kept, "")
        cached.encode(real_text(2000, skip=5000 + 2000 * number), "")
    assert cached.figures.cached_chars == 39 * 3000
    assert cached.figures.num_bytes <= 30_000


def test_affixes_are_what_special_tokens_add() -> None:
    backend = trained(gpt2())
    assert tokenizer_of(backend).affixes == ([], [])
    prepend_token(backend, "<bos>")
    assert tokenizer_of(backend).affixes == ([backend.token_to_id("<bos>")], [])
