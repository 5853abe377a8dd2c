"""Chooses what CI runs of many cases that are alike. `make test-all` runs the others, which are marked as slow, too."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pytest


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
