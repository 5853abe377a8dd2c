"""Explains two steps that differ because a number that is counted starts elsewhere on the JAX side."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from compare.comparison.weighing import Weighing
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import Role
from compare.step.observation import Observation
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed

STARTS = (0, 1)
"""What people count from."""

MOST = 8
"""Starting values that are tried: each takes all steps of the JAX side."""


def other_start(
    followed: Followed,
    torch: Callable[[], Iterable[Observation]],
    counted: Sequence[int],
    again: Callable[[], JaxProgramRun],
    step: Callable[[JaxProgramRun, int], Observation],
) -> Cause | None:
    """Say so where the JAX side takes torch's steps once an integer of its state starts from another number.

    No number is fitted: it starts where torch's integers do, or from 0 or 1.

    Args:
        followed: What following both sides has found.
        torch: Takes the torch side's steps in float64.
        counted: The integers that torch's state starts with.
        again: Starts the JAX side's float64 run.
        step: Takes a step of a run, by its number.

    """
    for name, own, value in itertools.islice(_starts(again(), counted), MOST):
        run, weighing = again(), Weighing(followed)
        run.load({name: np.array(value, np.int32)})
        steps = ((seen, step(run, number)) for number, seen in enumerate(torch()))
        if all(_agrees(followed, weighing, name, value - own, *each) for each in steps):
            return Cause(
                "starting value",
                f"starting value: {name} starts at {own} on the JAX side. Started at {value}, the JAX side takes the "
                "same steps as torch",
                f"start {name} at {value}{_or_counted(value - own)}",
            )
    return None


def _agrees(followed: Followed, weighing: Weighing, name: str, more: int, torch: Observation, jax: Observation) -> bool:
    """Tell whether a step is torch's, and an integer of the JAX side, that starts with so much more, grows as torch's.

    By how much it has grown is told from where it started before.
    """
    own = [pairing for pairing in followed.pairings if pairing.jax == name]
    if any(not np.array_equal(pairing.torch_array(torch), pairing.jax_array(jax) - more) for pairing in own):
        return False
    return all(pairing.jax == name for _, pairing in weighing.differing(torch, jax))


def _or_counted(more: int) -> str:
    """Say what a count that is one behind, or one ahead, may be as well."""
    return {1: ", or count before it is read", -1: ", or count after it is read"}.get(more, "")


def _starts(run: JaxProgramRun, counted: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Yield the integers of a state, each with what it starts from and another number that it may start from."""
    for leaf, value in zip(run.leaves, run.values, strict=True):
        # Signed: what counts the draws of a generator is not.
        if leaf.role == Role.OTHER and not np.ndim(value) and getattr(value.dtype, "kind", "") == "i":
            yield from (
                (leaf.name, int(value), start) for start in dict.fromkeys((*counted, *STARTS)) if start != value
            )
