"""Replays torch's random numbers on the JAX side, so that a step in train mode can be compared as it runs.

A traced program shows each call of `jax.random.bernoulli`, however the user's code refers to it and whatever jit,
vmap, scan or checkpoint it is inside, as one operation whose result can be replaced.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from compare.jax_side.draw_matching import Matching, match
from compare.jax_side.draw_programs import keys_of, obstacle, standing_in
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.lines import line
from compare.jax_side.primitives import (
    BITS,
    JIT,
    KINDS,
    Cond,
    Kind,
    Program,
    Scan,
    bind,
    called,
    checkpoint_options,
    in_logarithms,
    programs,
)
from compare.jax_side.recomputed import again, is_again
from compare.step.draws import NO_HINTS, Draw, Hints, Site
from compare.step.host_draws import Given, drawing
from compare.step.user_code import passes_on

Values = tuple[dict[str, tuple[np.ndarray, ...]], ...]
"""Draws as a pytree of arrays, the compiled step's argument: what was drawn and its parameters, under its kind."""


def replayable(draws: Sequence[Draw], dtype: str) -> Values:
    """Give the draws that the JAX side repeats: not those of torch's checkpoints, where JAX computes its own again."""

    def cast(value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array.astype(dtype) if array.dtype.kind == "f" else array

    return tuple({draw.kind: tuple(map(cast, (draw.value, *draw.parameters)))} for draw in draws if not draw.backward)


def sites_of_values(values: Values) -> list[Site]:
    """List kind and shape of torch's draws."""
    return [Site(kind, tuple(value.shape)) for item in values for kind, (value, *_) in item.items()]


def laid_out(values: Values, matching: Matching, hints: Hints) -> list[Any]:
    """Give torch's draw for each place where the JAX side draws, laid out as there; None where it has none."""
    drawn = [each for item in values for each in item.items()]
    given = _composed(drawn) if hints.composed else [value for _, value in drawn]
    return [None if found is None else found.of(*given[found.draw]) for found in matching.placed]


def _composed(drawn: Sequence[tuple[str, tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """Give each order after the first as what all orders of so many things make together."""
    latest: dict[int, Any] = {}
    found = []
    for kind, (value, *parameters) in drawn:
        order = kind == "randperm"
        if order:
            # Shuffling x by p and then by q gives x[p][q], which is x[p[q]].
            latest[len(value)] = latest[len(value)][value] if len(value) in latest else value
        found.append((latest[len(value)] if order else value, *parameters))
    return found


def replaying(
    function: Callable[..., Any],
    values: Values,
    unreplayed: list[str],
    guessed: list[str],
    hints: Hints = NO_HINTS,
    programs: list[tuple[Any, Any]] | None = None,
    host: Given | None = None,
) -> Callable[..., Any]:
    """Make `function` use `values` for its random numbers, in the order in which both sides draw.

    Scales, means and where a range begins stay those of the function, so that a wrong one shows. What is given of
    booleans and integers is the same whatever their probability or number is: see `comparison.draw_parameters`. It is
    for a function that is to be differentiated, and not for one that has been: the backward pass of a checkpoint draws
    again.

    >>> import jax
    >>> values = ({"bernoulli": (np.array([True, False, True]),)},)
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
        programs: When `function` is traced, its own program and the shapes of what it gives are added here.
        host: What NumPy and Python give when `function` is traced.

    """
    import jax

    @functools.wraps(function)
    def replayed(*args: Any) -> Any:
        def fresh(*args: Any) -> Any:  # JAX caches traces by function: a new one is traced again
            return function(*args)

        with recognizable(), drawing(host) if host else contextlib.nullcontext():
            closed, shape = jax.make_jaxpr(fresh, return_shape=True)(*args)
        if programs is not None:
            programs.append((closed, shape))
        known = hints._replace(given=frozenset(host.taken)) if host else hints
        matching = match(sites_of_values(values), sites_of(closed), known)
        unreplayed.extend(matching.unreplayed)
        guessed.extend(matching.guessed)
        leaves = laid_out(values, matching, hints)
        try:
            outputs = Replayer().run(closed, jax.tree.leaves(args), leaves)
        except Exception:
            fresh(*args)  # if the user's own function raises too, as what cannot be differentiated does, it has a line
            raise
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
    "permutation": lambda random, key: random.permutation(key, 2),
    "gamma": lambda random, key: random.gamma(key, 2.0),
    "beta": lambda random, key: random.beta(key, 2.0, 2.0),
    "dirichlet": lambda random, key: random.dirichlet(key, np.ones(2, np.float32)),
    "poisson": lambda random, key: random.poisson(key, 2.0),
}


@functools.cache
def _names() -> dict[str, str]:
    """The kinds, by the names of their functions in a trace, which JAX does not document: they are read from one.

    A function that some version of JAX does not compile by itself, such as `beta` in 0.8.1, has no name there.
    """
    import jax

    names = {}
    for kind, sample in _SAMPLES.items():
        with jax.disable_jit(disable=False):
            traced = jax.make_jaxpr(functools.partial(sample, jax.random))(jax.random.key(0))
        last = Program.of(traced).equations[-1]
        if last.primitive.name == JIT:
            names[last.params["name"]] = kind
    return names


@contextlib.contextmanager
def recognizable() -> Iterator[None]:
    """Under `jax.disable_jit`, which would take `jax.random` to pieces as well, keep its functions whole."""
    from unittest import mock

    import jax

    settings: Any = jax.config
    if not settings.jax_disable_jit:
        yield
        return

    def whole(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        @passes_on
        def call(*args: Any, **kwargs: Any) -> Any:
            with jax.disable_jit(disable=False):
                return original(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name in _drawing():
            stack.enter_context(mock.patch.object(jax.random, name, whole(getattr(jax.random, name))))
        yield


@functools.cache
def _drawing() -> list[str]:
    """List the functions of `jax.random` that take a key."""
    import jax

    found = {name: getattr(jax.random, name) for name in dir(jax.random) if not name.startswith("_")}
    return [name for name, each in found.items() if inspect.isfunction(each) and _takes_a_key(each)]


def _takes_a_key(function: Callable[..., Any]) -> bool:
    return "key" in inspect.signature(function).parameters


class Replayer(Interpreter):
    """Runs a traced program with recorded draws in the place of its own; its places are where it draws."""

    def places(self, eqn: Any) -> int:
        """Count where an operation draws, in all iterations."""
        return sum(1 for _ in drawn(eqn))

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation; one without recorded draws as it is, with its custom derivatives."""
        # Nothing inside is replaced. Bound as it is, custom_jvp and custom_vjp keep their derivative rules,
        # which running the program inside would lose: the function is yet to be differentiated.
        if all(draw is None for draw in given):
            return bind(eqn, args)
        if kind := drawn_kind(eqn):
            return standing_in(kind, given[0], eqn, args)
        return super().equation(eqn, args, given)

    def checkpoint(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a checkpoint: it may not have been differentiated yet."""
        import jax

        # The recorded draws are arguments, so that the recomputation in the backward pass has the same ones.
        run = jax.checkpoint(functools.partial(self.enclosed, called(eqn)), **checkpoint_options(eqn))
        outputs, shown = again(run)(args, given) if is_again(eqn) else run(args, given)
        self.shown += shown
        return outputs


def drawn_kind(eqn: Any) -> str | None:
    """Tell what kind of random numbers an operation draws, or None if it does not draw."""
    if eqn.primitive.name in BITS:
        return "bits"
    if eqn.primitive.name != JIT or (kind := _names().get(eqn.params["name"])) is None:
        return None
    if kind == "gamma" and in_logarithms(called(eqn)):
        kind = "loggamma"
    # What JAX computes before a loop for the draws in it has their name, but neither a key nor random bits.
    return kind if keys_of(eqn) else None


def sites_of(program: Any) -> list[Site]:
    """List where a program draws, in order of execution."""
    parts = Program.of(program)
    used = {id(eqn) for eqn in parts.used()}
    return [
        site._replace(
            unused=site.unused or id(eqn) not in used,
            branches=tuple(((number, *place), branch) for place, branch in site.branches),
        )
        for number, eqn in enumerate(parts.equations)
        for site in drawn(eqn)
    ]


def drawn(eqn: Any) -> Iterator[Site]:
    """List where an operation draws."""
    if (kind := drawn_kind(eqn)) is not None:
        why = "it is not known what these random bits are used for" if kind == "bits" else obstacle(kind, eqn)
        yield Site(kind, tuple(eqn.outvars[0].aval.shape), why, line(eqn))
        return
    name = eqn.primitive.name
    inner = [
        site._replace(branches=(((), number), *site.branches)) if KINDS.get(name) == Kind.COND else site
        for number, program in enumerate(programs(eqn))
        for site in sites_of(program)
    ]
    if (known := KINDS.get(name)) == Kind.SCAN:
        # Its turns may take other branches, and what takes the place of a draw is for all turns or for none.
        why = "it is inside cond within scan"
        inner = [site._replace(obstacle=why) if site.branches else site for site in inner] * Scan.of(eqn).length
    elif name != JIT and known != Kind.CHECKPOINT and not (known == Kind.COND and Cond.of(eqn).platforms is None):
        # For example, the number of draws in a while loop is not known before it runs. Inside a function with a custom
        # derivative, a draw could only be replaced by running the function's program, which loses the derivative rule.
        inner = [site._replace(obstacle=f"it is inside {name}") for site in inner]
    yield from inner
