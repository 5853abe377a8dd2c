"""Properties of a run of the JAX side that need no step: its constants, its random keys, draws without effect."""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.compiling import compiled_quickly
from compare.jax_side.draw_matching import match
from compare.jax_side.idle_draws import reseeding
from compare.jax_side.keys import StepKeys, reading_keys
from compare.jax_side.lift import lift
from compare.jax_side.lines import constant_lines
from compare.jax_side.primitives import is_key
from compare.jax_side.reading import ForeignCall, foreign_calls
from compare.jax_side.replay import replayable, replaying
from compare.jax_side.run import JaxRun
from compare.jax_side.static import by_port as seen_by_port
from compare.jax_side.twins import beside
from compare.step.batch import Batch
from compare.step.draws import Draw, Site
from compare.step.observation import Observation
from compare.step.user_code import call_user_code


class KeyedRun(NamedTuple):
    """A run whose random keys are read before each step at which torch draws."""

    run: Any
    keys: list[StepKeys]
    read: Callable[[Any, Sequence[Draw]], StepKeys]
    """Reads the keys of the next step, without taking it."""

    def step(self, batch: Any, draws: Sequence[Draw]) -> Observation:
        """Take one step."""
        # One entry a step, so that they are those of the step of the same number.
        self.keys.append(self.read(batch, draws) if draws else StepKeys([], [], from_batch=False))
        seen: Observation = self.run.step(batch, draws)
        return seen


def named_constants(run: JaxRun, batch: Batch) -> list[str]:
    """Describe what a run's program holds in float32, with the line of the user's that uses it."""
    with run.precision():
        inputs = run.arguments(batch)
    # A step is traced within `value_and_grad`, and its operations have the line of that. Traced alone, they have
    # the lines of the user's code.
    lines = constant_lines(run.traced_alone(run.alone, run.params, *inputs))
    return [f"{what}, {lines[key]}" if lines.get(key) else what for key, what in run.constants.items()]


def placed_calls(run: JaxRun, batch: Batch) -> list[ForeignCall]:
    """List the calls out of the model, its loss and their gradient, with the user's lines, which a step has lost."""
    return foreign_calls(placed_program(run, batch))


def placed_program(run: JaxRun, batch: Batch) -> Any:
    """Trace the model, its loss and their gradient: its operations have the user's lines, which a step has lost."""
    import jax

    def traced(params: Any, buffers: Any, rngs: Any, inputs: Any, target: Any) -> Any:
        def model(params: Any) -> Any:
            loss, (seen, _, _) = run.with_loss(params, buffers, rngs, inputs, target)
            return (0.0 if loss is None else loss), seen[0]

        return jax.value_and_grad(model, has_aux=True)(params) if run.side.loss else model(params)

    with run.precision():
        inputs = run.arguments(batch)
    return run.traced_alone(traced, run.params, run.buffers, run.rngs, *inputs)


def traced_for(run: JaxRun, batches: tuple[Batch, Batch], times: int) -> tuple[Any, Any]:
    """Trace the forward pass and the loss for a batch, and for one with many times as many examples.

    Args:
        run: Of the JAX side.
        batches: The same batch twice, the second with an example more: the axis that grows is that of the examples.
        times: How many times as many.

    """
    import jax

    def traced(params: Any, buffers: Any, rngs: Any, inputs: Any, target: Any) -> Any:
        loss, (seen, after, _) = run.with_loss(params, buffers, rngs, inputs, target)
        return loss, seen[0], after

    def grown(few: Any, more: Any) -> Any:
        if not hasattr(few, "shape"):
            return few
        # The axis of the examples is where the two batches differ; a model may have it anywhere, or more than once.
        pairs = zip(few.shape, more.shape, strict=True)
        return jax.ShapeDtypeStruct([size * times if size != larger else size for size, larger in pairs], few.dtype)

    with run.precision():
        few, more = (run.arguments(batch) for batch in batches)
        state = run.params, run.buffers, run.rngs
        many = jax.tree.map(grown, few, more)
        return jax.make_jaxpr(traced)(*state, *few), jax.make_jaxpr(lambda *all_: traced(*all_))(*state, *many)


def evaluated(run: JaxRun, batch: Batch, draws: Sequence[Draw], *, gradient: bool) -> Observation:
    """Run forward, and the loss if there is one, with or without its gradient: a program of its own."""
    import jax

    def traced(params: Any, buffers: Any, rngs: Any, inputs: Any, target: Any, draws: Any) -> Any:
        def model(params: Any) -> Any:
            return run.with_loss(params, buffers, rngs, inputs, target)

        compute = replaying(model, draws, run.unreplayed, run.guessed, run.hints)
        if gradient:
            (loss, (seen, after, _)), gradients = jax.value_and_grad(compute, has_aux=True)(params)
            return loss, seen, after, gradients
        loss, (seen, after, _) = compute(params)
        return loss, seen, after, {}

    with run.precision(), jax.disable_jit(run.unroll):
        written = beside(run.params, run.written)
        program = lift(traced, run.pinned, written=written) if run.dtype == "float64" else traced
        arguments = run.params, run.buffers, run.rngs, *run.arguments(batch), replayable(draws, run.dtype)
        step = functools.partial(compiled_quickly(program), *arguments)
        loss, seen, after, gradients = call_user_code(f"the {run.side.name} side", step)
    buffers = dict(zip(run.buffer_names, jax.tree.leaves(after), strict=True))
    named = dict(zip(run.param_names, jax.tree.leaves(gradients), strict=True)) if gradient else {}
    return Observation(loss=loss, forward=seen_by_port(seen), buffers=buffers, gradients=named)


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

    with run.precision():
        leaves = [jnp.asarray(gradients[name], run.dtype) for name in run.param_names]
        given = jax.tree.unflatten(jax.tree.structure(run.params), leaves)

        def step(before: Any, factor: Any) -> Any:
            params, state = before
            # Some optimizers of optax take the loss. What follows from it is not compared here.
            loss = jnp.ones((), run.dtype)
            updates, state = run.updates(jax.tree.map(lambda each: factor * each, given), loss, state, params)
            each = zip(run.param_names, jax.tree.leaves(updates), strict=True)
            made = {name: update for name, update in each if name in names}
            shown = {n: jnp.stack([jnp.linalg.norm(u.ravel()), u.sum() / u.size**0.5]) for n, u in made.items()}
            return (optax.apply_updates(params, updates), state), shown

        def steps(params: Any, state: Any, factors: Any) -> Any:
            return jax.lax.scan(step, (params, state), factors)[1]

        program = lift(steps, []) if run.dtype == "float64" else steps
        shown = call_user_code(
            f"the {run.side.name} optimizer's update",
            functools.partial(compiled_quickly(program), run.params, run.state, jnp.asarray(factors, run.dtype)),
        )
    return {name: np.asarray(values) for name, values in shown.items()}


def read_keys(run: JaxRun, batch: Batch, draws: Sequence[Draw]) -> StepKeys:
    """Read the random keys of the next step and the parameters of what it draws, without taking it."""
    import jax

    sites: list[Site] = []

    def model(params: Any, buffers: Any, rngs: Any, inputs: Any, target: Any) -> Any:
        loss, seen = run.with_loss(params, buffers, rngs, inputs, target)
        return loss, seen[:2]  # without what the model gives, nothing of a model without a loss is used

    with run.precision(), jax.disable_jit(run.unroll):
        read = compiled_quickly(lambda values, *state: reading_keys(model, values, sites, run.hints)(*state))
        values, inputs = replayable(draws, run.dtype), run.arguments(batch)
        found = read(values, run.params, run.buffers, run.rngs, *inputs)
        moved = read(values, run.params, run.buffers, run.rngs, *jax.tree.map(next_integers, inputs))
    return step_keys(sites, found, moved)


def step_keys(sites: Sequence[Site], found: Any, moved: Any) -> StepKeys:
    """Give what was read, once on the batch and once on one with other integers."""
    import jax

    both = (each for each in zip(found, moved, strict=True) if all(read and np.all(read.made) for read in each))
    pairs = [(one.key, other.key) for one, other in both]
    # Keys that change when the batch's integers do are made from the batch, as in `key =
    # jax.random.key(batch["seed"])`. They repeat because the batch does.
    from_batch = any(not np.array_equal(one, other) for one, other in pairs)
    reads = [read if read is not None and np.all(read.made) else None for read in jax.tree.map(np.asarray, found)]
    return StepKeys(list(sites), reads, from_batch)


def idle_draws(run: JaxRun, batch: Batch, draws: Sequence[Draw]) -> list[Site] | None:
    """Give the draws that torch does not make, if they change nothing; None if one of them does."""
    import jax

    alone: list[Site] = []

    def shown(seed: Any, params: Any, inputs: Any, target: Any, draws: Any) -> Any:
        def model(params: Any) -> Any:
            loss, seen = run.with_loss(params, run.buffers, run.rngs, inputs, target)
            return (0.0 if loss is None else loss), seen[:2]

        compute = reseeding(model, draws, run.hints, seed, alone)
        return jax.value_and_grad(compute, has_aux=True)(params)

    with run.precision(), jax.disable_jit(run.unroll):
        arguments = run.params, *run.arguments(batch), replayable(draws, run.dtype)
        same = same_for_all_seeds(shown, arguments)
    return alone if same and not any(site.obstacle for site in alone) else None


def same_for_all_seeds(shown: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Tell whether a program gives the same under three seeds: draws that change nothing there have no effect."""
    import jax

    # Three, since a mask that is drawn from a few elements may be the same twice by accident.
    function = compiled_quickly(shown)
    given = [jax.tree.leaves(function(seed, *arguments)) for seed in range(3)]
    # A key that a step hands on is no number; what is drawn with it is.
    first, *others = [[each for each in leaves if not is_key(each.dtype)] for leaves in given]
    return all(
        np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")
        for each in others
        for one, other in zip(first, each, strict=True)
    )


def draws_of_torch_alone(run: JaxRun, batch: Batch, draws: Sequence[Draw]) -> list[int]:
    """Give the numbers of those of torch's draws that the JAX side does not make."""
    sites = read_keys(run, batch, draws).sites
    numbers = [number for number, draw in enumerate(draws) if not draw.backward]
    found = match([Site(draws[n].kind, tuple(draws[n].value.shape)) for n in numbers], sites, run.hints)
    met = {each.draw for each in found.placed if each is not None}
    return [number for place, number in enumerate(numbers) if place not in met]


def next_integers(leaf: Any) -> Any:
    """Give other integers, as those that a batch may have for a key."""
    return leaf + 1 if getattr(getattr(leaf, "dtype", None), "kind", "") in ("i", "u") else leaf
