"""Stop strings, and text from ids."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.request.text import ChoiceText, ShownToken, StopMatcher, TextRules
from shared.model.text.tokenizer import Tokenizer
from shared.sampling.logprobs import TokenLogprobs
from tests.support.gateway import EOS, byte_tokenizer
from tests.support.gateway import ids_of as ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[list[str], bool]:
    shown = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "stopped"),
    [
        ((), ["ab", "c"], ["ab", "c", ""], False),
        (("X",), ["abXc"], ["ab"], True),
        (("STOP",), ["a S", "TO", "P b"], ["a ", "", ""], True),
        (("STOP",), ["a ST", "ART"], ["a ", "START", ""], False),
        (("STOP",), ["SSTOP"], ["S"], True),
        (("aab",), ["aaa", "b"], ["a", ""], True),
        (("abc", "b"), ["ab"], ["a"], True),  # the match that begins first wins, here one that is complete already
        (("bc", "abc"), ["abc"], [""], True),
        (("ab", "abc"), ["abc"], [""], True),
        (("xyz",), ["xy"], ["", "xy"], False),  # held back, then shown: nothing more came
    ],
)
def test_stop_strings(stop: tuple[str, ...], pieces: list[str], shown: list[str], stopped: bool) -> None:
    assert run(StopMatcher(stop), pieces) == (shown, stopped)


def test_a_stop_string_may_be_part_of_the_text() -> None:
    assert run(StopMatcher(("STOP",), include=True), ["a S", "TOP b"]) == (["a ", "STOP"], True)


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_pieces_do_not_matter_and_nothing_after_a_match_is_shown(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    shown, stopped = run(StopMatcher(tuple(stop)), pieces)
    # Reading piece by piece, the first stop string to be *complete* ends the text.
    seen = ""
    for piece in pieces:
        seen += piece
        if any(s in seen for s in stop):
            break
    starts = [seen.find(s) for s in stop if s in seen]
    assert stopped == bool(starts)
    assert "".join(shown) == (seen[: min(starts)] if starts else whole)


def test_text_is_whole_whatever_the_steps(tokenizer: Tokenizer) -> None:
    text = "naïve 猫 🙂!"
    choice = ChoiceText(tokenizer, TextRules())
    deltas = [choice.push([token_id], None) for token_id in ids(text)]
    assert "".join(delta.text for delta in deltas) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in delta.text for delta in deltas)
    assert choice.push([], "length").finish_reason == "length"


def test_an_unfinished_character_is_shown_as_such_at_the_end(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules())
    assert choice.push(ids("é")[:1], "length").text == "\N{REPLACEMENT CHARACTER}"


def test_tokens_after_a_stop_string_are_not_counted(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules(stop=("END",)))
    assert choice.push(ids("one EN"), None)[:3] == ("one ", 6, None)
    assert choice.push(ids("D two"), None)[:3] == ("", 1, "stop")


def test_a_stop_string_in_the_last_tokens_wins_over_length(tokenizer: Tokenizer) -> None:
    assert ChoiceText(tokenizer, TextRules(stop=("d",))).push(ids("abcd"), "length")[:3] == ("abc", 4, "stop")
    assert ChoiceText(tokenizer, TextRules(stop=("de",))).push(ids("abcd"), "length")[:3] == ("abcd", 4, "length")


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules(stop=("a",), min_tokens=3))
    assert choice.push(ids("aaab"), None)[:3] == ("aaab", 4, None)
    assert choice.push(ids("ca"), None)[:3] == ("c", 2, "stop")


def test_the_token_that_ends_a_choice_is_counted_and_hidden(tokenizer: Tokenizer) -> None:
    rules = TextRules(hidden_ids=frozenset({EOS, *ids("z")}), skip_special_tokens=False)
    assert ChoiceText(tokenizer, rules).push([*ids("ab"), EOS], "stop")[:3] == ("ab", 3, "stop")
    assert ChoiceText(tokenizer, rules).push(ids("abz"), "stop")[:3] == ("ab", 3, "stop")
    assert ChoiceText(tokenizer, rules).push(ids("zab"), "length")[:3] == ("zab", 3, "length")


def told(count: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(number), ()) for number in range(count)]


def test_tokens_with_logprobs_come_with_the_text_that_they_begin(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules(stop=("END",)))
    first = choice.push(ids("ab EN"), None, told(5))
    assert (first.text, [token.offset for token in first.tokens]) == ("ab ", [0, 1, 2])
    second = choice.push(ids("x"), None, told(1))  # what was held back turns out to be text
    assert (second.text, [token.offset for token in second.tokens]) == ("ENx", [3, 4, 5])
    assert [token.logprobs and token.logprobs.logprob for token in second.tokens] == [-3.0, -4.0, 0.0]
    last = choice.push(ids("yEND"), None, told(4))
    assert (last.text, [token.id for token in last.tokens], last.finish_reason) == ("y", ids("y"), "stop")


def test_bytes_of_one_character_share_its_offset(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules(stop=("猫!",)))
    deltas = [choice.push([token_id], None, told(1)) for token_id in ids("é🙂猫?猫!")]
    shown = [token for delta in deltas for token in delta.tokens]
    assert "".join(delta.text for delta in deltas) == "é🙂猫?"
    assert [token.offset for token in shown] == [0] * 2 + [1] * 4 + [2] * 3 + [3]
    assert b"".join(tokenizer.token_bytes(token.id) for token in shown).decode() == "é🙂猫?"
    assert deltas[-1].finish_reason == "stop"


def test_the_end_token_has_no_logprobs_and_half_a_character_has(tokenizer: Tokenizer) -> None:
    rules = TextRules(hidden_ids=frozenset({EOS}))
    ended = ChoiceText(tokenizer, rules).push([*ids("a"), EOS], "stop", told(2))
    assert [token.id for token in ended.tokens] == ids("a")
    cut = ChoiceText(tokenizer, rules).push(ids("aé")[:2], "length", told(2))
    assert (cut.text, [token.offset for token in cut.tokens]) == ("a\N{REPLACEMENT CHARACTER}", [0, 1])


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_have_logprobs_where_they_have_text(tokenizer: Tokenizer, skip: bool) -> None:
    choice = ChoiceText(tokenizer, TextRules(skip_special_tokens=skip))
    delta = choice.push([*ids("a"), EOS, *ids("b")], None, told(3))
    assert delta.text == ("ab" if skip else "a<eos>b")
    assert [token.offset for token in delta.tokens] == ([0, 1] if skip else [0, 1, 6])


@given(
    st.text("abé猫🙂", max_size=12),
    st.lists(st.text("abé猫🙂", min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(1, 5), min_size=40, max_size=40),
    st.booleans(),
)
def test_tokens_spell_the_text_whatever_the_steps(
    tokenizer: Tokenizer, text: str, stop: list[str], steps: list[int], include: bool
) -> None:
    left, finish = ids(text), None
    pieces: list[str] = []
    shown: list[ShownToken] = []
    choice = ChoiceText(tokenizer, TextRules(stop=tuple(stop), include_stop=include))
    for step in steps:
        delta = choice.push(left[:step], None if left[step:] else "length", told(step))
        left = left[step:]
        pieces.append(delta.text)
        shown += delta.tokens
        finish = delta.finish_reason
        if finish:
            break
    whole, spelt = "".join(pieces), b"".join(tokenizer.token_bytes(token.id) for token in shown).decode()
    assert spelt == whole  # here no token crosses the edge of a character
    before = [b"".join(_bytes(tokenizer, shown[:place])) for place in range(len(shown))]
    assert [token.offset for token in shown] == [len(data.decode(errors="ignore")) for data in before]
    assert (finish == "stop") == any(s in text for s in stop)


def _bytes(tokenizer: Tokenizer, tokens: list[ShownToken]) -> list[bytes]:
    return [tokenizer.token_bytes(token.id) for token in tokens]
