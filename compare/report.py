"""What a comparison found: for a program to read, for a person to read, and as JSON."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape as escape_html
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.markup import escape

from compare.alignment import NotCompared
from compare.verdict import EPSILON32, EPSILON64, Quantity, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
    source: str = ""
    """Where the convention is documented."""


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
    """The rounding that is fair in float32: d(torch32, torch64), the largest of neighbouring steps."""
    cause: Cause | None = None
    opinion: str = ""
    """What a third implementation, in NumPy, says of the two."""
    details: tuple[str, ...] = ()
    """What is known of the place: both layers with their settings, and how the one result is related to the other."""


def settings(steps: int, device: str) -> dict[str, Any]:
    """What makes a run repeatable: how many steps, where, and with which versions."""
    packages = ("torch", "jax", "flax", "optax", "numpy")
    return {
        "steps": steps,
        "device": device,
        "float32_matmul_precision": "highest",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Run:
    """One side's trajectory: its losses in both precisions, and the time of one float32 training run."""

    side: str
    losses32: np.ndarray
    """Shape `(steps,)`, each before its step's update."""
    losses64: np.ndarray
    seconds: float | None = None
    """None where none was timed."""


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
    not_compared: list[NotCompared] = field(default_factory=list)
    """What one side has and the other has not, with the reason."""
    others: list[Divergence] = field(default_factory=list)
    """What differs besides the first divergence, and not because of it: found with every part of a step started from
    the torch side's values."""
    nondeterministic: list[str] = field(default_factory=list)
    """What was drawn at random on one side only, or not repeated: nothing is proved while there is any."""
    pinned: list[str] = field(default_factory=list)
    """What could not be lifted to float64, on either side: differences of float32's size may come from it."""
    stages: bool = False
    """Whether to show what was compared, stage by stage."""
    modules: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: ({}, {}))
    """The class of each module that ran, by its path, in order of execution, on the torch and on the JAX side."""
    weights: list[tuple[str, str]] = field(default_factory=list)
    """Which tensor, or part of one, of the torch side is which of the JAX side."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all quantities and steps; equal to "match", "precision" or "mismatch"."""
        if self.divergence or self.nondeterministic:
            return Verdict.MISMATCH
        if self.notes:
            return Verdict.PRECISION
        return max((quantity.verdict for quantity in self.quantities), key=list(Verdict).index)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each step; one that starts from a mismatch is a mismatch too."""
        steps = max((len(quantity.error64) for quantity in self.quantities), default=0)
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
            "nondeterministic": self.nondeterministic,
            "pinned": self.pinned,
            "others": [dataclasses.asdict(other) for other in self.others],
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
            "not_compared": [each._asdict() for each in self.not_compared],
            "quantities": [
                {key: value for key, value in vars(quantity).items() if key not in ("update", "operands")}
                | {"worst_ratio": float(quantity.ratio.max()), "verdict": str(quantity.verdict)}
                for quantity in self.quantities
            ],
        }

    def to_html(self) -> str:
        """One self-contained page: docs/report.md describes it."""
        from compare.html import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """How a Jupyter notebook shows it: the page in a frame of its own, whose style stays there."""
        page = escape_html(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:40rem;border:0" title="{escape_html(self.name)}"></iframe>'

    def to_markdown(self) -> str:
        """For a pull request's comment or a CI job's summary."""
        from compare.markdown import to_markdown

        return to_markdown(self)

    def plot(self) -> "Figure":
        """Losses of both sides over each other, and their differences per step, as a matplotlib figure."""
        from compare.plot import plot_reports

        return plot_reports([self])

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

    timed = all(run.seconds is not None for report in reports for run in (report.torch, report.jax))
    out = Table(box=None, pad_edge=False, padding=(0, 1), row_styles=["", "dim"] if len(reports) > 1 else None)
    out.add_column("variant" if timed else "", style="bold", no_wrap=True)
    out.add_column("side", no_wrap=True)
    for heading in ("first loss", "last loss", *(["time"] if timed else []), "float32", "float64"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    for report in reports:
        sides, verdict = (report.torch, report.jax), report.verdict
        out.add_row(
            report.name,
            "\n".join(run.side for run in sides),
            "\n".join(f"{run.losses32[0]:.6g}" for run in sides),
            "\n".join(f"{run.losses32[-1]:.6g}" for run in sides),
            *(["\n".join(f"{(run.seconds or 0) * 1e3:.0f} ms" for run in sides)] if timed else []),
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


def stages(report: Report) -> "Table":
    """One row a stage: how much was compared, and where the two sides are farthest from what rounding explains."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False, padding=(0, 1))
    out.add_column("stage", no_wrap=True)
    for heading in ("tensors", "float64", "rounding"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("largest, beside rounding, at", overflow="fold")
    for stage in dict.fromkeys(quantity.stage for quantity in report.quantities):
        of_stage = [quantity for quantity in report.quantities if quantity.stage == stage]
        worst = max(of_stage, key=lambda quantity: float(quantity.ratio.max()))
        step = int(np.argmax(worst.ratio))
        where = f"step {step}" if stage == "loss" else f"{escape(worst.torch)}, step {step}"
        out.add_row(stage, str(len(of_stage)), f"{worst.error64[step]:.1e}", f"{worst.expected[step]:.1e}", where)
    return out


def show(reports: list[Report], console: "Console") -> None:
    """Print the table, what its columns mean, and for each report its first divergence and its notes."""
    if all(len(report.torch.losses32) for report in reports):
        console.print(table(reports))
        timed = reports[0].torch.seconds is not None
        console.print(
            ("\ntime: one float32 training run, compiled before; torch and NumPy on one thread." if timed else "")
            + "\nfloat32, float64: the largest relative difference of the two sides' losses.\n"
            "Rounding shrinks in float64, a bug does not: docs/verdict.md.",
            style="dim",
            highlight=False,
        )
    for report in reports:
        if report.stages:
            console.print()
            console.print(stages(report))
            for line in _left_out(report):
                console.print(line, style="dim", highlight=False)
        for line in _explanation(report):
            console.print(line, highlight=False, soft_wrap=False)
        if report.stages and report.verdict == Verdict.MATCH:
            console.print(f"\n[{_STYLE[report.verdict]}]{_SIGN[report.verdict]} {report.name}: {report.verdict}[/]")


def _left_out(report: Report) -> Iterator[str]:
    """Say how much was not compared, and why."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for side, name, reason in report.not_compared:
        by_reason.setdefault((side, reason), []).append(name)
    for (side, reason), names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield escape(f"not compared on the {side} side: {shown}: {reason}")
    yield from (escape(f"not lifted to float64: {what}") for what in report.pinned)


def _cause(divergence: Divergence) -> Iterator[str]:
    if divergence.cause:
        yield f"  cause  {escape(divergence.cause.explanation)}"
        yield f"  fix    {escape(divergence.cause.fix)}"


def _explanation(report: Report) -> Iterator[str]:
    if report.nondeterministic:
        yield ""
        yield f"[bold red]✗ {report.name}: nondeterministic, so that nothing is proved[/]"
        yield from (f"  {escape(line)}" for line in report.nondeterministic)
    if divergence := report.divergence:
        yield ""
        yield f"[bold red]✗ {report.name}: mismatch at step {divergence.step}, {divergence.stage}[/]"
        if divergence.torch != divergence.jax:
            yield f"  torch  {escape(divergence.torch)}    jax  {escape(divergence.jax)}"
        elif divergence.stage != "loss":
            yield f"  {escape(divergence.torch)}"
        yield (
            f"  float64 difference {divergence.error64:.1e}; rounding would be about "
            f"{divergence.error32 * EPSILON64 / EPSILON32:.0e}"
        )
        yield from (f"  {escape(line)}" for line in (*divergence.details, divergence.opinion) if line)
        yield from _cause(divergence)
    for other in report.others:
        names = other.torch if other.torch == other.jax else f"{other.torch}    {other.jax}"
        yield ""
        yield f"  and by itself, at step {other.step}, {other.stage}: {escape(names)} ({other.error64:.1e})"
        yield from _cause(other)
    uneven = next((quantity for quantity in report.quantities if quantity.verdict == Verdict.PRECISION), None)
    if uneven and report.ok:
        yield ""
        yield f"[yellow]≈ {report.name}: the same mathematics at another precision, first at {escape(uneven.torch)}[/]"
        yield (
            f"  float32 rounding there is {uneven.error_jax[0]:.1e} on the {report.jax.side} side and "
            f"{uneven.error_torch[0]:.1e} on the {report.torch.side} side"
        )
    for note in report.notes:
        yield ""
        yield f"[yellow]≈ {report.name}: {escape(note.name)}[/]"
        yield f"  {escape(note.explanation)}"
        yield f"  {escape(note.fix)}"
