"""Reads the random key and the parameters of each draw of the JAX side.

Equal keys give equal draws, so a key that is used twice, where torch draws twice, is a bug. A replay of torch's draws
does not use the keys and cannot show it. Nor does it show another probability of a mask, since the mask is torch's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from compare.jax_side.draw_matching import match
from compare.jax_side.draw_programs import Categories, keys_of, parameters
from compare.jax_side.jaxpr import Interpreter
from compare.jax_side.primitives import KINDS, Cond, Kind, Scan, bind
from compare.jax_side.replay import (
    Replayer,
    Values,
    drawn,
    drawn_kind,
    laid_out,
    recognizable,
    sites_of,
    sites_of_values,
)
from compare.step.draws import Hints, Site


class SiteRead(NamedTuple):
    """What a draw of the JAX side is made with."""

    key: Any
    """The numbers of its key, of shape `(..., words)`: a draw under `vmap` has several keys."""
    parameters: tuple[Any, ...]
    """As `Draw.parameters`, each of the shape of what is drawn."""
    made: Any = True
    """Whether the draw is made at all: in a branch that is not taken it is not."""


class StepKeys(NamedTuple):
    """The keys and parameters that a step draws with."""

    sites: list[Site]
    """Where it draws, in order of execution."""
    reads: list[SiteRead | None]
    """What each is made with; None where it is out of reach."""
    from_batch: bool
    """Whether the keys are those that the batch brings: the same batch has the same keys again."""


def reading_keys(
    function: Callable[..., Any], values: Values, sites: list[Site], hints: Hints
) -> Callable[..., list[SiteRead | None]]:
    """Make a function that takes what `function` takes and gives what each of its draws is made with.

    Compiled, it computes nothing else: XLA leaves out all that is not needed.

    Args:
        function: A function of pytrees of arrays.
        values: What torch drew: a probability may follow from what was drawn before.
        sites: Where it draws is added here when it is traced.
        hints: What is known of the layouts of draws.

    """
    import jax

    @functools.wraps(function)
    def read(*args: Any) -> list[SiteRead | None]:
        with recognizable():
            closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
        sites[:] = sites_of(closed)
        reader = KeyReader()
        given = laid_out(values, match(sites_of_values(values), sites, hints), hints)
        reader.run(closed, jax.tree.leaves(args), given)
        return reader.shown

    return read


class KeyReader(Replayer):
    """Replays torch's draws, and shows what each draw is made with, in order; None for what is out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self._categories = Categories()

    def equation(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Evaluate an operation, and show what it draws with."""
        import jax

        if not (own := list(drawn(eqn))):
            outputs = bind(eqn, args)
            if (chosen := self._categories.chosen(eqn, args, outputs)) is not None:
                number, probabilities = chosen
                self.shown[number] = self.shown[number]._replace(parameters=(probabilities,))
            return outputs
        if (kind := drawn_kind(eqn)) is not None and kind != "bits":
            self.shown.append(SiteRead(jax.random.key_data(args[keys_of(eqn)[0]]), parameters(kind, eqn, args)))
            outputs = super().equation(eqn, args, given)
            if kind == "gumbel":
                self._categories.drawn(len(self.shown) - 1, outputs[0])
            return outputs
        known = KINDS.get(eqn.primitive.name)
        of_a_choice = known == Kind.COND and Cond.of(eqn).platforms is None
        if of_a_choice or known in (Kind.CALL, Kind.CHECKPOINT, Kind.SCAN):
            return Interpreter.equation(self, eqn, args, given)
        # Inside a while loop, or a branch for one platform: how often it draws is not known before it runs.
        self.shown += [None] * len(own)
        return bind(eqn, args)

    def checkpoint(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Run the program of a checkpoint in place: nothing is differentiated here."""
        return Interpreter.checkpoint(self, eqn, args, given)

    def enclosed(self, program: Any, args: Sequence[Any], given: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
        """Run a program within a transformation of JAX's; what is shown there is numbered anew."""
        outside, self._categories = self._categories, Categories()
        try:
            return super().enclosed(program, args, given)
        finally:
            self._categories = outside

    def scan(self, eqn: Any, args: list[Any], given: Sequence[Any]) -> list[Any]:
        """Rebuild a scan, and return the keys that its iterations draw with, one after another."""
        import jax

        with self._aside() as shown:
            outputs = super().scan(eqn, args, given)
        loop = Scan.of(eqn)
        # The scan has stacked the keys by index; iterations of a reversed scan run from the last index to the
        # first.
        order = range(loop.length)[:: -1 if loop.reverse else 1]
        each = [(i, read) for i in order for read in shown]
        self.shown += [jax.tree.map(lambda array, i=i: array[i], read) for i, read in each]
        return outputs
