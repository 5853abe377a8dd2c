"""Notes the line of the user's code that makes each layer and optimizer, and gives it by the object."""

import weakref
from typing import Any

from compare.step.places import Source, source_here

_MADE: dict[int, tuple[Any, Source]] = {}
"""By the object's identity: what gives the object as long as it lives, and where it was made."""


def note(made: Any, *packages: str) -> None:
    """Note that an object is being made by the user's line that is running; the packages are not the user's."""
    place = source_here(*packages, made=made)
    if place is None:
        return
    key = id(made)
    try:
        held: Any = weakref.ref(made, lambda _: _MADE.pop(key, None))
    except TypeError:  # tuples, such as the optimizers of optax, cannot be held weakly
        held = lambda: made  # noqa: E731
    _MADE[key] = held, place


def made_at(made: Any) -> Source | None:
    """Return the user's expression that made an object; None where that was not noted."""
    held, place = _MADE.get(id(made), (lambda: None, None))
    # An identity is used again once its object is gone: the object itself decides.
    return place if held() is made else None
