"""Finds the loops of a torch step that read a first axis entry by entry, such as a loop over time or over tasks."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def fixed_loops() -> Iterator[list[int]]:
    """Watch the step that runs meanwhile: give the lengths of the first axes of which it reads all but the last entry.

    `for t in range(128)` reads 128 entries of a rollout, however long the rollout is.
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
    found += [len(tensor) for tensor, entries in read.values() if entries == set(range(len(tensor) - 1)) != set()]
