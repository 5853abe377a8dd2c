"""Finds draws of the JAX side that have no effect, such as those of a dropout with rate 0."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from compare.jax_side.draw_matching import match
from compare.jax_side.draw_programs import keys_of
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import KINDS, Kind, bind
from compare.jax_side.replay import (
    Replayer,
    Values,
    drawn_kind,
    laid_out,
    recognizable,
    sites_of,
    sites_of_values,
)
from compare.step.draws import Hints, Site


def reseeding(
    function: Callable[..., Any], values: Values, hints: Hints, seed: Any, alone: list[Site] | None = None
) -> Callable[..., Any]:
    """Make `function` use `values` for its random numbers, and draw those without a partner again.

    Args:
        function: A function of pytrees of arrays that gives such a pytree.
        values: What torch drew.
        hints: What is known of the layouts of draws.
        seed: Selects which random numbers are drawn again.
        alone: When `function` is traced, the draws without a partner are added here.

    """
    import jax

    @functools.wraps(function)
    def reseeded(*args: Any) -> Any:
        with recognizable():
            closed, shape = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
        sites = sites_of(closed)
        found = match(sites_of_values(values), sites, hints)
        if alone is not None:
            # A draw in a branch may be one that torch makes at another step, when the branch is taken.
            pairs = zip(sites, found.placed, strict=True)
            alone[:] = [site for site, each in pairs if each is None and not site.branches]
        outputs = Reseeder(seed).run(closed, jax.tree.leaves(args), laid_out(values, found, hints))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return reseeded


class Reseeder(Replayer):
    """Runs a traced program with recorded draws, and draws what has none with other keys than its own."""

    def __init__(self, seed: Any) -> None:
        super().__init__()
        self._seed = seed

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation, with another key where it draws by itself."""
        kind = drawn_kind(eqn)
        if kind not in (None, "bits") and given[0] is None:
            keys = keys_of(eqn)
            return bind(eqn, [_folded(arg, self._seed) if i in keys else arg for i, arg in enumerate(args)])
        inside = KINDS.get(eqn.primitive.name) in (Kind.CALL, Kind.CHECKPOINT, Kind.SCAN, Kind.COND)
        if kind is None and inside and any(draw is None for draw in given):
            return Interpreter.equation(self, eqn, args, given)
        return super().equation(eqn, args, given)


def _folded(keys: Any, seed: Any) -> Any:
    import jax

    # fold_in takes one key; a draw under vmap has an array of them.
    fold = jax.vmap(lambda key: jax.random.fold_in(key, seed))
    return fold(keys.reshape(-1)).reshape(keys.shape)
