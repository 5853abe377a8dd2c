"""Spreads a benchmark's items over processes: `--processes N` of a benchmark."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_ITEMS = 20
"""After so many items a process ends: what was compiled for them is of no use to others, and takes memory."""


def spread(function: Callable[[Item], Outcome], items: Sequence[Item], processes: int) -> Iterator[Outcome]:
    """Give the outcome of each item as soon as it is there, in any order.

    Args:
        function: A function of a module, and no closure, so that another process can import it.
        items: What can be pickled.
        processes: How many; with 1 a new process is used as well, so that memory does not grow.

    """
    # "spawn", since neither JAX nor PyTorch survives a fork.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=_ITEMS) as pool:
        yield from pool.imap_unordered(function, items)
