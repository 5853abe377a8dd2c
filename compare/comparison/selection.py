"""The parts of a comparison that the user selects: the stages to compare, and the known differences to accept."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from compare.alignment.pairings import Alignment
from compare.errors import InputError
from compare.step.stage import Stage
from compare.verdict.accepting import Acceptance

_NEED_OPTIMIZER = {Stage.UPDATE, Stage.PARAMETERS}
_NEED_LOSS = {Stage.LOSS, Stage.GRADIENT}


class Selection:
    """What to compare, and what to accept.

    Args:
        stages: Names of stages, as a list or with commas between; None for all.
        accept: As for `compare.check`.

    Raises:
        InputError: If there is no such stage, or an entry of `accept` is wrong.

    """

    def __init__(self, stages: str | Sequence[str] | None = None, accept: Any = None) -> None:
        self.acceptance = Acceptance(accept)
        self.stages: list[Stage] | None = None
        """In their order; None if all are compared."""
        if stages is not None:
            given = stages.split(",") if isinstance(stages, str) else list(stages)
            names = [str(name).strip() for name in given]
            if not names or set(names) - set(Stage):
                raise InputError(f"stages must be some of {', '.join(Stage)}, not {', '.join(names) or 'none'}")
            self.stages = [stage for stage in Stage if stage in names]

    def cut(self, side: Any) -> Any:
        """Return a side without its optimizer, and without its loss, if no selected stage needs them."""
        if self.stages is None or not hasattr(side, "optimizer"):
            return side
        if not _NEED_OPTIMIZER & set(self.stages):
            side = dataclasses.replace(side, optimizer=None)
        if side.optimizer is None and not _NEED_LOSS & set(self.stages):
            side = dataclasses.replace(side, loss=None)
        return side

    def applied(self, alignment: Alignment) -> Alignment:
        """Leave out the other stages, and let what is accepted decide nothing."""
        if self.stages is not None:
            pairings = [pairing for pairing in alignment.pairings if pairing.stage in self.stages]
            alignment = alignment._replace(pairings=pairings)
        return self.acceptance.applied(alignment)
