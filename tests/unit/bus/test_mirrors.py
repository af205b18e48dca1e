"""Copies of topics are told from the topics themselves by name alone."""

import pytest

from shared.bus.events import TOPIC_LOAD, TOPIC_MEMBERSHIP, TOPIC_PLACEMENT, decode_event
from shared.bus.kafka import TOPICS, topics_with_copies
from shared.bus.mirrors import copy_name, original_name, read_sources
from shared.errors import BadEvent
from tests.support.events import load

OURS = (TOPIC_PLACEMENT, TOPIC_MEMBERSHIP, TOPIC_LOAD)


@pytest.mark.parametrize("source", ["east", "eu-north_1", "prfaas"])
def test_a_copy_is_known_as_what_it_is_a_copy_of(source: str) -> None:
    for topic in OURS:
        assert original_name(copy_name(source, topic), OURS) == topic
        assert original_name(topic, OURS) == topic


@pytest.mark.parametrize("name", ["east.north.prfaas.load", "eastprfaas.load", ".prfaas.load", "prfaas.load.east", "x"])
def test_anything_else_is_a_copy_of_nothing(name: str) -> None:
    assert original_name(name, OURS) == name
    with pytest.raises(BadEvent):
        decode_event(name, b"")


def test_copies_are_kept_as_their_originals_are() -> None:
    topics = {topic.name: topic for topic in topics_with_copies(("east", "north"))}
    assert len(topics) == 9
    for topic in TOPICS:
        for name in (topic.name, f"east.{topic.name}", f"north.{topic.name}"):
            assert topics[name].config == topic.config


def test_an_event_of_a_copy_is_read_as_its_original() -> None:
    event = load("prefill-east")
    assert decode_event("east.prfaas.load", event.encode()) == event


def test_sources_are_names_that_topics_may_begin_with() -> None:
    assert read_sources(" east, north ,east") == ("east", "north")
    assert read_sources("") == ()
    with pytest.raises(ValueError, match=r"a\.b"):
        read_sources("a.b")
