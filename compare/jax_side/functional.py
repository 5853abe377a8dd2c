"""A JAX model as a pure function: of nnx, of Linen, or over any pytree."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.lift_modules import lift_nnx
from compare.jax_side.mode import attributes_of_mode, by_effect, mixed, with_mode
from compare.jax_side.naming import tell_paths
from compare.jax_side.primitives import BITS, Program, programs
from compare.jax_side.state import StateArrays
from compare.step.user_code import passes_on


class Functional(NamedTuple):
    """A model as a pure function."""

    params: Any
    """What is differentiated and updated: a pytree of the user's own structure."""
    buffers: Any
    """What else the model keeps and changes, such as running statistics."""
    rngs: Any
    """Its random number generators."""
    apply: Callable[..., Any]
    """`apply(params, buffers, rngs, args, kwargs)` gives the output, and new buffers and rngs."""
    called: Callable[..., Any]
    """The user's function that is called with args and kwargs, for its signature."""
    collections: bool = False
    """Whether the first key of `buffers` is a collection of Linen's, which is no part of a buffer's name."""


BITS_OF_FLOAT32 = 32


def _floating(leaf: Any) -> bool:
    return (hasattr(leaf, "dtype") and np.issubdtype(np.dtype(leaf.dtype), np.floating)) or _low_precision(leaf)


def _low_precision(leaf: Any) -> bool:
    return getattr(getattr(leaf, "dtype", None), "name", "") == "bfloat16"


def cast(tree: Any, dtype: str, *, keep_low: bool = False) -> Any:
    """Copy a pytree, with every floating-point leaf cast to `dtype`, or kept if it has fewer bits than float32."""
    import jax
    import jax.numpy as jnp

    def cast(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.array(leaf) if hasattr(leaf, "dtype") else leaf
        if keep_low and jnp.finfo(leaf.dtype).bits < BITS_OF_FLOAT32:
            return jnp.array(leaf)
        return jax.device_put(np.asarray(leaf, np.float64).astype(dtype))  # NumPy's cast compiles nothing

    return jax.tree.map(cast, tree)


def of_nnx(model: Any, dtype: str, training: bool, *, keep_modes: bool = False) -> Functional:
    """Make a pure function of a copy of an `nnx.Module`, in the given mode.

    Where some modules are in training and others in evaluation, the user has set them so, and in training each keeps
    its own; `keep_modes` keeps them in any case.
    """
    import jax
    from flax import nnx

    copied = nnx.clone(model)
    nnx.pop(copied, nnx.Intermediate)  # what was sown before is no state of the model
    if not keep_modes and not (training and mixed(_modes(copied))):
        copied.train() if training else copied.eval()
    if dtype == "float64":
        lift_nnx(copied)
    tell_paths({"": copied})
    graph, *states = nnx.split(copied, nnx.Param, _is_random, ...)
    params, rngs, buffers = states
    kept = {path for path, _ in nnx.to_flat_state(buffers)}
    called = functools.partial(type(model).__call__, None)

    @passes_on
    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any) -> Any:
        # nnx refuses to change a variable at another trace level than that of its creation. New leaves belong to this
        # one.
        rngs, buffers = jax.tree.map(lambda leaf: leaf, (rngs, buffers))
        merged = nnx.merge(graph, params, rngs, buffers)
        output = merged(*args, **with_mode(called, args, kwargs, training))
        _, *states = nnx.split(merged, _is_random, nnx.Param, ...)
        # A step must return a state of the structure that it was given. Values that the model sows would extend it.
        after = [(path, value) for path, value in nnx.to_flat_state(states[2]) if path in kept]
        return output, nnx.from_flat_state(after), states[0]

    return Functional(cast(params, dtype, keep_low=dtype == "float32"), cast(buffers, dtype), rngs, apply, called)


def _is_random(_: Any, variable: Any) -> bool:
    """Return whether a variable belongs to random numbers: those of `nnx.Rngs`, and a key that the user keeps."""
    import jax
    from flax import nnx

    dtypes = [leaf.dtype for leaf in jax.tree.leaves(variable) if hasattr(leaf, "dtype")]
    return isinstance(variable, nnx.RngState) or any(jax.numpy.issubdtype(each, jax.dtypes.prng_key) for each in dtypes)


def _modes(model: Any) -> list[bool]:
    """List the modes of the modules of an nnx model that have one: True for training."""
    from flax import nnx

    settings = [vars(module) for _, module in nnx.iter_modules(model)]
    names = ("deterministic", "use_running_average")
    return [not each[name] for each in settings for name in names if isinstance(each.get(name), bool)]


def of_linen(model: tuple[Any, Mapping[str, Any]], dtype: str, training: bool) -> Functional:
    """Make a pure function of a Linen module and its variables, in the given mode."""
    import jax

    module, variables = model
    module = module.clone(**attributes_of_mode(module, training))
    params = variables["params"]
    buffers = {name: tree for name, tree in variables.items() if name != "params" and not _sown(tree)}
    found: list[dict[str, Any]] = []

    @passes_on
    def run(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any) -> Any:
        # A new key for each step, as a training loop makes one. Which numbers it gives does not matter:
        # torch's are replayed. Flax draws from "params" for every other name that a module gives to `make_rng`.
        step = jax.random.fold_in(rngs["key"], rngs["count"])
        keys = {"dropout": step, "params": jax.random.fold_in(step, 1)}
        return module.apply({"params": params, **buffers}, *args, rngs=keys, mutable=list(buffers), **kwargs)

    @passes_on
    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any) -> Any:
        @passes_on
        def effect(kwargs: dict[str, Any]) -> int:
            return _effect(functools.partial(run, params, args=args, kwargs=kwargs), buffers, rngs)

        named = with_mode(module.__call__, args, kwargs, training)
        if not found:
            found.append({} if named != kwargs else by_effect(module.__call__, args, kwargs, training, effect))
        output, changed = run(params, buffers, rngs, args, {**named, **found[0]})
        return output, {**buffers, **_alike(changed, buffers)}, rngs | {"count": rngs["count"] + 1}

    rngs = {"key": jax.random.key(0), "count": np.int32(0)}
    return Functional(
        cast(params, dtype, keep_low=dtype == "float32"),
        cast(buffers, dtype),
        rngs,
        apply,
        module.__call__,
        collections=True,
    )


def _sown(collection: Any) -> bool:
    """Return whether a collection of Linen's is what a model sowed when it was initialized: tuples of values."""
    import jax

    leaves = jax.tree.leaves(collection, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return any(isinstance(leaf, tuple) for leaf in leaves)


def _alike(changed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collections that have the same structure as before: what a model sows makes a collection longer."""
    import jax

    def alike(one: Any, other: Any) -> bool:
        return str(jax.tree.structure(one)) == str(jax.tree.structure(other))

    return {name: tree for name, tree in changed.items() if alike(tree, before[name])}


@passes_on
def _effect(run: Callable[..., Any], buffers: Any, rngs: Any) -> int:
    """Count what a Linen model updates and draws: running statistics that it sets, and random numbers."""
    import jax

    def drawn(program: Any) -> int:
        equations = Program.of(program).equations
        inner = sum(drawn(nested) for eqn in equations for nested in programs(eqn))
        return inner + sum(eqn.primitive.name in BITS for eqn in equations)

    updated: list[int] = []

    @passes_on
    def traced() -> Any:
        output, changed = run(buffers=buffers, rngs=rngs)
        before = {id(leaf) for leaf in jax.tree.leaves(buffers)}
        updated.append(sum(id(leaf) not in before for leaf in jax.tree.leaves(changed)))
        return jax.tree.leaves((output, changed))

    program = jax.make_jaxpr(traced)()
    return updated[0] + drawn(program)


def of_pytree(function: Callable[..., Any], params: Any, dtype: str, training: bool, state: Any = None) -> Functional:
    """Make a function of a pytree one of its floating-point arrays alone, in the given mode.

    With a state it is `function(params, state, *inputs)`, and gives the output and a new state. The state's arrays are
    the buffers, by name, and its random keys the generators.
    """
    import jax

    kept = StateArrays(params, state)

    flat, structure = jax.tree.flatten(params)
    trained = [_floating(leaf) for leaf in flat]
    fixed = [None if is_trained else leaf for leaf, is_trained in zip(flat, trained, strict=True)]
    called = functools.partial(function, *([params] if state is None else [params, state]))

    @passes_on
    def apply(params: Any, buffers: Any, rngs: Any, args: Any, kwargs: Any) -> Any:
        values = iter(jax.tree.leaves(params))
        whole = [next(values) if is_trained else leaf for leaf, is_trained in zip(fixed, trained, strict=True)]
        kwargs = with_mode(called, args, kwargs, training)
        whole = jax.tree.unflatten(structure, whole)
        if state is None:
            return function(whole, *args, **kwargs), buffers, rngs
        # The state is no output of the model: it is compared as buffers.
        output, after = kept.checked(function(whole, kept.filled(buffers, rngs), *args, **kwargs))
        return output, *kept.arrays(after)

    chosen = [leaf if is_trained else None for leaf, is_trained in zip(flat, trained, strict=True)]
    params = cast(jax.tree.unflatten(structure, chosen), dtype, keep_low=dtype == "float32")
    if state is None:
        return Functional(params, (), (), apply, called)
    buffers, keys = kept.arrays(state)
    return Functional(params, cast(buffers, dtype), keys, apply, called)
