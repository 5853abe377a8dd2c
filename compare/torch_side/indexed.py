"""Finds the loops of a torch step that read a first axis entry by entry, such as a loop over time or over tasks."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any


@contextlib.contextmanager
def fixed_loops(lengths: Collection[int]) -> Iterator[list[int]]:
    """Watch the step that runs meanwhile: give the lengths of the first axes of which it reads all but the last entry.

    `for t in range(128)` reads 128 entries of a rollout, however long the rollout is. Only axes of one of these
    `lengths` are looked at, and only if several entries are read: `state[0]` of two states is no loop.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    read: dict[int, tuple[torch.Tensor, set[int]]] = {}
    found: list[int] = []

    class Indexed(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if getattr(func, "__name__", "") == "__getitem__" and type(args[1]) is int and args[0].dim():
                tensor = args[0]
                read.setdefault(id(tensor), (tensor, set()))[1].add(args[1] % len(tensor))
            return func(*args, **(kwargs or {}))

    with Indexed():
        yield found
    several = ((len(tensor), entries) for tensor, entries in read.values() if len(entries) > 1)
    found += [length for length, entries in several if length in lengths and entries == set(range(length - 1))]
