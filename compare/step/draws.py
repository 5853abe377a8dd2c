"""Records of random draws: what the torch side has drawn, and where the JAX side draws."""

from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """What one call of a random function gave, on the torch side."""

    kind: str
    """"bernoulli", "uniform", "normal", "exponential", or for what only torch replays, the operation's name."""
    value: np.ndarray
    """In its kind's standard form: booleans that keep, not scaled; between 0 and 1; mean 0 and variance 1; rate 1;
    integers from 0 on."""
    parameters: "tuple[float | np.ndarray, ...]" = ()
    """What its standard form leaves open: of booleans the probability of True, of integers how many there are. A number
    of the user's code is a float; what tensors gave, an array that fits `value`. Empty where there is no such thing."""
    backward: bool = False
    """Drawn in the backward pass, by a checkpoint that computes its forward pass again: it repeats an earlier draw."""

    host: bool = False
    """Drawn by NumPy or Python, and not by torch."""

    def __str__(self) -> str:
        return f"{self.kind} {self.value.shape}"


class Site(NamedTuple):
    """Where the JAX side draws."""

    kind: str
    """As for `Draw`, or "gumbel", "bits"."""
    shape: tuple[int, ...]
    obstacle: str = ""
    """Why nothing can be replayed there, if so."""
    place: str = ""
    """The user's line, "model.py:12", where it is known."""
    unused: bool = False
    """Whether nothing is computed of it: then no draw of torch's belongs there."""
    branches: tuple[tuple[tuple[int, ...], int], ...] = ()
    """The branches of conditionals that it is in, the outermost first: where the conditional is in the program, as the
    numbers of operations, and which of its branches it is. It draws only if all of them are taken."""

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"


class Weight(NamedTuple):
    """The layout of a weight on both sides. Noise that is drawn for the weight may have it too."""

    torch: tuple[int, ...]
    """The shape in torch."""
    jax: tuple[int, ...]
    axes: tuple[int, ...]
    """The axis of torch's that each axis of JAX's is."""
    place: int
    """Its place among JAX's weights of the same model."""


class Hints(NamedTuple):
    """What is known of the JAX side's draws, where kinds and shapes alone do not tell."""

    channels_last: bool = False
    """Whether it is given images with channels last, where torch's are first."""
    flattened: tuple[tuple[int, int], ...] = ()
    """The channels and points of image features that it flattens in its own order."""
    layouts: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Shapes of torch's draws that fit in several layouts, each with the name of the one to take."""
    reflected: frozenset[int] = frozenset()
    """The numbers of torch's draws of which the JAX side draws the complement, such as what to drop in place of what to
    keep: not b for a boolean b, 1 - u for a uniform u."""
    given: frozenset[int] = frozenset()
    """The numbers of torch's draws that the JAX side was given by NumPy or Python while it was traced."""
    repeated: tuple[tuple[int, int], ...] = ()
    """Places where the JAX side draws with the key of an earlier place, and so the same: both numbers."""

    composed: bool = False
    """Whether it draws a new order each time, where torch's step shuffles again what it has shuffled before."""
    weights: tuple[tuple[Weight, ...], ...] = ()
    """The layouts of each model's trained weights, in torch's order."""
    by_leaf: bool = False
    """Whether JAX draws for the weights of a model in the order of its own leaves."""


NO_HINTS = Hints()
