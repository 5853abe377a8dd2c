"""What one step of one side shows: loss, gradients, updates, state and the tensors inside the model."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.step.stage import Stage


def to_numpy(value: Any) -> np.ndarray:
    """Read a torch tensor, a JAX array or a number; bfloat16, which NumPy has not, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().to_dense() if value.is_sparse else value.detach()
        value = value.cpu()
        value = value.float() if value.dtype.itemsize == 2 and value.is_floating_point() else value
        return value.numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def which_call(number: int) -> str:
    """Name a call of a module, which is counted from 0, as people count: " (2nd call)"; "" for the first.

    >>> [which_call(number) for number in (0, 1, 2, 10, 20)]
    ['', ' (2nd call)', ' (3rd call)', ' (11th call)', ' (21st call)']
    """
    return f" ({ordinal(number)} call)" if number else ""


def ordinal(number: int) -> str:
    """Write the ordinal of what is counted from 0: "1st" for 0."""
    nth = number + 1
    ending = "th" if nth % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(nth % 10, "th")
    return f"{nth}{ending}"


class Port(NamedTuple):
    """One tensor that is an input or an output of a module."""

    path: str
    """The module's, as the side writes it: "encoder.0.norm1" or "encoder/0/norm1"; "" for the whole model."""
    call: int
    """Which call of this module within the step, from 0."""
    kind: str
    """"input" or "output"."""
    leaf: str
    """Which of its inputs or outputs: a position, or the name of a field."""

    @property
    def module(self) -> str:
        """The module, as in "encoder.0.norm1", with the call where it is not the first."""
        return (self.path or "the model") + which_call(self.call)

    def __str__(self) -> str:
        """Like "encoder.0.norm1 output", with the leaf where it is not the only one."""
        leaf = self.leaf.split(".")[-1] if self.kind == "output" else self.leaf.partition(".")[2]
        return f"{self.module} {self.kind}{f' {leaf}' if leaf not in ('', '0') else ''}"


class Observation(NamedTuple):
    """What one step of one side shows, under the side's own names: whatever `np.asarray` takes.

    It is read before the side's next step, which may overwrite it. JAX's arrays may still be on their way.
    """

    loss: Any = None
    """Scalar, before the update; None where there is no loss."""
    gradients: Mapping[str, Any] = {}
    updates: Mapping[str, Any] = {}
    """What the step adds to each parameter."""
    parameters: Mapping[str, Any] = {}
    """After the update."""
    optimizer: Mapping[str, Any] = {}
    """After the update."""
    buffers: Mapping[str, Any] = {}
    """After the step."""
    forward: Mapping[Port, Any] = {}
    """In order of execution."""

    state: Mapping[str, Any] = {}
    """Of a program: what else its state holds, after the step, such as averages of weights and bare tensors."""
    counts: Mapping[str, Any] = {}
    """Of a program: how far the integers of its state, such as counters and pointers, are from those at the start."""
    shown: Mapping[str, Any] = {}
    """Of a program: what its step shows by name, but for the loss."""
    accumulated: Mapping[str, Any] = {}
    """Of a torch program: gradients as the backward pass left them, where they were changed since, as by clipping."""
    order: Mapping["Event", float] = {}
    """Of a program: the rank of modules' tensors, losses, gradients and updates, in the order of their computation."""


Event = tuple[Stage, Any]
"""A stage, and the port or name of what was computed in it."""

FIRST_UPDATE: Event = (Stage.UPDATE, "")
"""That an optimizer updates for the first time within a step."""

Stream = Iterator[Observation]
"""A side's steps, one by one, each in two halves: see `halves`."""


def halves(seen: Observation) -> Iterator[Observation]:
    """Split a step before its update: what each half shows may be let go before the other is needed."""
    update = Observation(
        updates=seen.updates,
        parameters=seen.parameters,
        optimizer=seen.optimizer,
        buffers=seen.buffers,
        state=seen.state,
        counts=seen.counts,
        order=seen.order,
    )
    first = [seen._replace(updates={}, parameters={}, optimizer={}, buffers={}, state={}, counts={})]
    del seen
    yield first.pop()  # whoever takes it is the only one who keeps it
    yield update


def joined(first: Observation, update: Observation) -> Observation:
    """Put the halves of a step together."""
    return update._replace(loss=first.loss, gradients=first.gradients, forward=first.forward)
