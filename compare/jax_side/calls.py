"""Numbers the calls of modules while a program runs, also those in scans, whose body is traced once for all of them."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Value = tuple[str, str, str]
"""What a value is, as in a label, the path of its module and its leaf."""


class Turns(NamedTuple):
    """A scan that runs."""

    length: int
    reverse: bool
    number: Any = None
    """The place, along the sequences of the scan, of the iteration that is being traced."""


class Calls:
    """The numbers of calls, in the order in which they are made; those of a stack are one layer after another.

    A scan that takes its layers from a stack calls them as `jax.vmap` does, each layer once: the calls of a stack of
    three layers that is run twice are 0, 1, 2 and 3, 4, 5.

    Args:
        stacks: See `CommonRun.stacks`.

    """

    def __init__(self, stacks: Mapping[str, int]) -> None:
        self._stacks = stacks
        self._made: Counter[Value] = Counter()
        self._turns: list[Turns] = []
        """The scans that run, outermost first."""
        self._before: Counter[Value] = Counter()
        """What was called before the outermost of them."""
        self._each: Mapping[Value, int] = {}
        """How often its body calls each module."""
        self._within: dict[Value, tuple[int, int]] = {}
        """The first number of each module in it, and how often its body has called it so far."""

    @contextlib.contextmanager
    def scan(self, turns: Turns, each: Mapping[Value, int]) -> Iterator[None]:
        """Run a scan, whose body has each value so many times."""
        if not self._turns:
            self._before, self._each, self._within = Counter(self._made), each, {}
        self._turns.append(turns)
        try:
            yield
        finally:
            self._turns.pop()

    @contextlib.contextmanager
    def iteration(self, number: Any) -> Iterator[None]:
        """Trace the body of the innermost scan; JAX may trace it again."""
        if len(self._turns) == 1:
            self._made, self._within = Counter(self._before), {}
        self._turns[-1] = self._turns[-1]._replace(number=number)
        yield

    @contextlib.contextmanager
    def branch(self, number: int, before: dict[int, Any]) -> Iterator[None]:
        """Trace a branch of a conditional: its calls have the same numbers each time that it is traced.

        Args:
            number: Which branch it is.
            before: What was called before each branch of this conditional.

        """
        now = Counter(self._made), dict(self._within)
        if number not in before:
            before[number] = now
            yield
            return
        self._made, self._within = Counter(before[number][0]), dict(before[number][1])
        try:
            yield
        finally:
            self._made, self._within = now

    def numbers(self, value: Value, layers: int = 1) -> np.ndarray:
        """Give the numbers of the calls that one name stands for, of shape `(scan, ..., inner scan, layers)`.

        Args:
            value: What is named.
            layers: How many layers one call is of.

        """
        lengths = self.lengths
        count = math.prod(lengths) * layers
        shape = (*lengths, layers)
        if not lengths or self._stacks.get(value[1]) in lengths:
            first = self._made[value]
            self._made[value] += count
            return first + np.arange(count).reshape(shape)
        # The body is traced once, but each iteration makes all of its calls before the next iteration begins. With
        # `each` calls in the body, the n-th of them is call n of the first iteration, call n + each of the second.
        each = max(self._each.get(value, 1), 1)
        first, done = self._within.get(value, (self._made[value], 0))
        if done % each == 0:
            first = self._made[value]
            self._made[value] += each * count
        self._within[value] = first, done + 1
        order = np.arange(math.prod(lengths)).reshape(lengths)
        # A reversed scan begins with the last element of its sequences, so the call at the highest index is made first.
        order = np.flip(order, tuple(axis for axis, turns in enumerate(self._turns) if turns.reverse))
        return first + (order[..., None] * each + done % each) * layers + np.arange(layers)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those of the scans that run, outermost first."""
        return tuple(turns.length for turns in self._turns)

    def here(self, array: Any) -> Any:
        """Take the part of an array that is for the iteration being traced; its first axes are over the iterations."""
        for turns in self._turns:
            array = array[turns.number]
        return array
