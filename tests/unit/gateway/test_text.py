"""Stop strings, and text from ids."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.text import ChoiceText, StopMatcher, TextRules
from shared.model.tokenizer import Tokenizer
from tests.contract.gateway_harness import EOS, byte_tokenizer
from tests.contract.gateway_harness import ids_of as ids


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
    assert choice.push(ids("one EN"), None) == ("one ", 6, None)
    assert choice.push(ids("D two"), None) == ("", 1, "stop")


def test_a_stop_string_in_the_last_tokens_wins_over_length(tokenizer: Tokenizer) -> None:
    assert ChoiceText(tokenizer, TextRules(stop=("d",))).push(ids("abcd"), "length") == ("abc", 4, "stop")
    assert ChoiceText(tokenizer, TextRules(stop=("de",))).push(ids("abcd"), "length") == ("abcd", 4, "length")


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, TextRules(stop=("a",), min_tokens=3))
    assert choice.push(ids("aaab"), None) == ("aaab", 4, None)
    assert choice.push(ids("ca"), None) == ("c", 2, "stop")


def test_the_token_that_ends_a_choice_is_counted_and_hidden(tokenizer: Tokenizer) -> None:
    rules = TextRules(hidden_ids=frozenset({EOS, *ids("z")}), skip_special_tokens=False)
    assert ChoiceText(tokenizer, rules).push([*ids("ab"), EOS], "stop") == ("ab", 3, "stop")
    assert ChoiceText(tokenizer, rules).push(ids("abz"), "stop") == ("ab", 3, "stop")
    assert ChoiceText(tokenizer, rules).push(ids("zab"), "length") == ("zab", 3, "length")
