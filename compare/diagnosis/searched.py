"""What a search for a cause has found."""

from typing import NamedTuple

from compare.verdict.divergence import Cause, Detail


class Searched(NamedTuple):
    """What a search has found."""

    cause: Cause | None = None
    details: tuple[Detail, ...] = ()
    """What else is known, where no cause is."""
    whole: bool = False
    """Whether, with the cause on the torch side, the whole model gives what the JAX side's own does: then nothing else
    that differs in the forward pass is a fault of its own."""
