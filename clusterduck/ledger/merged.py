"""Runs in the order of values that are sorted in many parts: no more of it is made than somebody looks at.

To put 100,000 runs in order takes several times as long as to read their values, and a screen shows 50 of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain, compress
from typing import Any, overload

#: Of each part, one value of so many is compared with all the others to find where a place is.
_STEP = 50

#: Places on either side of one that is looked at, which are put in order with it.
_AROUND = 250


class Merged(Sequence[int]):
    """The runs of all parts in the order of their values, and of their numbers where these are the same.

    Args:
        parts: runs and the value of each, in this order; each run's number is smaller than those of the next parts.
        rest: runs that come after all of these, in their order.
        descending: the other way round, all but the rest.
    """

    def __init__(
        self, parts: Iterable[tuple[array[int], Sequence[Any]]], rest: Sequence[int] = (), *, descending: bool = False
    ) -> None:
        self._parts = [part for part in parts if part[0]]
        self._valued = sum(len(runs) for runs, _ in self._parts)
        self._rest = rest
        self._descending = descending
        self._seen = 0, array("I")  # what was looked at last: its first place, and the runs from there on

    def only(self, is_wanted: Callable[[int], object]) -> Merged:
        """Those of the runs that are wanted."""
        wanted = []
        for runs, values in self._parts:
            marks = list(map(is_wanted, runs))
            wanted.append((array("I", compress(runs, marks)), list(compress(values, marks))))
        return Merged(wanted)

    def then(self, rest: Sequence[int], *, descending: bool) -> Merged:
        """The same, or the other way round, and the rest after it."""
        return Merged(self._parts, rest, descending=descending)

    def in_any_order(self) -> Iterator[int]:
        """The runs as they are at hand."""
        return chain(*(runs for runs, _ in self._parts), self._rest)

    def __len__(self) -> int:
        return self._valued + len(self._rest)

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> array[int]: ...
    def __getitem__(self, place: int | slice) -> int | array[int]:
        places = range(len(self))[place]
        if isinstance(places, int):
            first, seen = self._seen
            if not first <= places < first + len(seen):
                first = max(0, places - _AROUND)
                seen = self[first : places + _AROUND]
            return seen[places - first]
        if not places:
            return array("I")
        if places.step != 1:
            return self[:][place]
        first, seen = self._seen
        if not first <= places.start <= places.stop <= first + len(seen):
            first, seen = self._seen = places.start, self._between(places.start, places.stop)
        return seen[places.start - first : places.stop - first]

    def index(self, value: int, start: int = 0, stop: int | None = None) -> int:
        """The place of a run.

        Raises:
            ValueError: if it is not among them, or not there.
        """
        place = self._place(value)
        if place not in range(len(self))[start:stop]:
            raise ValueError(f"{value} is not there")
        return place

    def _place(self, number: int) -> int:
        its = bisect_right(self._parts, number, key=lambda part: min(part[0])) - 1
        if its < 0 or number not in self._parts[its][0]:
            return self._valued + self._rest.index(number)
        place = self._parts[its][0].index(number)
        value = self._parts[its][1][place]
        place += sum([bisect_right(values, value) for _, values in self._parts[:its]])
        place += sum([bisect_left(values, value) for _, values in self._parts[its + 1 :]])
        return self._valued - 1 - place if self._descending else place

    def _between(self, start: int, stop: int) -> array[int]:
        """The runs at these places."""
        valued = min(start, self._valued), min(stop, self._valued)
        if self._descending:
            found = self._sorted(self._valued - valued[1], self._valued - valued[0])[::-1]
        else:
            found = self._sorted(*valued)
        found.extend(self._rest[max(0, start - self._valued) : max(0, stop - self._valued)])
        return found

    def _sorted(self, start: int, stop: int) -> array[int]:
        """The runs at these places of the ascending order: between two values that are known to enclose them."""
        low = bisect_right(self._samples, start, key=self._before) - 1
        high = low + 1
        while high < len(self._samples) and (missing := stop - self._before(self._samples[high])) > 0:
            high += missing // _STEP + 1
        before, near = 0, array("I")
        its: list[Any] = []
        for runs, values in self._parts:
            begin = bisect_left(values, self._samples[low])
            end = bisect_left(values, self._samples[high]) if high < len(self._samples) else len(runs)
            before += begin
            near.extend(runs[begin:end])
            its.extend(values[begin:end])
        found = sorted(near, key=partial(next, iter(its)))  # in half the time that it takes to look each of them up
        return array("I", found[start - before : stop - before])

    @cached_property
    def _samples(self) -> list[Any]:
        return sorted(chain.from_iterable(values[::_STEP] for _, values in self._parts))

    def _before(self, value: Any) -> int:
        """How many runs have a smaller value."""
        return sum([bisect_left(values, value) for _, values in self._parts])
