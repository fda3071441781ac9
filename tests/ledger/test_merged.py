"""A list of which only what is looked at is put in order is the one that sorting all of it makes."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterduck.ledger import columns, merged
from clusterduck.ledger.listing import Listing, order, parse_filter
from clusterduck.ledger.merged import Merged
from clusterduck.ledger.overrides import as_dict

SWEEP = "train-x7k2p"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred runs are as many here as a hundred thousand elsewhere."""
    monkeypatch.setattr(merged, "_STEP", 4)
    monkeypatch.setattr(merged, "_AROUND", 5)
    monkeypatch.setattr(columns, "_SMALL_PART", 3)


def agree(found: Sequence[int], expected: list[int], places: Sequence[int]) -> None:
    """Whatever is asked of both, in this order of places."""
    assert len(found) == len(expected)
    for place in places if expected else ():
        here = place % len(expected)
        assert found[here] == expected[here]
        assert found[here - len(expected)] == expected[here]
        assert list(found[here : here + place % 40]) == expected[here : here + place % 40]
        assert found.index(expected[here]) == here
    assert list(found[::-1]) == expected[::-1]
    assert list(found) == expected
    with pytest.raises(IndexError):
        found[len(expected)]
    assert list(found[4:2]) == []
    with pytest.raises(ValueError):
        found.index(10**9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 160), max_size=6),
    kinds=st.integers(1, 2000),
    draw=st.randoms(use_true_random=False),
    rest=st.integers(0, 30),
    descending=st.booleans(),
    as_text=st.booleans(),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=5),
)
def test_what_is_looked_at_stands_where_sorting_puts_it(
    sizes: list[int],
    kinds: int,
    draw: Any,
    rest: int,
    descending: bool,
    as_text: bool,
    places: list[int],
) -> None:
    values: dict[int, Any] = {run: draw.randrange(kinds) / 8 for run in range(sum(sizes))}
    if as_text:
        values = {run: f"a{value}" for run, value in values.items()}
    parts, first = [], 0
    for size in sizes:
        its = sorted(range(first, first + size), key=values.__getitem__)
        parts.append((array("I", its), [values[run] for run in its]))
        first += size
    others = [first + run for run in range(rest)]
    ordered = sorted(values, key=values.__getitem__)
    found = Merged(parts).then(others, descending=descending)
    assert sorted(found.in_any_order()) == [*range(first), *others]
    agree(found, (ordered[::-1] if descending else ordered) + others, places)
    few = Merged(parts).only(lambda run: run % 3 == 0).then((), descending=descending)
    few_ordered = [run for run in ordered if run % 3 == 0]
    agree(few, few_ordered[::-1] if descending else few_ordered, places)


#: Values as people write them: which are numbers, of which one has several forms, which are none.
FORMS = [["x={0}"], ["x={0}", "+x={0}"], ["x={0}", "x={0}e0"], ["x=run_{0}"], ["x={0}", "x=b{0}"], ["x={0}", "y={0}"]]


@pytest.mark.parametrize("forms", FORMS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.integers(1, 500),
    sizes=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    is_apart=st.sampled_from([True, True, False]),
    is_mixed=st.booleans(),
    descending=st.booleans(),
    words=st.sampled_from(["", "z=1", "!z=1", "!z=0 x=1.0"]),
    draw=st.randoms(use_true_random=False),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
)
def test_runs_are_listed_by_overrides_of_any_plan(
    empty: Callable[[], sqlite3.Connection],
    forms: list[str],
    kinds: int,
    sizes: list[int],
    is_apart: bool,
    is_mixed: bool,
    descending: bool,
    words: str,
    draw: Any,
    places: list[int],
) -> None:
    """Parts that are numbers and parts that are not, apart or not, with values that one run has, or many."""
    runs = list(range(3, 3 + sum(sizes)))
    if not is_apart:
        draw.shuffle(runs)
    texts: dict[int, list[str]] = {}
    plans = []
    for part, size in enumerate(sizes):
        its = forms if is_mixed else forms[part % len(forms) :][:1]
        new = runs[len(texts) :][:size]
        texts |= {run: [draw.choice(its).format(draw.randrange(kinds) / 4), f"z={run % 3}"] for run in new}
        plans.append([(run, texts[run]) for run in new])
    values = {run: as_dict(texts[run]).get("x") for run in sorted(runs)}
    wanted = [run for run in values if all(_holds(texts[run], word) for word in words.split())]
    valued = [run for run in wanted if values[run] is not None]
    is_number = not any("b" in value or "_" in value for value in values.values() if value)
    valued.sort(key=lambda run: float(values[run] or 0) if is_number else values[run] or "")
    rest = [run for run in wanted if values[run] is None]
    expected = valued[::-1] + rest[::-1] if descending else valued + rest
    with closing(empty()) as connection:
        connection.execute("INSERT INTO sweep(id, runs) VALUES (?, ?)", (SWEEP, len(runs)))
        connection.executemany("INSERT INTO run(sweep, number) VALUES (?, ?)", [(SWEEP, run) for run in runs])
        columns.write(connection, SWEEP, plans)
        agree(order(connection, Listing(SWEEP, parse_filter(words), "=x", descending)), expected, places)


def _holds(texts: list[str], word: str) -> bool:
    text = word.lstrip("!")
    return (text in texts or f"+{text}" in texts) != word.startswith("!")
