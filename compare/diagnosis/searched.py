"""What a search for a cause has found."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from compare.diagnosis.changes import Changed
from compare.diagnosis.rewriting import Window
from compare.diagnosis.structure.recording import Operations
from compare.step.observation import Port
from compare.verdict.divergence import Cause, Detail

Values = Sequence[tuple[Port, np.ndarray]]
"""What the JAX side has at ports of torch's, in torch's layout."""

Explains = Callable[[Values], bool]
"""Tells whether a cause explains such values."""


def explains_nothing(_: Values) -> bool:
    """Without a cause, nothing is explained."""
    return False


class Searched(NamedTuple):
    """What a search has found."""

    cause: Cause | None = None
    details: tuple[Detail, ...] = ()
    """What else is known, where no cause is."""
    whole: bool = False
    """Whether, with the cause on the torch side, the whole model gives what the JAX side's own does: then nothing else
    that differs in the forward pass is a fault of its own."""
    explains: Callable[[Values], bool] = explains_nothing
    """Tells whether torch has these values in the same step, with the cause on its side."""
    changed: Sequence[Changed] = ()
    """The changes of torch's calls that the cause is, if it is such."""
    window: Window = Window()
    """In which calls are numbered there."""
    edited: Operations | None = None
    """The operations of torch's step that it changes, if it is of structure and the same at every step."""
    at_all_calls: Operations | None = None
    """The same, at every call of their lines in the step, where there are others."""
    multiple: float | None = None
    """By what torch's value is to be multiplied, if the cause is a factor of it."""
    several: bool = False
    """Whether the cause is two changes of operations: of many such pairs, one fits at a single place by accident."""
