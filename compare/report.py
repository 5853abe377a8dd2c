"""What a comparison found: for a program to read, for a person to read, and as JSON."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.markup import escape

from compare.verdict import EPSILON32, EPSILON64, Quantity, Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
"""Version of what `Report.to_dict` gives; it grows when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Cause:
    """Why two sides differ, proved by removing it and watching the difference go."""

    name: str
    explanation: str
    fix: str


@dataclass(frozen=True)
class Divergence:
    """The first place, in order of computation, at which two sides differ by more than rounding."""

    step: int
    """Counted from 0."""
    stage: str
    torch: str
    """The name of what differs on the torch side."""
    jax: str
    """The name of what differs on the JAX side."""
    error64: float
    """d(jax64, torch64)."""
    error32: float
    """d(torch32, torch64): the rounding that is fair in float32."""
    cause: Cause | None = None
    opinion: str = ""
    """What a third implementation, in NumPy, says of the two."""


@dataclass(frozen=True)
class Run:
    """One side's trajectory: its losses in both precisions, and the time of one float32 training run."""

    side: str
    losses32: np.ndarray
    """Shape `(steps,)`, each before its step's update."""
    losses64: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcome of one comparison."""

    name: str
    torch: Run
    jax: Run
    quantities: list[Quantity]
    """In order of computation within a step."""
    divergence: Divergence | None
    notes: list[Cause]
    """Causes of a `precision` verdict, with their size."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What makes the run repeatable: steps, seed, device, versions."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all quantities and steps; equal to "match", "precision" or "mismatch"."""
        if self.divergence:
            return Verdict.MISMATCH
        if self.notes:
            return Verdict.PRECISION
        return max((quantity.verdict for quantity in self.quantities), key=list(Verdict).index)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each step; one that starts from a mismatch is a mismatch too."""
        steps = len(self.loss.error64)
        if not self.divergence:
            return [self.verdict] * steps
        before = Verdict.PRECISION if self.notes else Verdict.MATCH
        wrong = max(steps - self.divergence.step, 0)
        return [before] * (steps - wrong) + [Verdict.MISMATCH] * wrong

    @property
    def ok(self) -> bool:
        """Whether there is no mismatch."""
        return self.verdict != Verdict.MISMATCH

    @property
    def loss(self) -> Quantity:
        """How far apart the losses are."""
        return next(quantity for quantity in self.quantities if quantity.stage == "loss")

    def raise_on_mismatch(self) -> Self:
        """Give the report back, or raise AssertionError with its text."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON holds. docs/report.md describes the fields."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "verdict": str(self.verdict),
            "verdicts": [str(verdict) for verdict in self.verdicts],
            "divergence": self.divergence and dataclasses.asdict(self.divergence),
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "settings": self.settings,
            "sides": {
                key: {
                    "name": run.side,
                    "losses32": [float(loss) for loss in run.losses32],
                    "losses64": [float(loss) for loss in run.losses64],
                    "seconds": run.seconds,
                }
                for key, run in (("torch", self.torch), ("jax", self.jax))
            },
            "quantities": [
                dataclasses.asdict(quantity)
                | {"worst_ratio": float(quantity.ratio.max()), "verdict": str(quantity.verdict)}
                for quantity in self.quantities
            ],
        }

    def __str__(self) -> str:
        """The table, and the first divergence with cause and fix."""
        from rich.console import Console

        console = Console(width=80, color_system=None)
        with console.capture() as capture:
            show([self], console)
        return capture.get().rstrip()


def table(reports: list[Report]) -> "Table":
    """One row a report, one line a side: 80 columns."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False, padding=(0, 1), row_styles=["", "dim"] if len(reports) > 1 else None)
    out.add_column("variant", style="bold", no_wrap=True)
    out.add_column("side", no_wrap=True)
    for heading in ("first loss", "last loss", "time", "float32", "float64"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    for report in reports:
        sides, verdict = (report.torch, report.jax), report.verdict
        out.add_row(
            report.name,
            "\n".join(run.side for run in sides),
            "\n".join(f"{run.losses32[0]:.6g}" for run in sides),
            "\n".join(f"{run.losses32[-1]:.6g}" for run in sides),
            "\n".join(f"{run.seconds * 1e3:.0f} ms" for run in sides),
            f"{float32_difference(report):.1e}",
            f"{max(report.loss.error64):.1e}",
            f"[{_STYLE[verdict]}]{_SIGN[verdict]} {verdict}[/]",
        )
    return out


_SIGN = {Verdict.MATCH: "✓", Verdict.PRECISION: "≈", Verdict.MISMATCH: "✗"}
_STYLE = {Verdict.MATCH: "green", Verdict.PRECISION: "yellow", Verdict.MISMATCH: "bold red"}


def float32_differences(report: Report) -> np.ndarray:
    """The relative difference of the two sides' float32 losses at each step, of shape `(steps,)`."""
    length = min(len(report.torch.losses32), len(report.jax.losses32))
    torch, jax = (run.losses32[:length].astype(np.float64) for run in (report.torch, report.jax))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference: np.ndarray = np.abs(jax - torch) / np.abs(torch)
    return difference


def float32_difference(report: Report) -> float:
    """The largest relative difference of the two sides' float32 losses."""
    return float(float32_differences(report).max())


def show(reports: list[Report], console: "Console") -> None:
    """Print the table, what its columns mean, and for each report its first divergence and its notes."""
    console.print(table(reports))
    console.print(
        "\ntime: one float32 training run, compiled before; torch and NumPy on one thread.\n"
        "float32, float64: the largest relative difference of the two sides' losses.\n"
        "Rounding shrinks in float64, a bug does not: docs/verdict.md.",
        style="dim",
        highlight=False,
    )
    for report in reports:
        for line in _explanation(report):
            console.print(line, highlight=False, soft_wrap=False)


def _explanation(report: Report) -> Iterator[str]:
    if divergence := report.divergence:
        yield ""
        yield f"[bold red]✗ {report.name}: mismatch at step {divergence.step}, {divergence.stage}[/]"
        if divergence.torch != divergence.jax:
            yield f"  torch  {escape(divergence.torch)}    jax  {escape(divergence.jax)}"
        elif divergence.stage != "loss":
            yield f"  {escape(divergence.torch)}"
        yield (
            f"  float64 difference {divergence.error64:.1e}; rounding would be about "
            f"{max(divergence.error32, EPSILON32) * EPSILON64 / EPSILON32:.0e}"
        )
        if divergence.opinion:
            yield f"  {escape(divergence.opinion)}"
        if divergence.cause:
            yield f"  cause  {escape(divergence.cause.explanation)}"
            yield f"  fix    {escape(divergence.cause.fix)}"
    for note in report.notes:
        yield ""
        yield f"[yellow]≈ {report.name}: {escape(note.name)}[/]"
        yield f"  {escape(note.explanation)}"
        yield f"  {escape(note.fix)}"
