"""The runs of one comparison, of models or of programs: both sides in both precisions, and runs that rounding moved."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment
from compare.comparison.common_pair import CommonPair
from compare.comparison.later_steps import LaterSteps
from compare.comparison.steps import JaxSteps, Stepper
from compare.comparison.tables import Tables, rounded_arrays
from compare.step.observation import Observation
from compare.verdict.following import (
    Followed,
    Streams,
    follow,
    weigh_float32,
    weigh_noise,
    weigh_spread32,
    weigh_tables,
    weigh_torch32,
)

IN_PAIRS = 16_000_000
"""Number of parameters from which on memory is scarcer than time."""

MOVED = 2
"""How often each side is moved. With one random direction, the effect can be twenty times too small by accident."""

DIRECTIONS = 6
"""In how many directions each side is moved over all steps: in a single step, the effect of two on a scalar may both be
twenty times too small by accident."""


def _draws(steps: int) -> range:
    """Number the runs of a side, of which the first is not moved."""
    return range(max(MOVED, -(-DIRECTIONS // steps)) + 1)


def _moved(run: Any, draw: int) -> Any:
    if draw:
        run.perturb(draw)
    return run


class CommonRuns:
    """Starts runs of a pair, which all take the same steps.

    Args:
        pair: Both sides.
        torch_run: Starts a run of the torch side in a precision; the pair's own runs by default.

    """

    def __init__(self, pair: CommonPair, torch_run: Callable[[str], Any] | None = None) -> None:
        self.pair = pair
        self.torch_run: Callable[[str], Any] = torch_run or pair.torch_run
        self.stepper = Stepper(pair.batches, pair.size)
        self.later = LaterSteps()
        self._settings: Mapping[str, Settings] = {}

    @property
    def in_pairs(self) -> bool:
        """Whether only two runs at a time fit in memory."""
        return bool(self.pair.size >= IN_PAIRS)

    def follow(self, jax64: Any, jax32: Callable[[], JaxSteps], steps: int, progress: Callable[..., None]) -> Followed:
        """Take all four runs through the steps, and compare everything that they compute.

        They take the steps once more where later steps have shown what is to be paired.
        """

        def once() -> Followed:
            return follow(self.streams(jax64, jax32), self.align, steps, progress, in_pairs=self.in_pairs)

        followed = once()
        if self.later.any and not self.later.complete:
            self.later.complete = True
            followed = once()
        return self.so_far(followed)

    def streams(self, jax64: Any, jax32: Callable[[], JaxSteps]) -> Streams:
        """Start the runs of both sides, those in float64 watched for what later steps show."""

        def torch64() -> Any:
            run = self.torch_run("float64")
            self._settings = run.settings()
            return run

        return Streams(
            lambda: self.stepper.torch(lambda: self.torch_run("float32")),
            lambda: self.later.watched("torch", self.stepper.torch(torch64)),
            lambda: self.later.watched("jax", self.stepper.jax(lambda: self.again(jax64))),
            lambda: self.stepper.jax(jax32),
        )

    def again(self, jax: Any) -> Any:
        """Start a run of the JAX side again."""
        self.pair.load(jax)
        return jax

    def align(self, half: int, torch: Observation, jax: Observation) -> Alignment:
        """Pair everything that half a step of both sides shows, at the first step or at a later one."""
        torch, jax = self.later.added("torch", half, torch), self.later.added("jax", half, jax)
        found: Alignment = self.pair.align(torch, jax, self._settings)
        return found._replace(pairings=list(map(self.later.from_zero, found.pairings)))

    def read(self, followed: Followed) -> Followed:
        """Leave out what differs and is made up for, once rounding was weighed."""
        return followed

    def so_far(self, followed: Followed) -> Followed:
        """Return what the steps that were followed show while more are on their way."""
        return followed

    def weigh_noise(self, followed: Followed, jax: Any) -> None:
        """Measure the effect of rounding on each side, against an unmoved run; `jax` is compiled already."""

        def jax_moved(draw: int) -> Any:
            return _moved(self.again(copy.copy(jax)), draw)

        draws = _draws(followed.steps)
        weigh_noise(followed, self._torch_moved("float64", draws), "torch")
        weigh_noise(followed, [self.stepper.jax(functools.partial(jax_moved, draw)) for draw in draws], "jax")

    def weigh_torch32(self, followed: Followed) -> None:
        """Measure the effect of float32 rounding on the torch side, against an unmoved run."""
        weigh_torch32(followed, self._torch_moved("float32", _draws(followed.steps)))

    def _torch_moved(self, dtype: str, draws: range) -> list[Any]:
        """Start runs of the torch side in a precision, moved by the rounding of that; the first is not moved."""

        def start(draw: int) -> Any:
            return _moved(self.torch_run(dtype), draw)

        return [self.stepper.torch(functools.partial(start, draw)) for draw in draws]

    def weigh_tables(self, followed: Followed, jax: Any) -> Tables:
        """Measure what the float32 rounding of each side's tables does; `jax` is compiled already."""
        first = self.pair.torch_run("float64")
        ours = rounded_arrays(first.constant(), {link.torch for link in self.pair.links})
        theirs, constants = self.jax_tables(jax)

        def torch_moved(draw: int) -> Any:
            run = self.torch_run("float64")
            run.move_tables(draw, ours)
            return run

        def jax_moved(draw: int) -> Any:
            run = self.again(copy.copy(jax))
            run.move_tables(draw, theirs)
            return run

        draws = _draws(followed.steps)
        of_loss = rounded_arrays({f"loss.{name}": each for name, each in first.loss_buffers().items()}, ()).values()
        tables = Tables([*ours.values(), *of_loss, *self.stepper.constants], [*theirs.values(), *constants])
        if tables.torch:
            weigh_tables(followed, [self.stepper.torch(functools.partial(torch_moved, d)) for d in draws], "torch")
        if tables.jax:
            weigh_tables(followed, [self.stepper.jax(functools.partial(jax_moved, d)) for d in draws], "jax")
        return tables

    def jax_tables(self, jax: Any) -> tuple[Mapping[str, str], Sequence[str]]:
        """Describe the buffers that the JAX side holds in float32, by name, and the constants of its program."""
        return {}, jax.named_constants()

    def weigh_float32(self, followed: Followed) -> None:
        """Compare both sides in float32."""
        torch32 = self.stepper.torch(lambda: self.torch_run("float32"))
        weigh_float32(followed, torch32, self.stepper.jax(lambda: self.pair.jax_run("float32")))

    def weigh_spread32(self, followed: Followed, jax32: Any, lowest: float, *, functions: bool = False) -> None:
        """Measure what rounding does to the JAX side's float32 program; `jax32` is compiled already.

        `lowest` is the machine epsilon of the lowest precision in it, by which weights and inputs are moved; with
        `functions`, what functions such as tanh and sums give is moved in their place.
        """

        def moved(draw: int) -> Any:
            run = self.again(copy.copy(jax32))
            if draw and functions:
                run.move_functions(draw)
            elif draw:
                run.perturb(draw, lowest)
            return run

        streams = []
        for draw in range(MOVED + 1):
            stepper = copy.copy(self.stepper)
            stepper.batches = self.pair.moved_batches(0 if functions else draw, lowest)
            streams.append(stepper.jax(functools.partial(moved, draw)))
        weigh_spread32(followed, streams, lowest)
