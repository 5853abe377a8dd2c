"""Reads the random key of each draw of the JAX side.

Equal keys give equal draws, so a key that is used twice, where torch draws twice, is a bug. A replay of torch's draws
does not use the keys and cannot show it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import KINDS, Kind, Scan, bind
from compare.jax_side.replay import drawn, drawn_kind, recognizable, sites_of
from compare.step.draws import Site


class StepKeys(NamedTuple):
    """The keys that a step uses."""

    sites: list[Site]
    """Where it draws, in order of execution."""
    keys: list[np.ndarray | None]
    """The numbers of each one's key, of shape `(..., words)`: a draw under `vmap` has several keys; None if unknown."""
    from_batch: bool
    """Whether the keys are those that the batch brings: the same batch has the same keys again."""


def reading_keys(function: Callable[..., Any], sites: list[Site]) -> Callable[..., list[Any]]:
    """Make a function that takes what `function` takes and gives the key of each of its draws.

    Compiled, it computes nothing but keys: XLA leaves out all that they do not need.

    Args:
        function: A function of pytrees of arrays.
        sites: Where it draws is added here when it is traced.

    """
    import jax

    @functools.wraps(function)
    def read(*args: Any) -> list[Any]:
        with recognizable():
            closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
        sites[:] = sites_of(closed)
        reader = KeyReader()
        reader.run(closed, jax.tree.leaves(args))
        return reader.shown

    return read


class KeyReader(Interpreter):
    """Runs a traced program and shows the key of each draw, in order; None for a key that is out of reach."""

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation, and show the keys that it draws with."""
        import jax

        if not (own := list(drawn(eqn))):
            return bind(eqn, args)
        if (kind := drawn_kind(eqn)) is not None and kind != "bits":
            self.shown.append(jax.random.key_data(args[0]))
            return bind(eqn, args)
        if KINDS.get(eqn.primitive.name) in (Kind.CALL, Kind.CHECKPOINT, Kind.SCAN):
            return super().equation(eqn, args, given)
        # Inside a while loop or a branch: how often it draws is not known before it runs.
        self.shown += [None] * len(own)
        return bind(eqn, args)

    def scan(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Build a scan anew, and show the keys of its iterations one after another."""
        before, self.shown = self.shown, []
        outputs = super().scan(eqn, args, given)
        loop = Scan.of(eqn)
        # The scan has stacked the keys by index; iterations of a reversed scan run from the last index to the
        # first.
        order = range(loop.length)[:: -1 if loop.reverse else 1]
        self.shown = before + [None if keys is None else keys[i] for i in order for keys in self.shown]
        return outputs
