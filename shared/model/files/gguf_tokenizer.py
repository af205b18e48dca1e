"""Build a `tokenizer.json` from the vocabulary in a GGUF file: byte-level BPE and SentencePiece BPE."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from shared.errors import ModelFileError
from shared.model.files.gguf_file import GgufFile
from shared.model.text.bos import prepend_token
from shared.model.text.cuts import LLAMA3_WORDS, QWEN2_WORDS

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_SPACE = "\u2581"  # how SentencePiece spells a space
_SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), LLAMA3_WORDS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2_WORDS),
}
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r")
_GPT2 = ("default", "gpt-2")


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Return the tokenizer that a GGUF file describes. Raises `ModelFileError` for a kind that is not supported."""
    meta = file.metadata
    if not meta.get("tokenizer.ggml.tokens"):
        raise ModelFileError(f"{file.path}: field 'tokenizer.ggml.tokens' is missing")
    kind = meta.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelFileError(f"{file.path}: tokenizer.ggml.model {kind!r} is not supported (supported: gpt2, llama)")
    try:
        return _build(file, byte_level=kind == "gpt2")
    except ModelFileError:
        raise
    except Exception as error:  # the library raises bare Exception; a missing field is KeyError, a wrong id IndexError
        raise ModelFileError(f"{file.path}: no tokenizer can be built from its metadata: {error!r}") from error


def _build(file: GgufFile, *, byte_level: bool) -> Tokenizer:
    meta = file.metadata
    tokenizer = _byte_level(file) if byte_level else _sentencepiece(file)
    _add_special_tokens(tokenizer, meta)
    if meta.get("tokenizer.ggml.add_bos_token", not byte_level):
        prepend_token(tokenizer, meta["tokenizer.ggml.tokens"][meta["tokenizer.ggml.bos_token_id"]])
    return tokenizer


def _byte_level(file: GgufFile) -> Tokenizer:
    meta = file.metadata
    vocab = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta.get("tokenizer.ggml.merges", ())]
    for merge in merges:  # the library panics on some of these
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise ModelFileError(f"{file.path}: tokenizer.ggml.merges holds {merge!r}, which its tokens do not")
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    pre = meta.get("tokenizer.ggml.pre", "default")
    if pre in _SPLITS:
        first: Any = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        steps = [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif pre in _DIGITS_THEN_GPT2:
        digits: Any = pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif pre in _GPT2:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        known = ", ".join(sorted({*_SPLITS, *_DIGITS_THEN_GPT2, *_GPT2}))
        raise ModelFileError(f"{file.path}: tokenizer.ggml.pre {pre!r} is not supported (supported: {known})")
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    meta = file.metadata
    gemma = str(meta.get("general.architecture", "")).startswith("gemma")
    tokens = [_SPACE * len(t) if t and not t.strip(" ") else t for t in meta["tokenizer.ggml.tokens"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Gemma's scores do not follow its merge order, the order of the vocabulary does.
    rank = [float(i) for i in range(len(tokens))] if gemma else [-s for s in meta["tokenizer.ggml.scores"]]
    unknown = tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)]
    model = BPE(vocab=vocab, merges=_derive_merges(vocab, rank), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    replace: Any = normalizers.Replace(" ", _SPACE)
    decode: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if meta.get("tokenizer.ggml.add_space_prefix", not gemma):
        replace = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        decode.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def _derive_merges(vocab: dict[str, int], rank: list[float]) -> list[tuple[str, str]]:
    """Recover a SentencePiece vocabulary's merges: every way to cut a token in two tokens, best rank first."""
    found: list[tuple[float, int, int, int, str, str]] = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            left_id, right_id = vocab.get(left), vocab.get(right)
            if left_id is not None and right_id is not None:
                found.append((rank[index], -cut, left_id, right_id, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special_tokens(tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """Register control tokens as special and user-defined ones as plain added tokens, so that neither is cut up."""
    vocab = tokenizer.get_vocab()
    types = meta.get("tokenizer.ggml.token_type") or ()
    control, plain = [], []
    for token, kind in zip(meta["tokenizer.ggml.tokens"], types, strict=False):
        if token not in vocab:
            continue  # a run of spaces, respelled: its merges find it
        if kind == _CONTROL:
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(plain)
