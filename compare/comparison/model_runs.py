"""The runs of one pair of models: see `common_runs`."""

import functools
from collections.abc import Callable, Mapping, Sequence

from compare.comparison.common_runs import CommonRuns
from compare.comparison.model_pair import ModelPair
from compare.comparison.readings import without_undone_outputs
from compare.comparison.tables import rounded_arrays
from compare.jax_side.run import JaxRun
from compare.torch_side.control import ControlledRun
from compare.torch_side.run import TorchRun
from compare.verdict.following import Followed


class ModelRuns(CommonRuns):
    """Starts runs of a pair of models."""

    pair: ModelPair
    torch_run: Callable[[str], TorchRun]

    def read(self, followed: Followed) -> Followed:
        """Leave out an output of the model that differs if the loss, gradients and updates agree."""
        return without_undone_outputs(followed, lambda: self.read_by_loss)

    @functools.cached_property
    def read_by_loss(self) -> frozenset[str]:
        """The outputs of torch's model that its loss reads in any of the first steps, by name."""
        found = set[str]()
        for batch, draws in zip(self.pair.batches[:_ASKED], self.stepper.draws, strict=False):
            run = self.torch_run("float64")  # outside: the copy of a model is no part of its step
            with ControlledRun(lift=True, replay=draws):
                found |= run.read_by_loss(batch)
        return frozenset(found)

    def jax_tables(self, jax: JaxRun) -> tuple[Mapping[str, str], Sequence[str]]:
        """Describe the buffers that the JAX side holds in float32, by name, and the constants of its program."""
        buffers = {name: jax.arrays()[name] for name in jax.buffer_names}
        theirs = rounded_arrays(buffers, {link.jax for link in self.pair.links})
        return theirs, jax.named_constants()


_ASKED = 3
"""Steps at which the loss is asked what it reads: a mask or a bound may leave an output out at one of them."""
