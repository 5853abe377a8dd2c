"""What a run of a model shows on the JAX side besides its steps: other batches, and its optimizer alone."""

import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.lift import lift
from compare.jax_side.run import JaxRun
from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.step.observation import Observation
from compare.step.user_code import call_user_code


def traced_for(run: JaxRun, batches: tuple[Batch, Batch], times: int) -> tuple[Any, Any]:
    """Trace a step for a batch, and for one with many times as many examples.

    Args:
        run: Of the JAX side.
        batches: The same batch twice, the second with an example more: the axis that grows is that of the examples.
        times: How many times as many.

    """
    import jax

    def grown(few: Any, more: Any) -> Any:
        if not hasattr(few, "shape"):
            return few
        # The axis of the examples is where the two batches differ; a model may have it anywhere, or more than once.
        pairs = zip(few.shape, more.shape, strict=True)
        return jax.ShapeDtypeStruct([size * times if size != larger else size for size, larger in pairs], few.dtype)

    with run.precision():
        few, more = (run.inputs(batch) for batch in batches)
        many = jax.tree.map(grown, few, more)
        # A function of its own for each: JAX keeps the trace of a function.
        traced = [jax.make_jaxpr(lambda *given: run.whole(*given))(run.values, each) for each in (few, many)]
    return traced[0], traced[1]


def evaluated(run: JaxRun, batch: Batch, draws: Sequence[Draw], *, gradient: bool) -> Observation:
    """Run forward, and the loss if there is one, with or without its gradient: a program of its own."""
    step = run.structure.differentiated if gradient else run.structure.evaluated
    return run.taking(step).compiled_quickly().step(batch, draws)


def updates_alone(
    run: JaxRun, gradients: Mapping[str, np.ndarray], factors: np.ndarray, names: Container[str]
) -> dict[str, np.ndarray]:
    """Take steps of a run's optimizer alone, with gradients that are multiplied by a factor at each step.

    Returns:
        Of the parameters of these names, the norm of each one's update, and its sum over the root of its size, of shape
        `(steps, 2)`.

    """
    import jax
    import jax.numpy as jnp
    import optax

    start = run.state
    with run.precision():
        leaves = [jnp.asarray(gradients[name], run.dtype) for name in run.param_names]
        given = jax.tree.unflatten(jax.tree.structure(start.params), leaves)

        def step(before: Any, factor: Any) -> Any:
            params, state = before
            # Some optimizers of optax take the loss. What follows from it is not compared here.
            loss = jnp.ones((), run.dtype)
            updates, state = run.structure.updates(jax.tree.map(lambda each: factor * each, given), loss, state, params)
            each = zip(run.param_names, jax.tree.leaves(updates), strict=True)
            made = {name: update for name, update in each if name in names}
            shown = {n: jnp.stack([jnp.linalg.norm(u.ravel()), u.sum() / u.size**0.5]) for n, u in made.items()}
            return (optax.apply_updates(params, updates), state), shown

        def steps(params: Any, state: Any, factors: Any) -> Any:
            return jax.lax.scan(step, (params, state), factors)[1]

        program = lift(steps, []) if run.dtype == "float64" else steps
        shown = call_user_code(
            f"the {run.side.name} optimizer's update",
            functools.partial(
                compiled_quickly(program), start.params, start.optimizer, jnp.asarray(factors, run.dtype)
            ),
        )
    return {name: np.asarray(values) for name, values in shown.items()}
