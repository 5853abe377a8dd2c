"""Finds outputs of a model that are in another order on the JAX side."""

import itertools

from compare.comparison.model_runs import ModelRuns
from compare.numerics.distance import distance
from compare.step.layouts import ORDERS
from compare.step.observation import to_numpy
from compare.verdict.divergence import Cause
from compare.verdict.first_difference import Found


def exchanged_output(runs: ModelRuns, found: Found) -> Cause | None:
    """Say which other output of torch's an output of the JAX side is, to rounding; None if it is none."""
    ports, given = found.pairing.ports, found.target
    if ports is None or given is None or ports[0].path or ports[0].kind == "input" or not found.pairing.decides:
        return None
    steps = runs.stepper.whole(runs.torch_run("float64"))
    seen = next(itertools.islice(steps, found.divergence.step, None))
    for port, value in seen.forward.items():
        if (port.path, port.kind) != ("", "output") or port == ports[0]:
            continue
        other = to_numpy(value)
        orders = [
            order for order in ORDERS if other.ndim in order.activations and order.brings(other.shape, given.shape)
        ]
        if any(distance(order.layout.to_torch(given), other) <= found.limit for order in orders):
            return Cause(
                "order of outputs",
                f"order of outputs: where torch returns {ports[0]}, the JAX side returns torch's {port}",
                "",
                "docs/verdict.md#what-differs-inside-and-is-undone",
            )
    return None
