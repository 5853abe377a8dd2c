"""What was compared, stage by stage, and what was not, by reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compare.alignment.pairings import NotCompared
from compare.verdict.ratio import FACTOR, Quantity


@dataclass(frozen=True)
class StageSummary:
    """What was compared in one stage of all steps."""

    stage: str
    quantities: Sequence[Quantity]
    """All of the stage."""
    worst: Quantity
    """The quantity whose difference is largest relative to what rounding explains."""
    step: int
    """The step of that difference."""

    @property
    def tensors(self) -> int:
        """The number of tensors that were compared."""
        return len(self.quantities)

    @property
    def differing(self) -> int:
        """The number of them that differ by more than rounding explains."""
        return sum(bool((quantity.ratio > FACTOR).any()) for quantity in self.quantities)

    @property
    def error64(self) -> float:
        """The float64 difference that is largest relative to what rounding explains."""
        return self.worst.error64[self.step]

    @property
    def expected64(self) -> float:
        """The float64 difference that rounding explains there."""
        return float(self.worst.expected[self.step])


class LeftOut(NamedTuple):
    """What was not compared for one reason."""

    side: str
    reason: str
    names: list[str]


def summaries(quantities: Iterable[Quantity]) -> list[StageSummary]:
    """Return one summary a stage, in order of computation."""
    by_stage: dict[str, list[Quantity]] = {}
    for quantity in quantities:
        by_stage.setdefault(quantity.stage, []).append(quantity)
    found = []
    for stage, of_stage in by_stage.items():
        ratios = [quantity.ratio for quantity in of_stage]
        # By the ratio and not by the difference: 1e-3 may be rounding in one tensor, and 1e-12 a bug in
        # another.
        number = int(np.argmax([ratio.max() for ratio in ratios]))
        found.append(StageSummary(stage, of_stage, of_stage[number], int(np.argmax(ratios[number]))))
    return found


def by_reason(not_compared: Iterable[NotCompared]) -> list[LeftOut]:
    """Group what was not compared by side and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for side, name, reason in not_compared:
        names.setdefault((side, reason), []).append(name)
    return [LeftOut(side, reason, several) for (side, reason), several in names.items()]
