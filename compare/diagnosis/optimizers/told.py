"""A part of a cause as values: its name, what each side does, and its fix."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compare.diagnosis.optimizers.calls import Call


@dataclass(frozen=True)
class Told:
    """One thing that the JAX side does otherwise."""

    name: str
    """In a word or two: "epsilon", "clipping"."""
    says: str
    """What each side does, as a clause."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of optax's optimizer that mend it."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are right already: they are printed with the fix, and a patch leaves them alone."""
    before: Call | None = None
    """A transformation that mends it, before the optimizer."""
    function: str = ""
    """The function of optax that mends it, where it is not the one of the same name."""
    fix: Call | str = ""
    """The fix otherwise: a whole call, or words if no call expresses it."""
    source: str = ""


def with_distinct_digits(one: Any, other: Any) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return str(one), str(other)
    digits = next(n for n in range(6, 18) if n == 17 or f"{one:.{n}g}" != f"{other:.{n}g}")
    return f"{one:.{digits}g}", f"{other:.{digits}g}"


def rates_in_words(torch: list[float], jax: list[float]) -> tuple[str, str]:
    """Write two lists of rates with as many digits as show where they differ; at most `SHOWN` of each."""
    shown = list(zip(torch, jax, strict=True))
    first = next((i for i, pair in enumerate(shown) if not _equal(*pair)), 0)
    start = max(0, min(first - 2, len(shown) - SHOWN))
    part = shown[start : start + SHOWN]
    differing = [pair for pair in part if not _equal(*pair)]
    digits = next(n for n in range(4, 18) if n == 17 or all(f"{a:.{n}g}" != f"{b:.{n}g}" for a, b in differing))
    before, behind = "... " if start else "", " ..." if start + SHOWN < len(shown) else ""
    ours, theirs = (" ".join(f"{pair[i]:.{digits}g}" for pair in part) for i in (0, 1))
    return f"{before}{ours}{behind}", f"{before}{theirs}{behind}"


SHOWN = 8


def _equal(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-12 * max(abs(one), abs(other))
