"""The progress of a comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compare.report.report import Report


@dataclass(frozen=True)
class Progress:
    """The current task, and what was found so far. `progress=print` shows it line by line."""

    doing: str
    """The current task, such as "step 3 of 10"."""
    done: int = 0
    """The number of steps that are done."""
    steps: int | None = None
    """The total number of steps; None if the time is unknown, as for the search for a cause."""
    found: Callable[[], "Report | None"] = lambda: None
    """Returns the report of the steps that are done, without a cause; None if there are none yet."""

    def __str__(self) -> str:
        """What is being done."""
        return self.doing


Show = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Show nothing."""
