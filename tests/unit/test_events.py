"""Every event survives its way through JSON, whatever text stands in it."""

from __future__ import annotations

import json
import typing
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterduck import events
from clusterduck.errors import JournalError
from clusterduck.events import Event


def every_class() -> list[type[Event]]:
    found, waiting = [], [Event]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.name:
            found.append(cls)
    return sorted(found, key=lambda cls: cls.name)


#: Any text at all: quotes, line feeds, escape sequences, halves of characters.
TEXT = st.text(st.characters(codec=None, categories=None), max_size=8)
NUMBER = st.integers(-(2**40), 2**40)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)


def strategy_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, in the form that JSON gives back (a tuple comes back as a list)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    simple = {
        str: TEXT,
        int: NUMBER,
        bool: st.booleans(),
        float: st.floats(-1e12, 1e12),
        type(None): st.none(),
        Any: PLAIN,
    }
    if kind in simple:
        return simple[kind]
    if origin is list:
        return st.lists(strategy_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXT, strategy_of(arguments[1]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(strategy_of, arguments)).map(list)
    return st.one_of(*map(strategy_of, arguments))


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    cls = draw(st.sampled_from(every_class()))
    kinds = typing.get_type_hints(cls)
    return cls(**{one.name: draw(strategy_of(kinds[one.name])) for one in fields(cls)})


@given(any_event())
def test_there_and_back(event: Event) -> None:
    text = events.to_json(event)
    assert text.isascii() and "\n" not in text
    assert events.from_json(text) == event


def test_every_event_has_a_name_of_its_own() -> None:
    names = [cls.name for cls in every_class()]
    assert len(names) == len(set(names)) >= 15


def test_fields_of_a_newer_version_are_passed_over() -> None:
    event = events.AttemptLocated(time=1.5, run=3, attempt=1, run_dir="/a", log="/b")
    data = json.loads(events.to_json(event)) | {"colour": "blue"}
    assert events.from_json(json.dumps(data)) == event


def test_events_of_a_newer_version_are_told_as_such() -> None:
    found = events.from_json('{"e": "landed", "time": 1.5, "where": {"moon": [1, 2]}}')
    assert found == events.UnknownEvent(time=1.5, kind="landed")
    assert not events.knows("landed") and events.knows("located")


def test_fields_of_an_older_version_take_their_defaults() -> None:
    data = {"e": "ended", "time": 1.5, "run": 3, "attempt": 1, "state": "COMPLETED"}
    assert events.from_json(json.dumps(data)) == events.AttemptEnded(time=1.5, run=3, attempt=1, state="COMPLETED")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        "{}",
        '{"e": "no such event", "time": []}',
        '{"e": "located", "run": 3}',
        '{"e": ["located"]}',
    ],
)
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(JournalError, match="not an event"):
        events.from_json(text)


def test_only_plain_data_goes_in() -> None:
    event = events.RunsClosed(ranges=[{1, 2}], state="CANCELLED", reason="")  # type: ignore[list-item]
    with pytest.raises(TypeError, match="plain data, not set"):
        events.to_json(event)
