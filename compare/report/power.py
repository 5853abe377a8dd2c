"""The planted faults that a check caught, and why it did not catch the others."""

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
    """Why a fault was not caught. The reason is found by running the torch side with the fault and without it."""

    OFF = "off"
    """It has no effect in `eval()`, but would in `train()`."""
    STEPS = "steps"
    """It has an effect after more steps."""
    UNREAD = "unread"
    """Nothing in these batches reads what it changes."""
    WEAK = "weak"
    """It changes what is compared, but by no more than rounding does: the check cannot detect it."""
    EQUIVALENT = "equivalent"
    """It changes nothing in exact arithmetic, so it is not a fault here."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one fault."""

    kind: str
    fault: str
    """As in "epsilon: 1e-05 → 0.0001"."""
    where: str
    """As in "layer_norm in encoder.0.norm1"."""
    caught: bool
    step: int | None = None
    """The step at which it was caught; None if it was caught before the steps or outside of them."""
    stage: str = ""
    """The stage at which it was caught: the stage of a `Divergence`, "random numbers", or "error" if the check refuses
    the pair."""
    place: str = ""
    """The name of what differs there on the torch side, or the message of the check."""
    error64: float = 0.0
    """The difference that was found there."""
    why: Why | None = None
    """Why it was not caught; None if it was."""
    explanation: str = ""
    """The reason in words, with what to do."""


@dataclass(frozen=True)
class Power:
    """The planted faults, and which of them a check catches."""

    name: str
    """The name of the pair."""
    outcomes: list[Outcome]
    """One for each fault, in the order in which they were planted."""
    steps: int
    """The number of steps of the check."""
    seed: int
    """The seed that chose the faults' places."""

    @property
    def unread(self) -> list[str]:
        """What nothing in the batches reads, with one line each for the report of the check."""
        return [f"{each.fault} ({each.where}): {each.explanation}" for each in self.missed if each.why == Why.UNREAD]

    @property
    def caught(self) -> list[Outcome]:
        """The faults that were caught."""
        return [outcome for outcome in self.outcomes if outcome.caught]

    @property
    def missed(self) -> list[Outcome]:
        """The faults that were not caught, each with its reason, without those that are `equivalent`."""
        return [each for each in self.outcomes if not each.caught and each.why != Why.EQUIVALENT]

    @property
    def equivalent(self) -> list[Outcome]:
        """The faults that change nothing in exact arithmetic. A right check does not catch them."""
        return [outcome for outcome in self.outcomes if outcome.why == Why.EQUIVALENT]

    @property
    def share(self) -> float:
        """The number of faults caught, divided by the number caught or missed."""
        found = len(self.caught) + len(self.missed)
        return len(self.caught) / found if found else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The result as a dict for JSON. docs/power.md describes the fields."""
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
