"""A tokenizer that spells every text, for the tiny model `bytes`, and guides over it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from shared.model.grammar.grammars import Grammars
from shared.model.grammar.vocabulary import GrammarVocabulary
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import Constraint, ConstraintKind

EOS = 2
VOCAB_SIZE = 288  # rows of the model: the last ones have no token
LONGER = ('{"', '":', '",', '"},', "true", "false", "null", '":"', "ab", "10", "}}", "]}")


def save_tokenizer(directory: Path) -> Tokenizer:
    """Write a tokenizer of three special tokens, the 256 bytes, and a few longer tokens across the bounds of JSON's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate([*special, *alphabet, *LONGER])}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return Tokenizer.load(directory)


def grammars_of(directory: Path, vocab_size: int = VOCAB_SIZE) -> Grammars:
    """Return what compiles for the tokenizer in `directory`."""
    return Grammars(partial(GrammarVocabulary.load, directory, vocab_size))


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def regex(text: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, text)


def choice(*texts: str) -> Constraint:
    return Constraint(ConstraintKind.CHOICE, json.dumps(texts))


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)
