"""The bytes of single tokens, for both ways in which vocabularies spell bytes."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from shared.model.text.chat import ChatTemplate
from shared.model.text.token_bytes import ByteDetokenizer, TokenBytes
from shared.model.text.tokenizer import Detokenizer, Tokenizer
from tests.support.checkpoints import byte_tokenizer

EOS = 256 + 3


def sentencepiece() -> Backend:
    """A vocabulary as Gemma's: a byte each, then pieces in which a lower block is a space."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "<eos>"]
    backend = Backend(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], unk_token="<eos>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<eos>"])
    return backend


@given(st.text("a é猫🙂\n", max_size=20))
def test_bytes_of_sentencepiece_vocabularies(text: str) -> None:
    backend = sentencepiece()
    token_bytes = TokenBytes(backend)
    assert b"".join(token_bytes.of(i) for i in backend.encode(text).ids) == text.encode()


def test_single_bytes_special_tokens_and_none() -> None:
    token_bytes = TokenBytes(sentencepiece())
    assert [token_bytes.of(i) for i in (0xE7, 256, 258, EOS, EOS + 1)] == [b"\xe7", b" ", b" a", b"<eos>", b""]


def test_byte_level_vocabularies_have_every_byte() -> None:
    token_bytes = TokenBytes(byte_tokenizer())
    assert {token_bytes.of(i) for i in range(3, 259)} == {bytes([byte]) for byte in range(256)}
    assert token_bytes.of(1) == b"<s>"


def odd_tokenizer() -> Tokenizer:
    """Bytes, and added tokens that a decoder of bytes takes for others: their letters are in its alphabet or not."""
    backend = byte_tokenizer()
    backend.add_tokens(["é!", "a b", "Ġx", "猫", "\N{REPLACEMENT CHARACTER}"])
    backend.add_special_tokens(["<tool>"])
    return Tokenizer(backend, ChatTemplate("", "test", {}), ())


ODD = odd_tokenizer()


@given(
    st.lists(st.integers(0, ODD.vocab_size + 2) | st.sampled_from([0xC3, 0xA9, 0xF0, 0x9F]), max_size=24), st.booleans()
)
def test_bytes_stream_as_the_decoder_decodes(ids: list[int], skip_special_tokens: bool) -> None:
    quick, slow = ODD.detokenizer(skip_special_tokens), Detokenizer(ODD, ODD.special_ids if skip_special_tokens else ())
    assert isinstance(quick, ByteDetokenizer)
    assert [quick.push(i) for i in ids] == [slow.push(i) for i in ids]
    assert quick.finish() == slow.finish()
    assert [quick.push(i) for i in ids] == [slow.push(i) for i in ids], "a stream that starts anew"


def test_other_decoders_have_their_context() -> None:
    assert isinstance(Tokenizer(sentencepiece(), ChatTemplate("", "test", {}), ()).detokenizer(), Detokenizer)
