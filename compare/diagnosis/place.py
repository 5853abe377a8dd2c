"""The JAX side's layers at the place of a difference, by the names in its code.

A fix is written in the names of the user's own framework, and a setting is only ever given to a layer whose constructor
takes it.
"""

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from compare.verdict.fix import Code
from compare.weights.layers import KINDS

PACKAGES = {"flax.nnx": "nnx", "flax.linen": "nn", "equinox": "eqx.nn", "haiku": "hk"}
"""By what name programs import the layers of a package."""


class Place(NamedTuple):
    """The layers that run on the JAX side where the two sides begin to differ."""

    style: str = ""
    """How the program names the layers of its framework: "nnx", "nn" for Linen, "eqx.nn"; "" if it has none."""
    layers: tuple[type, ...] = ()
    """Their classes, the culprit first where a layer is the culprit."""
    cut: tuple[tuple[int, int], ...] = ()
    """How much of what its layer gives torch cuts off later, before and after, for each of the last axes."""

    def layer(self, kind: str) -> type | None:
        """Return the class of the layers of a kind, such as "norm"; None if there are none, or of several classes."""
        found = dict.fromkeys(layer for layer in self.layers if _kind(layer) == kind)
        return next(iter(found)) if len(found) == 1 else None

    def setting(self, kind: str, value: Any, *names: str) -> Code | None:
        """Write a setting of a layer of this kind, by the first of its `names` that the layer's constructor has."""
        layer = self.layer(kind)
        # The signature of an nnx class is (*args, **kwargs), as its metaclass makes the object: __init__ has the names.
        parameters = inspect.signature(layer.__init__).parameters if layer else {}  # type: ignore[misc]
        name = next((name for name in names if name in parameters), None)
        return Code(named(layer), keywords={name: value}) if layer and name else None


def place_of(model: type | None, layers: Iterable[type]) -> Place:
    """Describe a place by the classes of the JAX side's model and of the layers that run there."""
    return Place("" if model is None else _style(model), tuple(layers))


def named(layer: type) -> str:
    """Name a class as programs do: "nnx.LayerNorm", and one that the user has written by its own name."""
    package = next((short for name, short in PACKAGES.items() if layer.__module__.startswith(name)), "")
    return f"{package}.{layer.__name__}" if package else layer.__name__


def _style(layer: type) -> str:
    """Return the framework of a class that may be the user's: that of the nearest base class that has one."""
    packages = [short for base in layer.__mro__ for name, short in PACKAGES.items() if base.__module__.startswith(name)]
    return packages[0] if packages else ""


def _kind(layer: type) -> str:
    for base in layer.__mro__:
        if base.__name__ in KINDS:
            return KINDS[base.__name__]
        if base.__name__.startswith("Dropout"):
            return "dropout"
        if base.__name__ in ("MultiHeadAttention", "MultiHeadDotProductAttention", "MultiheadAttention"):
            return "attention"
    return ""
