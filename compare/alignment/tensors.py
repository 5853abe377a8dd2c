"""Pairs the tensors that a module takes or returns with those of its partner."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import Pairing, Read
from compare.alignment.rearranged import Views, same_numbers, squeezed
from compare.numerics.distance import distance
from compare.step.arguments import Names, argument
from compare.step.layouts import AS_IT_IS, CHANNELS_LAST, NEAR, Layout
from compare.step.observation import Observation, Port, to_numpy
from compare.step.stage import Stage

FindLayout = Callable[[np.ndarray, np.ndarray], Layout | None]

Order = tuple[int | None, ...]
"""For each input of torch's, the position of its partner."""


class Ends(NamedTuple):
    """A tensor of torch's and one of the JAX side's that may be compared."""

    torch: Port
    jax: Port


class TensorPairs:
    """Pairs the tensors of the calls of one step.

    Args:
        torch: The step of the torch side, in float64.
        jax: The same step of the JAX side.
        names: Of the arguments of both sides' modules.

    """

    def __init__(self, torch: Observation, jax: Observation, names: tuple[Names, Names]) -> None:
        self._torch, self._jax, self._names = torch, jax, names
        self._forward_only = torch.loss is None

    def order(self, calls: Sequence[tuple[Sequence[Port], Sequence[Port]]], layout_of: FindLayout) -> Order:
        """Find which input of a recurrent cell is which of its partner's, by the values at all calls of a step.

        Flax's cells take (carry, inputs), and torch's (input, hx): the first is then not the same on both sides. One
        fault makes the state differ at all calls but the first, and leaves the input as it is.

        Args:
            calls: The inputs of each call, as many on both sides.
            layout_of: Finds the layout of one relative to the other.

        Returns:
            For each input of torch's, the position of the JAX side's; None for one of several states, whose order is
            not known where the input has another place.

        """
        size = len(calls[0][0])
        near = [sum(self._is_near(Ends(one[0], other[at]), layout_of) for one, other in calls) for at in range(size)]
        moved = max(range(size), key=lambda at: near[at])  # the first of several that are equal
        if moved == 0:
            return tuple(range(size))
        return (moved, 0) if size == 2 else (moved, *[None] * (size - 1))

    def __call__(
        self, ours: Sequence[Port], theirs: Sequence[Port], layout_of: FindLayout, order: Order | None = None
    ) -> Iterator[Pairing]:
        """Pair the inputs of one call, in the order that is known, or its outputs."""
        if not ours or not theirs:
            return
        if order is not None and order != tuple(range(len(ours))):
            for port, place in zip(ours, order, strict=True):
                if place is not None and (pairing := self._pairing(Ends(port, theirs[place]), layout_of, alone=False)):
                    yield pairing
            return
        chosen = (
            self._inputs(ours, theirs, layout_of) if ours[0].kind == "input" else self._outputs(ours, theirs, layout_of)
        )
        for ends in sorted(chosen, key=lambda ends: ours.index(ends.torch)):
            if pairing := self._pairing(ends, layout_of, alone=len(ours) == len(theirs) == 1):
                yield pairing

    def _inputs(self, ours: Sequence[Port], theirs: Sequence[Port], layout_of: FindLayout) -> Iterator[Ends]:
        """Pair inputs by the names of the arguments, and by position where the names decide nothing.

        The first argument is the same on both sides, whatever its name: `input` and `inputs`. Later ones of different
        names may have different meanings, such as labels and positions, so that integers must be equal to be paired.
        """
        left = list(theirs)
        for number, port in enumerate(ours):
            name = argument(port, self._names[0])
            same = [other for other in left if name[0] and argument(other, self._names[1]) == name]
            if not same and not self._named(name, theirs, 1):
                same = [
                    other
                    for other in theirs[number : number + 1]
                    if other in left
                    and not self._named(argument(other, self._names[1]), ours, 0)
                    and (number == 0 or self._may_be_one(Ends(port, other), layout_of))
                ]
            if same:
                left.remove(same[0])
                yield Ends(port, same[0])

    def _named(self, name: tuple[str, str], ports: Sequence[Port], side: int) -> bool:
        return bool(name[0]) and any(argument(port, self._names[side]) == name for port in ports)

    def _may_be_one(self, ends: Ends, layout_of: FindLayout) -> bool:
        ours, theirs = self._values(ends)
        return ours.dtype.kind == theirs.dtype.kind == "f" or self._is_near(ends, layout_of)

    def _outputs(self, ours: Sequence[Port], theirs: Sequence[Port], layout_of: FindLayout) -> Iterator[Ends]:
        """Pair outputs by name; those without a common name by value, where only one is equal, and by position.

        What a model gives without names and without a loss that takes it is known by its position alone.
        """
        by_leaf = {port.leaf: port for port in theirs}
        named = [
            Ends(port, by_leaf[port.leaf]) for port in ours if port.leaf in by_leaf and not port.leaf[:1].isdigit()
        ]
        yield from named
        rest = [port for port in ours if not any(ends.torch == port for ends in named)]
        other = [port for port in theirs if not any(ends.jax == port for ends in named)]
        known_by_position = (
            ours[0].path == "" and self._forward_only and all(port.leaf[:1].isdigit() for port in (*rest, *other))
        )
        if not known_by_position and max(len(rest), len(other)) > 1:
            by_value = list(self._by_value(rest, other, layout_of))
            yield from by_value
            rest = [port for port in rest if not any(ends.torch == port for ends in by_value)]
            other = [port for port in other if not any(ends.jax == port for ends in by_value)]
        yield from map(Ends, rest, other)

    def _by_value(self, ours: Sequence[Port], theirs: Sequence[Port], layout_of: FindLayout) -> Iterator[Ends]:
        near = [[self._is_near(Ends(port, other), layout_of) for other in theirs] for port in ours]
        for number, (port, row) in enumerate(zip(ours, near, strict=True)):
            # Equal in values to one tensor only, and that one to no other. Position decides among several that
            # are equal.
            if sum(row) == 1 and sum(line[row.index(True)] for line in near) == 1:
                yield Ends(port, theirs[row.index(True)])
            elif number < len(row) and row[number]:
                yield Ends(port, theirs[number])

    def _is_near(self, ends: Ends, layout_of: FindLayout) -> bool:
        ours, theirs = self._values(ends)
        layout = layout_of(ours, theirs)
        if layout is None:
            return same_numbers(ours, theirs) is not None
        return distance(layout.to_torch(theirs), ours) < NEAR

    def _values(self, ends: Ends) -> tuple[np.ndarray, np.ndarray]:
        return to_numpy(self._torch.forward[ends.torch]), to_numpy(self._jax.forward[ends.jax])

    def _pairing(self, ends: Ends, layout_of: FindLayout, *, alone: bool) -> Pairing | None:
        """Return the pairing of two tensors; None if they do not belong together."""
        ours, theirs = self._values(ends)
        of_model = ends.torch.path == "" and ends.torch.kind == "output"
        if layout := layout_of(ours, theirs):
            return _paired(ends, Views(lambda array: array, layout.to_torch, layout.to_jax), decides=of_model)
        # A loss that takes the model's output decides whether its shape matters. Without a loss the shape must be
        # right.
        if not (of_model and self._forward_only) and (views := same_numbers(ours, theirs)):
            return _paired(ends, views, decides=of_model)
        floating = ours.dtype.kind == theirs.dtype.kind == "f"
        alone = alone and not (of_model and ours.ndim != theirs.ndim)  # a loss and the logits that it is of
        if not floating or ends.torch.kind == "input" or not (alone or (of_model and self._forward_only)):
            return None
        if not of_model and (views := squeezed(ours.shape, theirs.shape)):
            return _paired(ends, views, decides=False)
        # Different shapes are infinitely far apart. The value cannot be put in place of the other side's.
        order = CHANNELS_LAST if ours.ndim == theirs.ndim > 2 else AS_IT_IS
        views = Views(lambda array: array, order.layout.to_torch, order.layout.to_jax)
        return _paired(ends, views, decides=of_model and self._forward_only)._replace(to_jax=None)


def _paired(ends: Ends, views: Views, *, decides: bool) -> Pairing:
    return Pairing(
        Stage.FORWARD,
        str(ends.torch),
        str(ends.jax),
        torch_array=_reader(ends.torch, views.torch),
        jax_array=_reader(ends.jax, views.jax),
        decides=decides,
        ports=(ends.torch, ends.jax),
        to_jax=views.to_jax,
    )


def _reader(port: Port, view: Callable[[np.ndarray], np.ndarray]) -> Read:
    return lambda observation: view(to_numpy(observation.forward[port]))
