"""Finds the cause if one side rounds more than the other and both compute the same."""

from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.comparison.model_runs import ModelRuns
from compare.comparison.program_runs import ProgramRuns
from compare.diagnosis.precision_causes import fast_variance, low_precision, lower_products, without_fast_variance
from compare.jax_side.reading import lowest_precision
from compare.jax_side.side import Flax, Jax
from compare.numerics.distance import distance
from compare.step.observation import Observation
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed
from compare.verdict.ratio import Quantity, Verdict


def precision_causes(runs: ModelRuns, followed: Followed) -> list[Cause]:
    """Search for the cause of the first `precision` verdict inside the model; an empty list if none is found."""
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    every = [(p, q) for p, q in pairs if q.verdict == Verdict.PRECISION]
    found = next(((p, q) for p, q in every if p.ports), None)
    pair, batch, draws = runs.pair, runs.pair.batches[0], runs.stepper.draws[0]
    if found is None:
        # Nothing within the model: what an optimizer remembers may have fewer bits, as with optax's mu_dtype.
        outside = [(p, q) for p, q in every if q.imbalance >= 1][:1]
        lowest = [lowest_precision(pair.jax_run("float32").program(batch, draws))[0]] if outside else []
        causes = (low_precision(p.jax, q, pair.jax.name, lowest, part="step") for p, q in outside)
        return [cause for cause in causes if cause]
    pairing, quantity = found
    assert pairing.ports is not None
    ours, theirs = pairing.ports
    if quantity.imbalance < 1:
        with ControlledRun(replay=draws) as controlled:
            runs.torch_run("float32").step(batch)
        cause = low_precision(ours.module, quantity, "torch", controlled.dtypes)
        return [cause] if cause else []

    probe = pair.jax_run("float32")
    dtypes = probe.probe(batch).dtypes
    kept = {str(array.dtype) for name, array in probe.arrays().items() if name in probe.param_names}
    if cause := low_precision(theirs.module, quantity, pair.jax.name, dtypes, kept):
        return [cause]
    cause = named_algorithm(runs, pairing, quantity)
    return [cause] if cause else []


def program_precision_causes(runs: ProgramRuns, followed: Followed, program: Any) -> list[Cause]:
    """Search for the cause of the first `precision` verdict of two programs; an empty list if none is found.

    `program` is the JAX side's step in float32, as it was traced.
    """
    pairs = zip(followed.pairings, followed.quantities, strict=True)
    found = next(((p, q) for p, q in pairs if q.verdict == Verdict.PRECISION), None)
    if found is None:
        return []
    pair, (pairing, quantity) = runs.pair, found
    ours, theirs = (each.module for each in pairing.ports) if pairing.ports else (pairing.torch, pairing.jax)
    if quantity.imbalance < 1:
        run = pair.torch_run("float32")
        with run.controlled(runs.stepper.draws[0]) as controlled:
            run.step(pair.batches[0])
        cause = low_precision(ours, quantity, "torch", controlled.dtypes, part="step")
    else:
        lowest, _ = lowest_precision(program)
        kept = {str(array.dtype) for array in pair.given.values()}
        cause = low_precision(theirs, quantity, pair.jax.name, [lowest], kept, part="step")
    return [cause] if cause else []


def named_algorithm(runs: ModelRuns, pairing: Pairing, quantity: Quantity) -> Cause | None:
    """Look for an algorithm of the JAX side's that is known to round more, and that explains a module's rounding."""
    assert pairing.ports is not None
    pair, path = runs.pair, pairing.ports[1].path
    batch, draws = pair.batches[0], runs.stepper.draws[0]

    def jax(dtype: str, side: Flax | Jax, full: bool = False) -> np.ndarray:
        run = pair.jax_run_of(side, dtype)
        return pairing.jax_array(Observation(forward=run.forward(batch, draws, full=full)))

    # Each candidate is an experiment: the JAX side's rounding with the norms of this module alone, then
    # of the whole model.
    for each in dict.fromkeys((path, "")):  # where the rounding shows, or anywhere before
        if found_norms := without_fast_variance(pair.jax, each):
            slow, norms = found_norms
            if cause := fast_variance(norms, quantity, distance(jax("float32", slow), jax("float64", pair.jax))):
                return cause
    lowest, _ = lowest_precision(pair.jax_run("float32").program(batch, draws))
    if lowest in ("float32", "float64"):
        return None
    full = distance(jax("float32", pair.jax, full=True), jax("float64", pair.jax, full=True))
    return lower_products(path, pair.jax.name, lowest, quantity, full)
