"""Which tensors of a state may follow which: those of a target or an average follow those of a model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_WRAPPERS = ("module", "_orig_mod")
"""What a wrapper calls the module that it holds: `AveragedModel` and `DataParallel`, and `torch.compile`."""


class Following(NamedTuple):
    """A part of the state that may follow another: an entry, such as "target", or a module, such as "byol.target"."""

    root: str
    """Its path."""
    other: str
    """The path of what it may follow."""
    pairs: Mapping[str, str]
    """The names of the other's tensors, by those of its own."""

    @property
    def inside(self) -> bool:
        """Whether one of the two is a part of a module, and not an entry of the state."""
        return "." in self.root or "." in self.other


def following(tensors: Mapping[str, np.ndarray], trained: Collection[str]) -> Iterator[Following]:
    """Yield the parts of the state whose tensors may follow those of another part.

    Names decide, since the shapes of many layers are equal. A tensor may follow those with which it has the longest
    end of its name in common: "byol.target.fc.weight" may follow "byol.online.fc.weight", and not "byol.head.weight".

    Args:
        tensors: The state's tensors.
        trained: The names of those that an optimizer trains. Only whole entries of these can follow others.

    """
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, array in tensors.items():
        alike.setdefault((_parts(name)[-1] if "." in name else "", array.shape), []).append(name)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for names in alike.values():
        for own in names:
            ends = {source: _common(own, source) for source in names if source != own}
            longest = max(ends.values(), default=0)
            for source, length in ends.items():
                roots = _root(own, length), _root(source, length)
                entries = all(len(_parts(name)) == length + 1 for name in (own, source))
                if entries or (own not in trained and length == longest > 0):
                    found.setdefault(roots, {})[own] = source
    return (Following(*roots, pairs) for roots, pairs in found.items())


def _parts(name: str) -> Sequence[str]:
    """Split a name into its parts, without wrappers."""
    first, *parts = name.split(".")
    return [first, *(part for part in parts if part not in _WRAPPERS)]


def _common(name: str, other: str) -> int:
    """Count the parts that two names have in common at their ends; each has one before it."""
    ours, theirs = _parts(name)[1:], _parts(other)[1:]
    pairs = zip(reversed(ours), reversed(theirs), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _root(name: str, length: int) -> str:
    """Return a name without so many parts at its end."""
    parts = name.split(".")
    while length or (len(parts) > 1 and parts[-1] in _WRAPPERS):
        length -= parts.pop() not in _WRAPPERS
    return ".".join(parts)
