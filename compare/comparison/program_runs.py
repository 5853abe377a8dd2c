"""The runs of a pair of programs, whose later steps may show more than the first: see `common_runs`."""

from collections.abc import Callable

from compare.alignment.calls_made import Called, called_otherwise
from compare.alignment.pairings import Alignment
from compare.comparison.common_runs import CommonRuns
from compare.comparison.later_steps import LaterSteps
from compare.comparison.program_pair import ProgramPair
from compare.comparison.readings import Gradients, cut_to_size, without_undone
from compare.comparison.steps import JaxSteps
from compare.jax_side.program_run import JaxProgramRun
from compare.step.observation import Observation
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.following import Followed, Streams


class ProgramRuns(CommonRuns):
    """Starts runs of a pair of programs."""

    pair: ProgramPair
    torch_run: Callable[[str], TorchProgramRun]

    def __init__(self, pair: ProgramPair, torch_run: Callable[[str], TorchProgramRun] | None = None) -> None:
        super().__init__(pair, torch_run)
        self.later, self.gradients = LaterSteps(), Gradients()
        self.called_otherwise: dict[str, Called] = {}
        """The modules that the step of one side calls more often than the other's, by name."""

    def follow(
        self, jax64: JaxProgramRun, jax32: Callable[[], JaxSteps], steps: int, progress: Callable[..., None]
    ) -> Followed:
        """Take all four runs through the steps, and once more where later steps have shown what is to be paired."""
        followed = super().follow(jax64, jax32, steps, progress)
        if self.later.any and not self.later.complete:
            self.later.complete = True
            followed = super().follow(jax64, jax32, steps, progress)
        return self.so_far(followed)

    def streams(self, jax64: JaxProgramRun, jax32: Callable[[], JaxSteps]) -> Streams:
        """Start the runs of both sides, those in float64 watched for what later steps show."""
        streams = super().streams(jax64, jax32)
        return streams._replace(
            torch64=lambda: self.later.watched("torch", streams.torch64()),
            jax64=lambda: self.later.watched("jax", streams.jax64()),
        )

    def align(self, torch: Observation, jax: Observation) -> Alignment:
        """Pair everything that a step of both sides shows, or a later step."""
        half = int(bool(torch.parameters))
        found = super().align(self.later.added("torch", half, torch), self.later.added("jax", half, jax))
        # Torch calls a recurrent layer once, where the JAX side may call its cell at each time.
        called = called_otherwise(self.pair.links, torch, jax)
        self.called_otherwise |= {each.module: each for each in called if each.module not in self.pair.recurrent}
        pairings = [self.later.from_zero(cut_to_size(pairing, torch, jax)) for pairing in found.pairings]
        return found._replace(pairings=self.gradients.both(pairings))

    def read(self, followed: Followed) -> Followed:
        """Leave out an input of a module that differs if the module's outputs agree."""
        return without_undone(followed)

    def so_far(self, followed: Followed) -> Followed:
        """Leave of each gradient the one of two readings that agrees for longer."""
        return self.read(self.gradients.compared(followed))
