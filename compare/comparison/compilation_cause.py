"""Finds out whether a difference comes from how XLA compiles the JAX side's step, and not from the port."""

import dataclasses
import itertools

from compare.comparison.common_runs import CommonRuns
from compare.jax_side.common_run import CommonRun
from compare.jax_side.reading import equations
from compare.numerics.distance import distance
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR

BATCHES = 2
"""The maximum number of batches to try: one to find the cause, and one to confirm it."""


def with_compilation(runs: CommonRuns, followed: Followed, found: Divergence, jax32: CommonRun) -> Divergence:
    """Give a divergence of the float32 program its cause, if operation by operation the JAX side computes torch's."""
    import jax

    pairs = zip(followed.pairings, followed.quantities, strict=True)
    pairing, quantity = next((p, q) for p, q in pairs if (q.stage, q.torch) == (found.stage, found.torch))
    if found.step > 0:
        return found
    fair, apart = FACTOR * float(quantity.fair32[0]), []
    for batch in itertools.islice(runs.pair.batches, BATCHES):
        run = runs.torch_run("float32")
        with run.around(), run.controlled(None) as controlled:
            ours = pairing.torch_array(run.step(batch))
        # Each primitive is compiled alone, and none is computed twice.
        with jax.disable_jit():
            theirs = pairing.jax_array(runs.pair.jax_run("float32").step(batch, controlled.draws))
        apart.append(distance(theirs, ours))
    if max(apart) > fair:
        return found
    explanation = (
        "how XLA compiles the whole step: run operation by operation, under jax.disable_jit(), "
        f"the {runs.pair.jax.name} side differs from torch by {max(apart):.1e} there; compiled, it differs "
        f"from its own float64 run by {quantity.error_jax[0]:.1e}"
    )
    program = jax32.program(runs.pair.batches[0], runs.stepper.draws[0])
    has_maximum = {"reduce_max", "eq"} <= {each.primitive.name for each in equations(program)}
    cause = Cause("compilation", explanation + _MAXIMUM * has_maximum, _FIX * has_maximum, _SOURCE)
    return dataclasses.replace(found, cause=cause, opinion="")


_MAXIMUM = (
    ". The program has a maximum, whose gradient goes to the elements for which x == max(x): in the compiled program "
    "x may be computed twice, with different rounding, and then no element is equal to the maximum"
)
_FIX = (
    "compute a maximum by its index, so that it keeps its gradient: jnp.take_along_axis(x, jnp.argmax(x, "
    "axis, keepdims=True), axis)"
)
_SOURCE = "https://github.com/jax-ml/jax/issues/40564"
