"""The runs of a pair of programs: see `common_runs`."""

from collections.abc import Callable

from compare.alignment.calls_made import Called, called_otherwise
from compare.alignment.pairings import Alignment
from compare.comparison.common_runs import CommonRuns
from compare.comparison.program_pair import ProgramPair
from compare.comparison.readings import Gradients, cut_to_size, without_undone
from compare.step.observation import Observation
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.following import Followed


class ProgramRuns(CommonRuns):
    """Starts runs of a pair of programs."""

    pair: ProgramPair
    torch_run: Callable[[str], TorchProgramRun]

    def __init__(self, pair: ProgramPair, torch_run: Callable[[str], TorchProgramRun] | None = None) -> None:
        super().__init__(pair, torch_run)
        self.gradients = Gradients()
        self.called_otherwise: dict[str, Called] = {}
        """The modules that the step of one side calls more often than the other's, by name."""

    def align(self, half: int, torch: Observation, jax: Observation) -> Alignment:
        """Pair everything that half a step of both sides shows, at the first step or at a later one."""
        found = super().align(half, torch, jax)
        # Torch calls a recurrent layer once, where the JAX side may call its cell at each time.
        called = called_otherwise(self.pair.links, torch, jax)
        self.called_otherwise |= {each.module: each for each in called if each.module not in self.pair.recurrent}
        pairings = [cut_to_size(pairing, torch, jax) for pairing in found.pairings]
        return found._replace(pairings=self.gradients.both(pairings))

    def read(self, followed: Followed) -> Followed:
        """Leave out an input of a module that differs if the module's outputs agree."""
        return without_undone(followed)

    def so_far(self, followed: Followed) -> Followed:
        """Leave of each gradient the one of two readings that agrees for longer."""
        return self.read(self.gradients.compared(followed))
