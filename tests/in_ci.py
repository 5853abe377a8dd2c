"""Chooses what CI runs: some of many cases that are alike, and nothing that takes long. `make test-all` runs all."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

LONG = 3.0
"""Seconds from which on CI has no time for a test, unless that is marked `always`.

They are those of two cores on which a loop of Python adds up ten million numbers in 1.5 s.
"""

MEASURED = Path(__file__).with_name("long.json")
"""The tests that took longer when they were last measured, with their seconds; of each file all but the shortest."""


def some(cases: Iterable[Any], chosen: Collection[str], name: Callable[[Any], str] = str) -> list[Any]:
    """Mark the cases whose names are not chosen.

    Args:
        cases: The values of one parameter of a test.
        chosen: The names of those that CI runs.
        name: Gives the name of a case, which is its id.

    """
    every = list(cases)
    assert set(chosen) <= {name(case) for case in every}, "a case that CI is to run does not exist"
    return [pytest.param(case, id=name(case), marks=() if name(case) in chosen else pytest.mark.slow) for case in every]


def first(cases: Sequence[tuple[Any, ...]], count: int = 1) -> list[Any]:
    """Mark the cases behind the first ones, each with the values of all parameters of a test."""
    return [pytest.param(*case, marks=() if number < count else pytest.mark.slow) for number, case in enumerate(cases)]


def mark_long(items: Iterable[pytest.Item]) -> None:
    """Mark the tests that took long when they were last measured."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    for item in items:
        if item.nodeid in measured and item.get_closest_marker("always") is None:
            item.add_marker(pytest.mark.long)


class Stopwatch:
    """A plugin of pytest that measures all tests that run, and writes the long ones to the file."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
        left = {name: seconds for name, seconds in known.items() if name not in self._seconds}
        MEASURED.write_text(
            json.dumps({**left, **long(self._seconds)}, indent=0, sort_keys=True) + "\n", encoding="utf-8"
        )


def long(seconds: Mapping[str, float]) -> dict[str, float]:
    """Give the tests that take long, with their seconds; of each file all but the shortest."""
    shortest: dict[str, str] = {}
    for name in sorted(seconds, key=lambda name: seconds[name]):
        shortest.setdefault(name.partition("::")[0], name)
    return {name: round(each, 1) for name, each in seconds.items() if each > LONG and name not in shortest.values()}
