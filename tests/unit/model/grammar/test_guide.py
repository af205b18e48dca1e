"""Where an answer is in its grammar follows from its tokens alone, and which tokens may follow from that."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from shared.errors import BadRequest
from shared.model.grammar.guide import Guide, MaskWriter
from shared.model.grammar.vocabulary import Mask
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.constraint import Constraint
from tests.support.structured import EOS, grammars_of, regex, save_tokenizer, schema

OBJECT = schema({"type": "object", "properties": {"ab": {"type": "boolean"}}, "required": ["ab"]})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return save_tokenizer(tmp_path)


class Compiler:
    """Guides over the tokenizer in a folder, and what they let follow."""

    def __init__(self, directory: Path, tokenizer: Tokenizer) -> None:
        self._grammars = grammars_of(directory)
        self._tokenizer = tokenizer
        self._writer = MaskWriter()

    async def guide(self, constraint: Constraint, text: str = "", ends: Iterable[int] = (EOS,)) -> Guide:
        return await self._grammars.guide(constraint, ends, self._tokenizer.encode(text))

    def mask(self, guide: Guide, may_end: bool = True) -> Mask:
        (mask,) = self._writer.write([guide], [may_end])
        assert not isinstance(mask, BadRequest), mask
        return mask

    def next(self, guide: Guide, may_end: bool = True) -> set[str]:
        """Return the tokens that may follow; the end is the empty string."""
        return {"" if token == EOS else self.spelt(token) for token in ids_of(self.mask(guide, may_end))}

    def spelt(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")


@pytest.fixture
def compiler(tmp_path: Path, tokenizer: Tokenizer) -> Compiler:
    return Compiler(tmp_path, tokenizer)


def ids_of(mask: Mask) -> list[int]:
    found: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return found


async def test_tokens_may_be_longer_than_what_they_spell(compiler: Compiler) -> None:
    assert compiler.next(await compiler.guide(regex("[ac]b[13]0"))) == {"a", "c", "ab"}
    assert compiler.next(await compiler.guide(regex("[ac]b[13]0"), "ab")) == {"1", "3", "10"}
    assert {"{", '{"'} <= compiler.next(await compiler.guide(schema({"type": ["object", "null"]})))


async def test_an_end_comes_when_the_answer_is_whole(compiler: Compiler) -> None:
    assert compiler.next(await compiler.guide(regex("aa+"), "a")) == {"a"}
    extensible = await compiler.guide(regex("aa+"), "aa")
    assert compiler.next(extensible) == {"a", ""}
    assert not extensible.is_complete
    assert (await compiler.guide(OBJECT, '{"ab":true}')).is_complete
    extensible.take([EOS])
    assert extensible.is_complete


async def test_an_end_that_may_not_come_yet(compiler: Compiler) -> None:
    assert compiler.next(await compiler.guide(regex("a+"), "a"), may_end=False) == {"a"}
    assert compiler.next(await compiler.guide(regex("a+"), "a", ends=()), may_end=True) == {"a"}, "it is ignored"
    assert compiler.next(await compiler.guide(regex("a|bc"), "bc"), may_end=False) == {""}, "nothing else may follow"
    assert compiler.next(await compiler.guide(regex("a?"), "a", ends=())) == {""}


async def test_other_ends_count_too(compiler: Compiler, tokenizer: Tokenizer) -> None:
    (stop,) = tokenizer.encode("b")
    guide = await compiler.guide(regex("[ab]+"), "a", ends=(EOS, stop))
    assert compiler.next(guide, may_end=False) == {"a", "ab"}
    assert compiler.next(guide) == {"a", "b", "ab", ""}


async def test_a_guide_is_a_function_of_tokens(compiler: Compiler, tokenizer: Tokenizer) -> None:
    text = tokenizer.encode('{"ab" : fal')
    grown = await compiler.guide(OBJECT)
    for number, token in enumerate(text):
        assert token in ids_of(compiler.mask(grown))
        grown.take([token])
        begun = await compiler.guide(OBJECT, tokenizer.decode(text[: number + 1]))
        assert ids_of(compiler.mask(begun)) == ids_of(compiler.mask(grown))


async def test_a_step_that_is_repeated(compiler: Compiler, tokenizer: Tokenizer) -> None:
    guide = await compiler.guide(OBJECT, '{"ab":')
    before = ids_of(compiler.mask(guide))
    num_tokens = len(tokenizer.encode('{"ab":'))
    guide.take(tokenizer.encode("true}"))
    assert ids_of(compiler.mask(guide)) == [EOS]
    guide.return_to(num_tokens + 100)
    assert ids_of(compiler.mask(guide)) == [EOS]
    guide.return_to(num_tokens)
    assert ids_of(compiler.mask(guide)) == before


async def test_what_cannot_follow_is_said_with_its_place(compiler: Compiler) -> None:
    with pytest.raises(BadRequest, match="token 2 of the answer"):
        await compiler.guide(regex("abab"), "abx")
    guide = await compiler.guide(regex("ab"))
    with pytest.raises(BadRequest):
        guide.take([EOS])
    assert not guide.is_complete


async def test_who_cannot_go_on_leaves_others_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (missing,) = tokenizer.encode("z")
    grammars = grammars_of(tmp_path, missing)  # a model with fewer rows than its tokeniser has tokens
    fine, stuck = await grammars.guide(regex("az?"), (EOS,)), await grammars.guide(regex("[az]z"), (EOS,))
    writer = MaskWriter()
    first, second = writer.write([fine, stuck], [True, True])
    assert not isinstance(first, BadRequest)
    assert ids_of(first) == tokenizer.encode("a")
    assert not isinstance(second, BadRequest)
    for guide in (fine, stuck):
        guide.take(tokenizer.encode("a"))
    first, second = writer.write([fine, stuck], [True, True])
    assert not isinstance(first, BadRequest)
    assert ids_of(first) == [EOS]
    assert isinstance(second, BadRequest)
    assert writer.write([], []) == []


async def test_an_end_that_is_text_ends_nothing(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    (end,) = tokenizer.encode("a")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    guide = await grammars_of(tmp_path).guide(regex("[ab]b"), (end,))
    (mask,) = MaskWriter().write([guide], [True])
    assert not isinstance(mask, BadRequest)
    assert end not in ids_of(mask)
