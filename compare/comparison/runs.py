"""The runs of one mapped pair: both sides in both precisions, and runs that rounding has moved."""

import copy
import functools
from collections.abc import Callable, Mapping

from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment
from compare.comparison.elsewhere import moved_inputs
from compare.comparison.mapped_pair import MappedPair
from compare.comparison.steps import JaxSteps, Stepper
from compare.comparison.tables import Tables, rounded_arrays
from compare.jax_side.inquiries import named_constants
from compare.jax_side.run import JaxRun
from compare.step.observation import Observation
from compare.torch_side.run import TorchRun
from compare.verdict.following import Followed, Streams, weigh_float32, weigh_noise, weigh_spread32, weigh_tables

IN_PAIRS = 16_000_000
"""Number of parameters from which on memory is scarcer than time."""

_MOVED = 2
"""How often each side is moved. With one random direction, the effect can be twenty times too small by accident."""


class Runs:
    """Starts runs of a pair, which all take the same steps.

    Args:
        pair: Both sides.
        torch_run: Starts a run of the torch side in a precision; the pair's own runs by default.

    """

    def __init__(self, pair: MappedPair, torch_run: Callable[[str], TorchRun] | None = None) -> None:
        self.pair = pair
        self.torch_run = torch_run or pair.torch_run
        self.stepper = Stepper(pair.batches, pair.size)
        self._settings: Mapping[str, Settings] = {}

    @property
    def in_pairs(self) -> bool:
        """Whether only two runs at a time fit in memory."""
        return self.pair.size >= IN_PAIRS

    def streams(self, jax64: JaxRun, jax32: Callable[[], JaxSteps]) -> Streams:
        """Start the runs of both sides: each is there with its first step, and the compiled one begins afresh."""

        def torch64() -> TorchRun:
            run = self.torch_run("float64")
            self._settings = run.settings()
            return run

        def jax64_afresh() -> JaxRun:
            self.pair.load(jax64)
            return jax64

        return Streams(
            lambda: self.stepper.torch(lambda: self.torch_run("float32")),
            lambda: self.stepper.torch(torch64),
            lambda: self.stepper.jax(jax64_afresh),
            lambda: self.stepper.jax(jax32),
        )

    def align(self, torch: Observation, jax: Observation) -> Alignment:
        """Pair everything that a step of both sides shows."""
        return self.pair.align(torch, jax, self._settings)

    def weigh_noise(self, followed: Followed, jax: JaxRun) -> None:
        """Measure what rounding does to each side, beside a run that is not moved; `jax` is compiled already."""

        def torch_moved(draw: int) -> TorchRun:
            run = self.torch_run("float64")
            if draw:
                run.perturb(draw)
            return run

        def jax_moved(draw: int) -> JaxRun:
            run = copy.copy(jax)
            self.pair.load(run)
            if draw:
                run.perturb(draw)
            return run

        draws = range(_MOVED + 1)
        weigh_noise(followed, [self.stepper.torch(functools.partial(torch_moved, draw)) for draw in draws], "torch")
        weigh_noise(followed, [self.stepper.jax(functools.partial(jax_moved, draw)) for draw in draws], "jax")

    def weigh_tables(self, followed: Followed, jax: JaxRun) -> Tables:
        """Measure what the float32 rounding of each side's tables does; `jax` is compiled already."""
        pair, linked = self.pair, ({link.torch for link in self.pair.links}, {link.jax for link in self.pair.links})
        ours = rounded_arrays(pair.torch_run("float64").buffers(), linked[0])
        theirs = rounded_arrays({name: jax.arrays()[name] for name in jax.buffer_names}, linked[1])

        def torch_moved(draw: int) -> TorchRun:
            run = self.torch_run("float64")
            run.move_tables(draw, ours)
            return run

        def jax_moved(draw: int) -> JaxRun:
            run = copy.copy(jax)
            self.pair.load(run)
            run.move_tables(draw, theirs)
            return run

        draws = range(_MOVED + 1)
        tables = Tables(
            [*ours.values(), *self.stepper.constants], [*theirs.values(), *named_constants(jax, pair.batches[0])]
        )
        if tables.torch:
            weigh_tables(followed, [self.stepper.torch(functools.partial(torch_moved, d)) for d in draws], "torch")
        if tables.jax:
            weigh_tables(followed, [self.stepper.jax(functools.partial(jax_moved, d)) for d in draws], "jax")
        return tables

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
        for draw in range(_MOVED + 1):
            stepper = copy.copy(self.stepper)
            stepper.batches = [moved_inputs(batch, draw, lowest) for batch in self.pair.batches]
            streams.append(stepper.jax(functools.partial(moved, draw)))
        weigh_spread32(followed, streams, lowest)

    def weigh_float32(self, followed: Followed) -> None:
        """Compare both sides in float32."""
        torch32 = self.stepper.torch(lambda: self.torch_run("float32"))
        weigh_float32(followed, torch32, self.stepper.jax(lambda: self.pair.jax_run("float32")))
