"""Links between tensors, or parts of tensors, of both sides, and how to convert one layout to the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np

from compare.weights.units import View

T = TypeVar("T")

Rows = list[tuple[str, str]]


def part(name: str, view: View) -> str:
    """Name a tensor and the part of it that the view selects, as in "in_proj_weight[0:64]"."""
    written = (
        (f"{index.start}:{index.stop}" if index.stop is not None else ":") if isinstance(index, slice) else str(index)
        for index in view.index
    )
    return f"{name}[{', '.join(written)}]" if view.index else name


def _index(written: str) -> int | slice:
    start, colon, stop = written.partition(":")
    return int(written) if not colon else slice(int(start), int(stop)) if start else slice(None)


class Parts(Mapping[str, T]):
    """Tensors by name, and parts of them by the names that `part` gives them."""

    def __init__(self, tensors: Mapping[str, T]) -> None:
        self._tensors = tensors

    def whole(self, name: str) -> T:
        """Return the tensor of which this is the name, or the name of a part."""
        return self._tensors[name if name in self._tensors else name.partition("[")[0]]

    def __getitem__(self, name: str) -> T:
        """Return the tensor or the part of one: a view, where indexing gives one."""
        if name in self._tensors:
            return self._tensors[name]
        inside = name.partition("[")[2].removesuffix("]")
        whole: Any = self.whole(name)
        part: T = whole[tuple(_index(each) for each in inside.split(", "))]
        return part

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of whole tensors."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count them."""
        return len(self._tensors)


def columns(rows: Rows) -> str:
    """Set two columns."""
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:{width}}  {right}".rstrip() for left, right in rows)


Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Link:
    """One tensor, or a part of one, on both sides; under its views it has the same shape and orientation.

    A JAX tensor may have several links for the same part. If `adds` is set on all of them, it is the sum of torch's
    tensors, such as the two biases of torch's LSTM, for which Flax has one; each of their gradients is then equal to
    JAX's. Otherwise torch's tensors are tied: one tensor under several names. Conversely, if JAX has copies of tensors
    that are tied in torch, each name has its own link, and the copies' gradients add up to torch's.
    """

    torch: str
    """As in `state_dict()`, buffers too."""
    jax: str
    """The path joined by "/"; Linen's without the collection."""
    torch_view: View = field(default_factory=View)
    """Which part of torch's tensor, and in what layout: an index, a shape, an order of axes and axes to reverse."""
    jax_view: View = field(default_factory=View)
    """Likewise of JAX's. Both give arrays of one shape."""
    adds: bool = False
    """Whether JAX's tensor is the sum of this and of torch's other tensors with the same view of it."""
    compared: bool = True
    """Whether the two are compared; an integer that `weights=` leaves out on both sides only starts the same."""


def layer_of(link: Link) -> int | None:
    """Give which layer a link's part of JAX's tensor is, where that is a stack of layers along its first axis."""
    first = link.jax_view.index[:1]
    return first[0] if first and isinstance(first[0], int) else None


def named(link: Link, side: str) -> str:
    """Name a link's tensor on one side, "torch" or "jax", as `part` does."""
    return part(getattr(link, side), getattr(link, f"{side}_view"))


LEFT_OUT = "left out by weights="
TABLE = "a frozen parameter that the other side does not have"
"""Why a tensor has no partner: the user says so, or it is never trained."""


@dataclass(frozen=True)
class WeightMap(Sequence[Link]):
    """The links between two models, and the tensors without a link. It prints as a table."""

    links: tuple[Link, ...]
    """In the order of definition on the torch side."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Tensors of either side that have no partner, by their nature or because `weights=` leaves them out, and the
    reason."""
    notes: tuple[str, ...] = ()
    """Conclusions that are based on a convention and not on a name or a shape."""
    constants: tuple[tuple[str, str], ...] = ()
    """Buffers without a partner, as ("torch" or "jax", name): no step may change them."""

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Link, ...]: ...
    def __getitem__(self, index: int | slice) -> Link | tuple[Link, ...]:
        return self.links[index]

    def __len__(self) -> int:
        return len(self.links)

    def __str__(self) -> str:
        rows = [
            (part(link.torch, link.torch_view), part(link.jax, link.jax_view)) for link in self.links if link.compared
        ]
        left = [f"not compared: {name}: {reason}" for name, reason in self.apart.items()]
        left += [
            f"not compared: {name}: a buffer that only the {side} side has"
            for side, name in self.constants
            if name not in self.apart
        ]
        return "\n".join([columns([("torch", "jax"), *rows]), *left, *self.notes])


def to_jax(links: Sequence[Link], torch_arrays: Arrays, jax_like: Arrays) -> dict[str, np.ndarray]:
    """Convert torch's weights to JAX's layout.

    Args:
        links: From `find_links`.
        torch_arrays: By torch's names.
        jax_like: By JAX's names: shapes and dtypes of the result, and its values where nothing is linked.

    Returns:
        New arrays by JAX's names. Where several of torch's tensors add up to one, their sum.

    """
    made = {name: np.array(array) for name, array in jax_like.items()}
    begun: set[str] = set()
    for link in links:
        source, target = link.torch_view(np.asarray(torch_arrays[link.torch])), link.jax_view(made[link.jax])
        # `target` is a view of the new array, so that each link fills in its part in place.
        if link.adds and f"{link.jax} {link.jax_view}" in begun:
            target += source
        else:
            target[...] = source
        begun.add(f"{link.jax} {link.jax_view}")
    return made


def to_torch(links: Sequence[Link], jax_arrays: Arrays, torch_like: Arrays) -> dict[str, np.ndarray]:
    """Convert JAX's weights to torch's layout: the inverse of `to_jax`.

    Returns:
        New arrays by torch's names. Where several add up to one of JAX's, the first has it all and the others are zero.

    """
    made = {name: np.array(array) for name, array in torch_like.items()}
    begun: set[str] = set()
    for link in links:
        source, target = link.jax_view(np.asarray(jax_arrays[link.jax])), link.torch_view(made[link.torch])
        target[...] = 0 if link.adds and f"{link.jax} {link.jax_view}" in begun else source
        begun.add(f"{link.jax} {link.jax_view}")
    return made
