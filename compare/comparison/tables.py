"""Explains differences that come from numbers that were rounded to float32 before the comparison began."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from compare.numerics.tables import movement
from compare.step.observation import to_numpy
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found
from compare.verdict.ratio import Quantity

DOCS = "docs/precision.md#tables-in-float32"

_NAMED = 3
"""The number of tables of a side that are named."""


class Tables(NamedTuple):
    """What each side holds in float32, as text."""

    torch: list[str]
    jax: list[str]


def rounded_arrays(kept: Mapping[str, Any], linked: Container[str]) -> dict[str, str]:
    """Describe those arrays, by name, that were rounded to float32 and have no partner: their numbers are not shared.

    Args:
        kept: What a side keeps beside the parameters that it trains.
        linked: What the map gives a partner: both sides start from the same numbers there.

    """
    arrays = {name: to_numpy(each) for name, each in kept.items() if name not in linked}
    return {
        name: f"the {'frozen parameter' if type(kept[name]).__name__ == 'Parameter' else 'buffer'} {name} "
        f"of shape {array.shape}"
        for name, array in arrays.items()
        if array.dtype.kind in "fc" and movement(array, 1).any()
    }


def rounded_tables(tables: Tables, place: str, step: int, quantity: Quantity, side: str) -> Cause:
    """Explain a difference that is at most the effect of the tables' rounding.

    Args:
        tables: What each side holds in float32.
        place: Where the sides differ by more than float64's rounding.
        step: The number of the step.
        quantity: What is different there.
        side: What the JAX side is called.

    """
    held = [
        f"on the {name} side {_listed(each)}" if each else f"on the {name} side nothing"
        for name, each in (("torch", tables.torch), (side, tables.jax))
    ]
    # Of one side alone, the other may have the same array, with decimals in it that were restored.
    both = "give both sides the same array: compute it once, in NumPy, and use it in both programs"
    advice = f". To see the two agree to float64's rounding, {both}" if tables.torch and tables.jax else ""
    return Cause(
        "numbers rounded to float32",
        f"{place}: the sides differ by {quantity.error64[step]:.1e} in float64. Numbers that were rounded to "
        "float32 when the programs were built explain this: moved by half a unit of float32, they change it "
        f"by {quantity.tables[step]:.1e}. These are {' and '.join(held)}",
        f"none is needed{advice}",
        DOCS,
    )


def other_program(found: Found, quantity: Quantity, side: str) -> Cause:
    """Explain a difference that one side's float64 run has alone: its float32 run agrees with the other side.

    Args:
        found: The first difference beyond float64's rounding.
        quantity: What is different there.
        side: What the JAX side is called.

    """
    step, place = found.divergence.step, found.divergence.torch
    jax_is_alone = quantity.error_jax[step] > quantity.error_torch[step]
    alone, other = (side, "torch") if jax_is_alone else ("torch", side)
    least, most = sorted((quantity.error_torch[step], quantity.error_jax[step]))
    return Cause(
        "float64 is another program",
        f"{place}: the sides differ by {quantity.error64[step]:.1e} in float64 and "
        f"by {quantity.between32[step]:.1e} in float32, where the {other} side's rounding is {least:.1e}. "
        f"The {alone} side's float64 run differs from the other three runs: by {most:.1e} from its own float32 "
        "run. Float32 loses something there that float64 keeps, such as numbers to which a mask of -1e10 is "
        "added. From here on the sides are compared in float32, which shows no difference below its rounding",
        "none is needed for float32. To compare in float64 as well, write the mask on both sides so that no "
        "precision keeps the masked numbers: torch.where or masked_fill with -inf, and jnp.where with -jnp.inf",
        "docs/precision.md#float64-is-another-program",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
