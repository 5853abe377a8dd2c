"""A hypothesis about the JAX side, which is tried on the torch side. It is not a cause until it is confirmed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.told import Told
from compare.diagnosis.optimizers.trial import Trial

Numbers = Sequence[float]


@dataclass(frozen=True)
class Hypothesis:
    """A change of torch's update that is the same at every step.

    A fitted number proves nothing by itself. With `free` numbers, a hypothesis must explain at least as many further
    numbers plus one, at every step that there is, and keep those equal that were.
    """

    name: str
    change: Callable[[Trial, Numbers], None]
    """Fills in a trial. It gets the step, so that it can do nothing at some steps."""
    tell: Callable[[Evidence, Numbers], Told]
    start: tuple[float, ...] = ()
    """Where the search for its free numbers begins."""
    place: str = ""
    """Where it is done, if there only one thing can be: "formula", "gradient"."""
    alone: bool = False
    """Whether it is tried only alone."""

    @property
    def free(self) -> int:
        """How many numbers have to be fitted."""
        return len(self.start)
