"""Writes many places in few words: `encoder.layers.0-11.norm1, norm2`."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from compare.report.wording import counted
from compare.verdict.between import Between

_NUMBERED = re.compile(r"(.*?)(\d+)$")

Numbers = tuple[str, frozenset[int]]
"""A component of a path that differs by its number alone: what comes before the number, and all numbers."""

Component = str | Numbers


class Entry(NamedTuple):
    """One entry of a list of places."""

    text: str
    paths: int
    """The number of paths that it represents: every combination of its numbers and names, and no others."""


def collapsed(paths: Iterable[str], separator: str = ".") -> list[Entry]:
    """List all paths; those that differ by numbers, or by their last component, share an entry.

    >>> collapsed(f"layers.{layer}.norm{norm}" for layer in range(12) for norm in (1, 2))
    [Entry(text='layers.0-11.norm1, norm2', paths=24)]
    """
    split = list(dict.fromkeys(tuple(_components(path, separator)) for path in paths))
    longest = max(map(len, split), default=0)
    # From the last component to the first, so that "layers.0.norm1" and "layers.0.norm2" keep their
    # names: paths are joined only if they differ in one number and nothing else.
    for position in reversed(range(longest)):
        split = _joined(split, position)
    by_parent: dict[tuple[tuple[str, ...], bool], list[Entry]] = {}
    for path in split:
        *parent, last = map(_shown, path)
        count = math.prod(len(part[1]) for part in path if not isinstance(part, str))
        by_parent.setdefault((tuple(parent), " " in last), []).append(Entry(last, count))
    return [_entry(separator.join(parent), lasts, separator) for (parent, _), lasts in by_parent.items()]


def _entry(parent: str, lasts: Sequence[Entry], separator: str) -> Entry:
    named, paths = ", ".join(last.text for last in lasts), sum(last.paths for last in lasts)
    between = ": " if " " in named.partition(", ")[0] else separator  # "layers.0-3: between fc1 and fc2"
    return Entry(f"{parent}{between}{named}" if parent else named, paths)


def listed(paths: Iterable[str], separator: str = ".", most: int | None = None) -> str:
    """List all paths in a line, with a limited number of entries, and the number of places left out."""
    entries = collapsed(paths, separator)
    shown = entries if most is None or len(entries) <= most + 1 else entries[:most]  # one more is as short as its count
    line = "; ".join(entry.text for entry in shown)
    left = sum(entry.paths for entry in entries[len(shown) :])
    return f"{line}; and {counted(left, 'more place')}" if left else line


def _components(path: str, separator: str) -> Iterable[Component]:
    """Split a path; the number at the end of its last component stays unless it is all of it, as in `norm1`.

    A place between two parts of one module is a place in that module.
    """
    parents, last = _between(path, separator)
    if not last and " " not in path:
        parents, _, last = path.rpartition(separator)
    for part in parents.split(separator) if parents else []:
        yield _component(part)
    last = last or path
    yield _component(last) if last.isdecimal() else last


def _between(path: str, separator: str) -> tuple[str, str]:
    """Split "between a.b and a.c" into "a" and "between b and c"; two empty texts if it is no such place."""
    place = Between.read(path)
    if place is None:
        return "", ""
    start, end = (name.rpartition(separator)[::2] for name in (place.start, place.end))
    # The start of a module is within that module, and not beside it.
    start = (place.start, "the start") if place.takes else start
    end = (place.end, "the end") if place.gives else end
    return (start[0], f"between {start[1]} and {end[1]}") if start[0] and start[0] == end[0] else ("", "")


def _component(part: str) -> Component:
    found = _NUMBERED.match(part)
    # "007" is not 7: such a name stays as it is.
    return (found[1], frozenset([int(found[2])])) if found and str(int(found[2])) == found[2] else part


def _joined(paths: Sequence[tuple[Component, ...]], position: int) -> list[tuple[Component, ...]]:
    """Join the paths that differ in the number at one position only."""
    numbers: dict[object, tuple[tuple[Component, ...], set[int]]] = {}
    for path in paths:
        here = path[position] if position < len(path) else ""
        if isinstance(here, str):
            numbers[path] = (path, set())
            continue
        # Equal but for the numbers here, which may already be sets at later positions: a product of ranges
        # stays a product, so that an entry never stands for a path that is not there.
        key = (path[:position], here[0], path[position + 1 :])
        numbers.setdefault(key, (path, set()))[1].update(here[1])
    return [
        (*path[:position], (path[position][0], frozenset(found)), *path[position + 1 :]) if found else path
        for path, found in numbers.values()
    ]


def _shown(component: Component) -> str:
    """Write a component: `layer1-3`, or `layer{0,2}` where numbers are missing between."""
    if isinstance(component, str):
        return component
    prefix, numbers = component
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"{prefix}{parts[0]}" if len(parts) == 1 else f"{prefix}{{{','.join(parts)}}}"
