"""Torch's random numbers in the place of JAX's, so that a step in train mode can be compared as it will run.

A traced program shows each call of `jax.random.bernoulli`, however the user's code refers to it and whatever jit,
vmap, scan or checkpoint it is inside, as one operation whose result can be replaced.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from compare.jax_side.draw_matching import match
from compare.step.draws import NO_HINTS, Draw, Hints, Site

Values = tuple[dict[str, np.ndarray], ...]
"""Draws as a pytree of arrays, each under its kind: the compiled step's argument."""


def replayable(draws: Sequence[Draw], dtype: str) -> Values:
    """Give the draws that the JAX side repeats: not those of torch's checkpoints, where JAX computes its own again."""
    values = ((draw.kind, draw.value) for draw in draws if not draw.backward)
    return tuple({kind: value.astype(dtype) if value.dtype.kind == "f" else value} for kind, value in values)


def replaying(
    function: Callable[..., Any], values: Values, unreplayed: list[str], guessed: list[str], hints: Hints = NO_HINTS
) -> Callable[..., Any]:
    """Make `function` use `values` for its random numbers, in the order in which both sides draw.

    Keep probabilities, means and ranges stay those of the function, so that a wrong one shows. It is for a function
    that is to be differentiated, and not for one that has been: the backward pass of a checkpoint draws again.

    >>> import jax
    >>> values = ({"bernoulli": np.array([True, False, True])},)
    >>> unreplayed, guessed = [], []
    >>> def dropout(x):
    ...     return x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape) / 0.5
    >>> replaying(dropout, values, unreplayed, guessed)(np.ones(3, np.float32)).tolist(), unreplayed
    ([2.0, 0.0, 2.0], [])

    Args:
        function: A function of pytrees of arrays that gives such a pytree.
        values: What `replayable` gives, or tracers of that.
        unreplayed: When `function` is traced, each random number without a partner is added here, with the reason. Only
            if it stays empty do both sides draw the same.
        guessed: Each draw whose layout is ambiguous is added here, as between channels first and channels last where
            all axes are equally long.
        hints: What is known of the layouts.

    """
    import jax

    @functools.wraps(function)
    def replayed(*args: Any) -> Any:
        def fresh(*args: Any) -> Any:
            """JAX remembers traces by function: this one is to be found by nobody else."""
            return function(*args)

        with _recognizable():
            closed, shape = jax.make_jaxpr(fresh, return_shape=True)(*args)
        draws = [Site(kind, tuple(value.shape)) for item in values for kind, value in item.items()]
        sites = list(_sites(closed.jaxpr))
        matching = match(draws, sites, hints)
        unreplayed.extend(matching.unreplayed)
        guessed.extend(matching.guessed)
        arrays = [value for item in values for value in item.values()]
        placed = [None if found is None else found[1](arrays[found[0]]) for found in matching.placed]
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), placed)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return replayed


_SAMPLES: dict[str, Callable[[Any, Any], Any]] = {
    # The kind, from the name in jax.random, and an example of a call.
    "bernoulli": lambda random, key: random.bernoulli(key, 0.5, (2,)),
    "uniform": lambda random, key: random.uniform(key, (2,)),
    "normal": lambda random, key: random.normal(key, (2,)),
    "exponential": lambda random, key: random.exponential(key, (2,)),
    "gumbel": lambda random, key: random.gumbel(key, (2,)),
    "randint": lambda random, key: random.randint(key, (2,), 0, 2),
}


@functools.cache
def _names() -> dict[str, str]:
    """The kinds, by the names that their functions have in a trace. JAX promises none of these, so it is asked."""
    import jax

    names = {}
    for kind, sample in _SAMPLES.items():
        with jax.disable_jit(disable=False):
            traced = jax.make_jaxpr(functools.partial(sample, jax.random))(jax.random.key(0))
        names[traced.jaxpr.eqns[-1].params["name"]] = kind
    return names


@contextlib.contextmanager
def _recognizable() -> Iterator[None]:
    """Under `jax.disable_jit`, which would take `jax.random` to pieces as well, keep its functions whole."""
    from unittest import mock

    import jax

    settings: Any = jax.config
    if not settings.jax_disable_jit:
        yield
        return

    def whole(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            with jax.disable_jit(disable=False):
                return original(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for kind in _SAMPLES:
            stack.enter_context(mock.patch.object(jax.random, kind, whole(getattr(jax.random, kind))))
        yield


def _kind(eqn: Any) -> str | None:
    """Tell what kind of random numbers an operation draws, or None if it does not draw."""
    import jax
    import jax.numpy as jnp

    if eqn.primitive.name in ("random_bits", "rng_bit_generator", "rng_uniform"):
        return "bits"
    if eqn.primitive.name not in _CALLS or (kind := _names().get(eqn.params["name"])) is None:
        return None
    return kind if jnp.issubdtype(eqn.invars[0].aval.dtype, jax.dtypes.prng_key) else None


_CALLS = frozenset({"jit", "pjit"})

_CHECKPOINTS = frozenset({"checkpoint", "remat", "remat2"})


def _sites(jaxpr: Any) -> Iterator[Site]:
    """List where a program draws, in order of execution."""
    from jax.extend.core import jaxprs_in_params

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if (kind := _kind(eqn)) is not None:
            obstacle = "of these random bits it is not known what they become" if kind == "bits" else ""
            yield Site(kind, tuple(eqn.outvars[0].aval.shape), obstacle)
            continue
        inner = [site for nested in jaxprs_in_params(eqn.params) for site in _sites(nested)]
        if name == "scan":
            inner = inner * eqn.params["length"]
        elif name not in _CALLS | _CHECKPOINTS:
            inner = [site._replace(obstacle=f"it is inside {name}") for site in inner]
        yield from inner


def _evaluate(jaxpr: Any, constants: Sequence[Any], args: Sequence[Any], draws: Sequence[Any]) -> list[Any]:
    """Run a program with an array, or None, for each of its sites."""
    import jax
    from jax.extend.core import Literal, jaxprs_in_params

    values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    position = 0
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        length = 1 if _kind(eqn) else sum(1 for nested in jaxprs_in_params(eqn.params) for _ in _sites(nested))
        count = length * eqn.params["length"] if eqn.primitive.name == "scan" else length
        taken, position = list(draws[position : position + count]), position + count
        if all(draw is None for draw in taken):
            outputs = _bind(eqn, inputs)
        elif kind := _kind(eqn):
            outputs = [_standing_in(kind, taken[0], inputs, eqn.outvars[0].aval.dtype)]
        elif eqn.primitive.name == "scan":
            outputs = _scan(eqn.params, inputs, taken)
        else:
            nested = eqn.params["jaxpr"]
            run: Callable[..., list[Any]] = functools.partial(_run, nested)
            if eqn.primitive.name in _CHECKPOINTS:
                run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
            outputs = run(inputs, taken)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run(program: Any, args: Sequence[Any], draws: Sequence[Any]) -> list[Any]:
    """Evaluate a `ClosedJaxpr` or a `Jaxpr` without constants."""
    return _evaluate(getattr(program, "jaxpr", program), getattr(program, "consts", ()), args, draws)


def _bind(eqn: Any, inputs: list[Any]) -> list[Any]:
    """Evaluate one operation as it is."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair before JAX 0.9
    outputs = eqn.primitive.bind(*functions, *inputs, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _scan(params: Any, inputs: list[Any], draws: list[Any]) -> list[Any]:
    """Run a loop that draws: each iteration gets its own draws."""
    import jax
    import jax.numpy as jnp

    split, carry, length = params["num_consts"], params["num_carry"], params["length"]
    fixed, start, sequences = inputs[:split], inputs[split : split + carry], inputs[split + carry :]
    each = len(draws) // length
    order = -1 if params["reverse"] else 1
    # Site j of the first iteration, of the second, ...: a sequence to scan over, if there is a draw for all of them.
    columns = [draws[j::each][::order] for j in range(each)]
    stacked = [None if any(draw is None for draw in column) else jnp.stack(column) for column in columns]

    def body(state: Any, item: Any) -> Any:
        values, taken = item
        outputs = _run(params["jaxpr"], [*fixed, *state, *values], taken)
        return outputs[:carry], outputs[carry:]

    state, collected = jax.lax.scan(
        body, start, (sequences, stacked), length, reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*state, *collected]


def _standing_in(kind: str, draw: Any, inputs: list[Any], dtype: Any) -> Any:
    """Do with a recorded draw what the function of `jax.random` does with its own."""
    import jax.numpy as jnp

    if kind == "uniform":
        _, low, high = inputs
        return low + (high - low) * draw.astype(dtype)
    if kind == "gumbel":
        return -jnp.log(draw.astype(dtype))
    return draw.astype(dtype)
