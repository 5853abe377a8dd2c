"""The runs of one pair of models: see `common_runs`."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

from compare.comparison.common_runs import MOVED, CommonRuns
from compare.comparison.elsewhere import moved_inputs
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.readings import without_undone_outputs
from compare.comparison.tables import rounded_arrays
from compare.jax_side.inquiries import named_constants
from compare.jax_side.run import JaxRun
from compare.torch_side.run import TorchRun
from compare.verdict.following import Followed, weigh_spread32


class Runs(CommonRuns):
    """Starts runs of a pair of models."""

    pair: MappedPair
    torch_run: Callable[[str], TorchRun]

    def read(self, followed: Followed) -> Followed:
        """Leave out what the model gives where the loss makes up for it."""
        return without_undone_outputs(followed)

    def jax_tables(self, jax: JaxRun) -> tuple[Mapping[str, str], Sequence[str]]:
        """Describe the buffers that the JAX side holds in float32, by name, and the constants of its program."""
        buffers = {name: jax.arrays()[name] for name in jax.buffer_names}
        theirs = rounded_arrays(buffers, {link.jax for link in self.pair.links})
        return theirs, named_constants(jax, self.pair.batches[0])

    def weigh_spread32(self, followed: Followed, jax32: JaxRun, lowest: float) -> None:
        """Measure what rounding does to the JAX side's float32 program; `jax32` is compiled already.

        `lowest` is the machine epsilon of the lowest precision in it, by which weights and inputs are moved.
        """

        def moved(draw: int) -> JaxRun:
            run = copy.copy(jax32)
            self.pair.load(run)
            if draw:
                run.perturb(draw, lowest)
            return run

        streams = []
        for draw in range(MOVED + 1):
            stepper = copy.copy(self.stepper)
            stepper.batches = [moved_inputs(batch, draw, lowest) for batch in self.pair.batches]
            streams.append(stepper.jax(functools.partial(moved, draw)))
        weigh_spread32(followed, streams, lowest)
