"""Finds where the user's program chooses between two values, as `jnp.where` does, and whether both were chosen.

What a program does with no data of a check is not compared, however many steps match: a branch for later steps, a
bound that nothing reaches, a mask that hides nothing. Only what the user calls is looked at: libraries guard themselves
against numbers that no network has.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.primitives import Kind, Program, called, kind
from compare.step.places import JAX_PACKAGES, users_frame

_SELECTING, _BOUNDING, _BRANCHING = frozenset({"select_n"}), frozenset({"max", "min", "clamp"}), frozenset({"cond"})
_SIGNED = frozenset({"abs", "sign"})

_FUNCTIONS = {
    "where": ("jnp.where", _SELECTING),
    "select": ("jax.lax.select", _SELECTING),
    "nan_to_num": ("jnp.nan_to_num", _SELECTING),
    "clip": ("jnp.clip", _BOUNDING),
    "clamp": ("jax.lax.clamp", _BOUNDING),
    "relu": ("relu", _BOUNDING),
    "relu6": ("relu6", _BOUNDING),
    "leaky_relu": ("leaky_relu", _SELECTING),
    "elu": ("elu", _SELECTING),
    "abs": ("jnp.abs", _SIGNED),
    "sign": ("jnp.sign", _SIGNED),
    "hard_tanh": ("hard_tanh", _BOUNDING),
    "ufunc.__call__": ("jnp.maximum or jnp.minimum", _BOUNDING),  # all of NumPy's functions of two arrays
    "cond": ("jax.lax.cond", _BRANCHING | _SELECTING),  # under vmap it is a selection
    "switch": ("jax.lax.switch", _BRANCHING | _SELECTING),
}
"""Functions that choose, what they are called, and the operations by which they do: their derivatives have more."""

_BETWEEN = (
    *("pjit.py", "traceback_util.py", "custom_derivatives.py", "api.py", "core.py", "ad.py", "linear_util.py"),
    *("partial_eval.py", "source_info_util.py", "batching.py"),
)
"""Files of JAX that stand between a call in the user's code and what is called."""


class Choice(NamedTuple):
    """One place in the user's code that chooses."""

    function: str
    place: str
    """The user's line, "port.py:12"."""
    instruction: int
    """Of that line: it may call the same function twice."""
    operation: str

    def __str__(self) -> str:
        return f"{self.function} at {self.place}"


class Choices:
    """Notes, while a traced program is run, what its choices choose."""

    def __init__(self) -> None:
        self.made: dict[Choice, Any] = {}
        """For each choice, whether each of its sides is taken by any element: boolean, of shape `(sides,)`."""
        self._within: Found | None = None
        self._closed = 0

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Note nothing while this lasts: values within a loop do not leave it."""
        self._closed += 1
        try:
            yield
        finally:
            self._closed -= 1

    @contextlib.contextmanager
    def at(self, eqn: Any, args: list[Any]) -> Iterator[None]:
        """Note what an operation chooses, and what the operations of the program that it calls do."""
        name, before = eqn.primitive.name, self._within
        if not self._closed:
            self._within = self._within or called_by_the_user(eqn)
            if self._within and name in self._within[1]:
                self._note(self._within[0]._replace(operation=name), _sides(name, args, eqn))
        try:
            yield
        finally:
            self._within = before

    def _note(self, choice: Choice, taken: Any) -> None:
        if choice not in self.made:
            self.made[choice] = taken
        elif self.made[choice].shape == taken.shape:
            self.made[choice] |= taken


def add_choices(taken: dict[Choice, np.ndarray], made: Mapping[Choice, Any]) -> None:
    """Add what one more step has chosen."""
    for choice, sides in made.items():
        taken[choice] = np.asarray(sides) | taken.get(choice, False)


def one_sided(taken: Mapping[Choice, np.ndarray]) -> list[str]:
    """Describe the choices that always take the same side, as text."""
    found = dict.fromkeys(str(choice) for choice, sides in taken.items() if not sides.all())
    # The optimizers alone take more steps than these, in which a schedule may take all its sides.
    said = "one of its sides is never taken in the compared training steps"
    return [f"{each}: {said}; use a batch, or a step, at which it is" for each in found]


def _sides(name: str, args: list[Any], eqn: Any) -> Any:
    """Tell for each side of a choice whether any element takes it."""
    import jax.numpy as jnp

    if name == "clamp":
        low, value, high = args
        return jnp.stack([jnp.any(value < low), jnp.any(value > high), jnp.any((value >= low) & (value <= high))])
    if name in _SIGNED:
        return jnp.stack([jnp.any(args[0] < 0), jnp.any(args[0] > 0)])
    if name in _BOUNDING:
        # Equal numbers choose neither side.
        return jnp.stack([jnp.any(args[0] > args[1]), jnp.any(args[0] < args[1])])
    sides = len(args) - 1 if name == "select_n" else len(eqn.params["branches"])
    index = jnp.asarray(args[0]).astype(np.int32)
    return jnp.stack([jnp.any(index == side) for side in range(sides)])


Found = tuple[Choice, frozenset[str]]
"""A choice, and the operations by which it is made."""


def called_by_the_user(eqn: Any) -> Found | None:
    """Return the choice that the user calls directly, and the operations by which it chooses; None if it is none."""
    traceback, name = eqn.source_info.traceback, eqn.primitive.name
    if traceback is None or not (name in _SELECTING | _BOUNDING | _BRANCHING | _SIGNED or kind(eqn) == Kind.CALL):
        # Reading a traceback is dear, and most operations choose nothing.
        return None
    frames = list(traceback.frames)
    number = users_frame([frame.file_name for frame in frames], JAX_PACKAGES)
    if number is None:
        return None
    inner = [each for each in frames[:number] if os.path.basename(each.file_name) not in _BETWEEN]
    # A function that is jitted itself, such as `jnp.clip`, has no frame of its own, but the call has its name.
    function = _FUNCTIONS.get(inner[-1].function_name if inner else _name(eqn))
    if function is None:
        return None
    place = f"{os.path.basename(frames[number].file_name)}:{frames[number].line_num}"
    return Choice(function[0], place, traceback.raw_frames()[1][number], ""), function[1]


def _name(eqn: Any) -> str:
    """Return the name of the function that a call runs; one with custom derivatives has another call in it."""
    if kind(eqn) != Kind.CALL:
        return str(eqn.primitive.name) if eqn.primitive.name in _SIGNED else ""
    inner = Program.of(called(eqn)).equations
    return str(eqn.params.get("name", "") or (_name(inner[0]) if len(inner) == 1 else "")).lstrip("_")
