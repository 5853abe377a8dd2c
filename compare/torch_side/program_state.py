"""The state of a torch program by path, and the random generators that it is built with."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.errors import InputError

if TYPE_CHECKING:
    import torch


class State:
    """The parts of a program's state, by path: "model", "optimizers.actor".

    Args:
        state: What `build` gave. Entries may be replaced by the step: it is read anew each time.

    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.entries = state

    def parts(self, kind: Any) -> dict[str, Any]:
        """Give all entries of a kind, by path."""
        return {path: value for path, value in self._checked() if isinstance(value, kind)}

    def _checked(self) -> "list[tuple[str, Any]]":
        """List all entries by path.

        Raises:
            InputError: If a key with a dot in it makes the path of another entry, or of a part of a module.

        """
        import torch

        found = list(_entries(self.entries, ""))
        modules = {path for path, value in found if isinstance(value, torch.nn.Module)}
        for path, count in Counter(path for path, _ in found).items():
            parts = path.split(".")
            if count > 1 or any(".".join(parts[:end]) in modules for end in range(1, len(parts))):
                raise InputError(f"the torch state has {path!r} twice: give the key with a dot another name")
        return found

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Give the bare tensors."""
        import torch

        return self.parts(torch.Tensor)

    def integers(self) -> dict[str, np.ndarray]:
        """Give what is counted outside of modules: tensors of integers, and Python's integers."""
        import torch

        counted = {path: number for path, number in self.parts(int).items() if abs(number) < 2**63}
        entries = {**self.tensors(), **counted}
        found = {path: torch.as_tensor(value) for path, value in entries.items()}
        whole = {path: each for path, each in found.items() if not (each.is_floating_point() or each.is_complex())}
        return {path: each.cpu().numpy().astype(np.int64) for path, each in whole.items()}

    def container(self) -> "torch.nn.Module":
        """Make one module that has all modules of the state as children, under their paths."""
        import torch

        root = torch.nn.Module()
        for path, module in self.parts(torch.nn.Module).items():
            *parents, name = path.split(".")
            inner = root
            for parent in parents:
                if not hasattr(inner, parent):
                    inner.add_module(parent, torch.nn.Module())
                inner = getattr(inner, parent)
            inner.add_module(name, module)
        return root


def _entries(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """List the entries of nested dicts, lists and tuples with their paths."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        yield path, tree
        return
    for key, value in items:
        yield from _entries(value, f"{path}.{key}" if path else str(key))


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators while this lasts, and put their states back."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's code may use it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
