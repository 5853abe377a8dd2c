"""Explains differences that are not bugs: tables in float32, and a float64 run that is another program."""

from collections.abc import Callable
from typing import NamedTuple

from compare.comparison.tables import Tables, other_program, rounded_tables
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found, first_divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR


class Measures(NamedTuple):
    """What measures further runs of both sides, and adds to what following them has found."""

    tables: Callable[[Followed], Tables]
    """Moves what each side holds in float32, and gives what that is."""
    float32: Callable[[Followed], None]
    """Compares both sides in float32."""


def excuses(followed: Followed, measures: Measures, side: str) -> list[Cause]:
    """Weigh what the runs that were moved by float64 rounding do not explain, and give what explains it.

    Args:
        followed: What following both sides has found, noise included; more is added to it.
        measures: What is measured if something still differs.
        side: What the JAX side is called.

    """
    found = []
    if first := first_divergence(followed):
        step = first.divergence.step
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        wrong = [(pairing, quantity) for pairing, quantity in pairs if quantity.ratio[step] > FACTOR]
        tables = measures.tables(followed)
        if _went(followed, first):
            # What a later part of the port makes up for may differ before it, and is not what tables explain.
            every = ((pairing, quantity) for pairing, quantity in wrong if quantity.ratio[step] <= FACTOR)
            pairing, quantity = next(every, (first.pairing, followed.quantity(first.pairing)))
            place = first.divergence.torch if pairing is first.pairing else pairing.torch
            found.append(rounded_tables(tables, place, step, quantity, side))
    if first := first_divergence(followed):
        quantity = followed.quantity(first.pairing)
        if quantity.alone[first.divergence.step]:
            measures.float32(followed)
            if _went(followed, first):
                found.append(other_program(first, quantity, side))
    return found


def _went(followed: Followed, first: Found) -> bool:
    """Return whether the first divergence is not one any more."""
    now = first_divergence(followed)
    return now is None or now.pairing is not first.pairing or now.divergence.step != first.divergence.step
