"""The bytes of single tokens, for both ways in which vocabularies spell bytes."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from shared.model.text.token_bytes import TokenBytes
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
