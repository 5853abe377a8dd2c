"""Which planted faults a check caught, and why it did not catch the others."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from compare.report.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
"""Version of what `Power.to_dict` gives; it grows when a field changes its meaning or goes."""


class Why(StrEnum):
    """Why a fault was not caught: each is found by runs of the torch side with it and without it."""

    OFF = "off"
    """What it is in is off in `eval()`: in `train()` it shows."""
    STEPS = "steps"
    """It shows after more steps."""
    UNREAD = "unread"
    """Nothing in these batches reads what it changes."""
    WEAK = "weak"
    """It changes what is compared, but by no more than rounding: the check is too weak for it."""
    EQUIVALENT = "equivalent"
    """It changes nothing in exact arithmetic: it is no fault here."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    kind: str
    fault: str
    """As in "epsilon: 1e-05 → 0.0001"."""
    where: str
    """As in "layer_norm in encoder.0.norm1"."""
    caught: bool
    step: int | None = None
    """At which it was caught; None where it was before or beside the steps."""
    stage: str = ""
    """At which it was caught: as of a `Divergence`, "random numbers", or "error" where the check refuses the pair."""
    place: str = ""
    """The name on the torch side of what differs there, or what the check says."""
    error64: float = 0.0
    """The difference that was found there."""
    why: Why | None = None
    """Of one that was not caught."""
    explanation: str = ""
    """The same for a person to read, with what to do."""


@dataclass(frozen=True)
class Power:
    """Which planted faults a check catches."""

    name: str
    """What the pair is called."""
    outcomes: list[Outcome]
    """One for each fault, in the order in which they were planted."""
    steps: int
    """How many the check took."""
    seed: int
    """What chose the faults' places."""

    @property
    def unread(self) -> list[str]:
        """What nothing in the batches reads, a line each for a person who reads the report of the check."""
        return [f"{each.fault} ({each.where}): {each.explanation}" for each in self.missed if each.why == Why.UNREAD]

    @property
    def caught(self) -> list[Outcome]:
        """Those that were caught."""
        return [outcome for outcome in self.outcomes if outcome.caught]

    @property
    def missed(self) -> list[Outcome]:
        """Those that were not, each with its reason; without those that are no faults in exact arithmetic."""
        return [each for each in self.outcomes if not each.caught and each.why != Why.EQUIVALENT]

    @property
    def equivalent(self) -> list[Outcome]:
        """Those that change nothing in exact arithmetic, which a right check does not catch."""
        return [outcome for outcome in self.outcomes if outcome.why == Why.EQUIVALENT]

    @property
    def share(self) -> float:
        """How much of what could be caught was."""
        found = len(self.caught) + len(self.missed)
        return len(self.caught) / found if found else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON holds. docs/power.md describes the fields."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "steps": self.steps,
            "seed": self.seed,
            "share": self.share,
            "outcomes": [dataclasses.asdict(outcome) for outcome in self.outcomes],
        }

    def __str__(self) -> str:
        """The table, and how many were caught."""
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            show(self, console)
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def show(power: Power, console: "Console") -> None:
    """Print the table, and how many were caught."""
    from rich.text import Text

    console.print(table(power))
    console.print(Text(f"\n{summary(power)}"))
    planted = "Faults are planted in copies of the torch side; in the port they would cause the same differences."
    console.print(Text(f"{planted} See docs/power.md.", style="dim"))


def summary(power: Power) -> str:
    """How many were caught, in one line."""
    found = len(power.caught) + len(power.missed)
    line = f"{power.name}: {len(power.caught)} of {found} faults caught in {counted(power.steps, 'step')}"
    if power.equivalent:
        line += f"; {len(power.equivalent)} more change nothing in exact arithmetic, and are not faults"
    return line


def table(power: Power) -> "Table":
    """One row a fault."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(box=None, pad_edge=False, padding=(0, 1))
    out.add_column("fault", overflow="fold")
    out.add_column("where", overflow="fold")
    out.add_column("", no_wrap=True)
    out.add_column("caught at, or why not", overflow="fold")
    for each in power.outcomes:
        sign = "[green]✓[/]" if each.caught else "[dim]=[/]" if each.why == Why.EQUIVALENT else "[bold red]✗[/]"
        out.add_row(escape(each.fault), escape(each.where), sign, escape(_told(each)))
    return out


def _told(outcome: Outcome) -> str:
    if not outcome.caught:
        return outcome.explanation
    step = "" if outcome.step is None else f"step {outcome.step}, "
    place = "" if outcome.place == outcome.stage else f": {outcome.place}"
    return f"{step}{outcome.stage}{place}"
