"""Tokenising, incremental decoding and chat templates, on the default model's own tokeniser and its oracle."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from shared.errors import BadRequest, ModelFileError
from shared.model.files.catalog import resolve
from shared.model.files.gguf_tokenizer import _derive_merges
from shared.model.text.tokenizer import Tokenizer
from tests.support.checkpoints import byte_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two  lines\n<b>&amp;</b> 🙂"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Go on"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve("smollm2-135m-instruct", tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def smollm(directory: Path) -> Tokenizer:
    return Tokenizer.load(directory)


def test_special_tokens_of_the_default_model(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49_152
    assert smollm.eos_ids == (2,)
    assert smollm.encode("") == []
    assert smollm.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert smollm.decode([1, 4093, 198]) == "user\n"
    assert smollm.decode([1, 4093, 198], skip_special_tokens=False) == "<|im_start|>user\n"


def test_digits_stand_alone(smollm: Tokenizer) -> None:
    """The model's pre-tokeniser splits every digit off, with effect on the newlines before it."""
    assert [smollm.decode([i]) for i in smollm.encode("a\n\n12 3")] == ["a", "\n\n", "1", "2", " ", "3"]


@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:], MESSAGES[1:2]])
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_template_equals_transformers(
    directory: Path, smollm: Tokenizer, messages: list[dict[str, str]], prompt: bool
) -> None:
    oracle = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = oracle.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert smollm.chat.render(messages, add_generation_prompt=prompt) == expected
    ids = oracle.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
    assert smollm.encode(smollm.chat.render(messages, add_generation_prompt=prompt), add_special_tokens=False) == ids


@settings(max_examples=60)
@given(text=st.text(max_size=60))
def test_text_survives_and_streams(smollm: Tokenizer, text: str) -> None:
    ids = smollm.encode(text, add_special_tokens=False)
    stream = smollm.detokenizer(skip_special_tokens=False)
    pieces = [stream.push(i) for i in ids]
    whole = smollm.decode(ids, skip_special_tokens=False)
    if text.isascii() and text.isprintable():  # the vocabulary lacks some bytes: control codes, rare scripts
        assert whole == text
    assert "".join(pieces) + stream.finish() == whole
    if "\N{REPLACEMENT CHARACTER}" not in whole:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@settings(max_examples=60)
@given(ids=st.lists(st.integers(3, 258), max_size=30))
def test_any_bytes_stream_to_the_decoded_whole(ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = _BYTES or _load_bytes(tmp_path_factory.mktemp("bytes"))
    stream = tokenizer.detokenizer()
    assert "".join(stream.push(i) for i in ids) + stream.finish() == tokenizer.decode(ids)


_BYTES: Tokenizer | None = None


def _load_bytes(path: Path) -> Tokenizer:
    global _BYTES  # noqa: PLW0603 - one tokenizer for all examples
    byte_tokenizer().save(str(path / "tokenizer.json"))
    _BYTES = Tokenizer.load(path)
    return _BYTES


def test_half_a_character_waits(tmp_path: Path) -> None:
    stream = _load_bytes(tmp_path).detokenizer()
    ids = _load_bytes(tmp_path).encode("é🙂")
    assert [stream.push(i) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert stream.finish() == ""
    assert [stream.push(ids[0]), stream.finish()] == ["", "\N{REPLACEMENT CHARACTER}"]


def test_default_template(tmp_path: Path) -> None:
    tokenizer = _load_bytes(tmp_path)
    assert tokenizer.chat.render(MESSAGES[:2]) == "System: Be brief.\nUser: Two  lines\n<b>&amp;</b> 🙂\nAssistant:"


def test_template_override_by_text_and_by_path(directory: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert Tokenizer.load(directory, template).chat.render(MESSAGES[2:3]) == "[Yes.]"
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    assert Tokenizer.load(directory, str(path)).chat.render(MESSAGES[2:3]) == "[Yes.]"
    with pytest.raises(ModelFileError, match="neither an existing file nor a template"):
        Tokenizer.load(directory, "/no/such/file.jinja")
    with pytest.raises(ModelFileError, match="cannot be compiled"):
        Tokenizer.load(directory, "{% for m in %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.no.such }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_a_template_that_rejects_or_misbehaves_is_a_bad_request(directory: Path, template: str) -> None:
    tokenizer = Tokenizer.load(directory, template)
    with pytest.raises(BadRequest) as caught:
        tokenizer.chat.render(MESSAGES)
    assert caught.value.param == "messages"


def test_template_functions(directory: Path) -> None:
    template = "{{ messages[0] | tojson }}{% break_me %}".replace("{% break_me %}", "{{ strftime_now('%Y')|length }}")
    rendered = Tokenizer.load(directory, template).chat.render([{"role": "user", "content": "<é>"}])
    assert rendered == '{"role": "user", "content": "<é>"}4'


def test_bos_stated_beside_the_tokenizer_file(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": {"content": "<s>"}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("")[:1] == [1]
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_damaged_files_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(tmp_path)


def test_merges_are_recovered_best_rank_first() -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3, "bb": 4}
    rank = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert _derive_merges(vocab, rank) == [("a", "b"), ("ab", "b"), ("a", "bb"), ("b", "b")]
