"""Checks that the JAX side's float32 program, which people run, is the program that its float64 run proves."""

from typing import Any

from compare.comparison.common_runs import CommonRuns
from compare.jax_side.reading import lowest_precision
from compare.jax_side.same_operations import first_other
from compare.numerics.distance import EPSILON32
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.following import Followed

DOCS = "docs/verdict.md#float32-is-judged-too"


def weigh_float32_program(runs: CommonRuns, followed: Followed, jax32: Any, jax64: Any) -> Cause | None:
    """Measure whether what the JAX side's precisions are apart is rounding, where it is much more than torch's.

    Both runs of the JAX side are compiled already.

    Args:
        runs: Of both sides.
        followed: What following them has shown.
        jax32: A float32 run of the JAX side.
        jax64: One in float64.

    Returns:
        The lower precision in the program that makes it so, if there is one.

    """
    apart = [quantity for quantity in followed.quantities if quantity.decides and quantity.apart32.any()]
    if not apart:
        return None
    program = jax32.program(runs.pair.batches[0], runs.stepper.draws[0])
    name, lowest = lowest_precision(program)
    if name not in ("float32", "float64") and jax64.traces and first_other(program, jax64.traces[0]):
        # A lower precision explains rounding, and no other operations than in float64.
        name, lowest = "float32", EPSILON32
    runs.weigh_spread32(followed, jax32, lowest)
    # Such as the gradient of a softmax that is 1 at one place: one library gives its rounding, and another zero.
    if _any_other(followed) or any(quantity.decides and quantity.noisy for quantity in followed.quantities):
        runs.weigh_noise(followed, jax64)
    if _any_other(followed):
        runs.weigh_spread32(followed, jax32, lowest, functions=True)
    if _any_other(followed):
        runs.weigh_torch32(followed)
    if name in ("float32", "float64"):
        return None
    first = apart[0]
    step = int(first.apart32.argmax())
    return Cause(
        f"{name} on the {runs.pair.jax.name} side",
        f"the {runs.pair.jax.name} side's program computes in {name}; first seen at {first.torch} ({first.stage}): its "
        f"rounding is {first.error_jax[step]:.1e} on the JAX side and {first.error_torch[step]:.1e} on the torch side",
        f"compute it in float32: leave out {name}, or use it on both sides",
        "docs/precision.md",
    )


def _any_other(followed: Followed) -> bool:
    return any(quantity.decides and quantity.other32.any() for quantity in followed.quantities)


def other_in_float32(followed: Followed) -> Divergence | None:
    """Return the first place at which the JAX side is another program in float32 than in float64."""
    found = [(int(q.other32.argmax()), q) for q in followed.quantities if q.decides and q.other32.any()]
    if not found:
        return None
    step, quantity = min(found, key=lambda each: each[0])
    spread = quantity.spread32[step] if quantity.spread32 else 0.0
    return Divergence(
        step,
        quantity.stage,
        quantity.torch,
        quantity.jax,
        quantity.error64[step],
        float(quantity.rounding[step]),
        float(quantity.expected[step]),
        opinion="the JAX side's float32 result differs from its float64 result "
        f"by {quantity.error_jax[step]:.1e}, and torch's by {quantity.error_torch[step]:.1e}. If "
        f"weights and inputs are moved by rounding, it changes by {spread:.1e}, so this is not "
        "rounding. Does the port branch on a dtype, or does it amplify its own rounding?",
        question="in float32, where this is another program",
    )
