"""Records of random draws: what the torch side has drawn, and where the JAX side draws."""

from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """What one call of a random function gave, on the torch side."""

    kind: str
    """"bernoulli", "uniform", "normal", "exponential", or for what only torch replays, the operation's name."""
    value: np.ndarray
    """In its kind's standard form: booleans that keep, not scaled; between 0 and 1; mean 0 and variance 1; rate 1."""
    probability: float | None = None
    """Of True, where it is the same for all."""
    backward: bool = False
    """Drawn in the backward pass, by a checkpoint that computes its forward pass again: it repeats an earlier draw."""

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

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"


class Hints(NamedTuple):
    """What is known of the JAX side's layouts, where shapes alone do not tell."""

    channels_last: bool = False
    """Whether it is given images with channels last, where torch's are first."""
    flattened: tuple[tuple[int, int], ...] = ()
    """The channels and points of image features that it flattens in its own order."""


NO_HINTS = Hints()
