"""What edits compute from other values than the step's: which of them are the same, and which prove nothing."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compare.diagnosis.structure.edit import Edit, Kind
from compare.diagnosis.structure.graph import FAILURES
from compare.diagnosis.structure.pairs import SAME
from compare.diagnosis.structure.step import Step, array_of, changes, moved
from compare.diagnosis.structure.told import plainer
from compare.numerics.distance import distance

if TYPE_CHECKING:
    import torch


class Elsewhere:
    """A step of torch's, from other values."""

    def __init__(self, here: Step) -> None:
        self._here = here

    def different(self, fitting: Iterable[list[Edit]]) -> list[list[list[Edit]]]:
        """Group the edits that compute the same for all inputs, such as x + x and 2 x, the plainest first.

        They are not several causes, but several ways to write one. On other values than the step's, edits that only
        agree on this batch separate.
        """
        groups: list[tuple[list[list[Edit]], list[np.ndarray | None]]] = []
        alive = not _same(self._end([]), array_of(self._here.context.graph.values[self._here.end]))
        for edits in fitting:
            arrays = [self._end(edits), self._end(edits, WIDE)]
            if alive and _same(arrays[0], self._here.target):
                continue  # it gives the same whatever goes in, as a ReLU of negative numbers does: any such edit fits
            equal = next((group for group, others in groups if all(map(_same, arrays, others))), None)
            if equal is None:
                groups.append(([edits], arrays))
            else:
                equal.insert(0 if plainer(edits, equal[0]) else len(equal), edits)
        return [group for group, _ in groups]

    def is_level(self, edits: Sequence[Edit]) -> bool:
        """Tell whether with edits a value is one number, whatever goes in.

        A norm before a sum makes it zero, and so does a mean that is left out of x - x.mean(). Where the JAX side has
        zero, for any reason, such edits fit, and none of them is proved.
        """
        if any(edit.fixed or edit.again for edit in edits) or not any(edit.kind in _LEVELLING for edit in edits):
            return False
        every = [*self._plain, self._values(edits, 0), self._values(edits, 1)]
        known = [found for found in every if found is not None]
        if len(known) < len(every):
            return False
        numbers = (number for node in self._here.context.nodes for number in node.outputs)
        real = (n for n in numbers if all(n in found for found in known) and known[0][n].is_floating_point())
        return any(_is_level(*(array_of(found[number]) for found in known)) for number in real)

    def is_determined(self, edits: Sequence[Edit]) -> bool:
        """Tell whether the result shows each factor: behind a norm, or a bound that is reached, any larger one fits."""
        return not any(
            edit.nudged and self._here.leaves([*edits[:at], edit.nudged, *edits[at + 1 :]]) <= 1
            for at, edit in enumerate(edits)
        )

    @cached_property
    def _plain(self) -> "list[dict[int, torch.Tensor] | None]":
        return [self._values([], 0), self._values([], 1)]

    def _values(self, edits: Sequence[Edit], draw: int, scale: float = 1.0) -> "dict[int, torch.Tensor] | None":
        """Compute with edits all that changes from other values; None where that fails."""
        context = self._here.context
        graph, nodes = context.graph, context.nodes
        made = {number for node in nodes if node.name != GRADIENT for number in node.outputs}
        used = {number for node in nodes for _, number in node.inputs}
        used |= {number for number in context.ports.values() if number not in made}
        seed = draw * len(graph.values)
        others = {number: moved(graph.values[number], seed + number, scale) for number in used - made}
        try:
            return graph.changed(nodes, changes(edits), others)
        except FAILURES:
            return None

    def _end(self, edits: Sequence[Edit], scale: float = 1.0) -> np.ndarray | None:
        """Compute what differs between the sides."""
        values = self._values(edits, 0, scale)
        if values is None:
            return None
        return array_of(values.get(self._here.end, self._here.context.graph.values[self._here.end]))


GRADIENT = "grad"
"""torch.autograd.grad. Of values that are put in place of the step's it gives zero, since they come from no input."""

WIDE = 10.0
"""How much larger than the step's values others are, so that bounds such as that of a hinge are reached."""

_LEVELLING = {Kind.LEFT_OUT, Kind.ADDED, Kind.TWICE, Kind.MOVED, Kind.EXCHANGED, Kind.OPERAND, Kind.REDUCTION}
"""Kinds of edits that may fit by making a value one number. A mask that hides all but one makes it 1, and is meant."""


def _is_level(one: np.ndarray, other: np.ndarray, edited: np.ndarray, edited_other: np.ndarray) -> bool:
    """Tell whether a value that changes from one draw to the other changes no more with edits."""
    if one.shape != other.shape or edited.shape != edited_other.shape:
        return False
    # A sum of what adds up to zero leaves its rounding: what the plain values change by is the scale.
    way = np.abs(one - other).max(initial=0.0)
    return bool(np.abs(edited - edited_other).max(initial=0.0) < SAME * way)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        return False
    # Other values than the step's may be outside of what a function such as log is defined for.
    known = ~(np.isnan(a) & np.isnan(b))
    return bool(known.any()) and distance(a[known], b[known]) < SAME
