"""How far a comparison has got."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compare.report.report import Report


@dataclass(frozen=True)
class Progress:
    """What is being done, and what was found up to then; `progress=print` shows it line by line."""

    doing: str
    """As in "step 3 of 10"."""
    done: int = 0
    """How many steps are done."""
    steps: int | None = None
    """Of how many; None where it is not known how long it will take, as for the search for a cause."""
    found: Callable[[], "Report | None"] = lambda: None
    """Gives the report of the steps that are done, without a cause; None where there are none yet."""

    def __str__(self) -> str:
        """What is being done."""
        return self.doing


Show = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Show nothing."""
