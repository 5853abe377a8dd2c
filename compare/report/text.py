"""A report as text: what `print(report)` and the commands show."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compare.bugs import ADVICE
from compare.report.findings import float32_difference
from compare.report.power import show as show_power
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.quantity import Verdict

if TYPE_CHECKING:
    from compare.report.findings import Findings

SIGN = {Verdict.MATCH: "✓", Verdict.PRECISION: "≈", Verdict.MISMATCH: "✗"}

_STYLE = {Verdict.MATCH: "green", Verdict.PRECISION: "yellow", Verdict.MISMATCH: "bold red"}

_SHOWN = 3
"""So many of what was not compared, or not lifted, are named; the JSON has all."""


def to_text(report: "Findings") -> str:
    """Give the text at 80 columns, without colours."""
    console = Console(width=80, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        show([report], console)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def show(reports: "list[Findings]", console: Console) -> None:
    """Print the tables, what their columns mean, and for each report its first divergence, its notes or its verdict."""
    if losses := all(len(report.torch.losses32) for report in reports):
        console.print(table(reports))
    staged = [report for report in reports if report.stages]
    for number, report in enumerate(staged):
        if losses or number:
            console.print()
        console.print(stages(report))
    timed = any(report.torch.seconds is not None for report in reports)
    of_what = "" if staged else " of the two sides' losses"
    caption = [
        *(["time: one float32 training run, compiled before; torch and NumPy on one thread."] if timed else []),
        f"{'float32, float64' if losses else 'float64'}: the largest relative difference{of_what}.",
        *(["rounding: what rounding would explain of it there."] if staged else []),
        "Rounding shrinks in float64, a bug does not: docs/verdict.md.",
    ]
    console.print()
    for line in (*caption, *(line for report in reports for line in _left_out(report))):
        console.print(Text(line, style="dim"))
    for report in reports:
        if report.stages or report.verdict != Verdict.MATCH:  # which the table has said
            for part in _parts(report):
                console.print(part)
        if report.power:
            console.print()
            show_power(report.power, console)


def table(reports: "list[Findings]") -> Table:
    """One row a report, one line a side: 80 columns."""
    timed = all(run.seconds is not None for report in reports for run in (report.torch, report.jax))
    out = Table(box=None, pad_edge=False, padding=(0, 1), row_styles=["", "dim"] if len(reports) > 1 else None)
    named = timed or len(reports) > 1  # the headline names a single one
    if named:
        out.add_column("variant", style="bold", overflow="fold")
    out.add_column("side", no_wrap=True)
    for heading in ("first loss", "last loss", *(["time"] if timed else []), "float32", "float64"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    for report in reports:
        sides, verdict = (report.torch, report.jax), report.verdict
        out.add_row(
            *([Text(report.name)] if named else []),
            "\n".join(run.side for run in sides),
            "\n".join(f"{run.losses32[0]:.6g}" for run in sides),
            "\n".join(f"{run.losses32[-1]:.6g}" for run in sides),
            *(["\n".join(f"{(run.seconds or 0) * 1e3:.0f} ms" for run in sides)] if timed else []),
            f"{float32_difference(report):.1e}",
            f"{max(report.loss.error64):.1e}",
            Text(f"{SIGN[verdict]} {verdict}", style=_STYLE[verdict]),
        )
    return out


def stages(report: "Findings") -> Table:
    """One row a stage: how much was compared, and where the two sides are farthest from what rounding explains."""
    out = Table(box=None, pad_edge=False, padding=(0, 1))
    out.add_column("stage", no_wrap=True)
    for heading in ("tensors", "float64", "rounding"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("farthest from rounding at", overflow="fold")
    for stage in dict.fromkeys(quantity.stage for quantity in report.quantities):
        of_stage = [quantity for quantity in report.quantities if quantity.stage == stage]
        worst = max(of_stage, key=lambda quantity: float(quantity.ratio.max()))
        step = int(np.argmax(worst.ratio))
        where = f"step {step}" if stage == "loss" else f"{worst.torch}, step {step}"
        row = (str(len(of_stage)), f"{worst.error64[step]:.1e}", f"{worst.expected[step]:.1e}", Text(where))
        out.add_row(stage, *row)
    return out


def _left_out(report: "Findings") -> Iterator[str]:
    """Say how much was not compared, and why."""
    by_reason: dict[str, list[str]] = {}
    for side, name, reason in report.not_compared:
        by_reason.setdefault(f"not compared on the {side} side, {reason}", []).append(name)
    if report.pinned:
        by_reason["not lifted to float64"] = report.pinned
    for reason, names in by_reason.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{reason}: {', '.join(names[:_SHOWN])}{more}"


def _parts(report: "Findings") -> Iterator[RenderableType]:
    """Give the headline, and below it what is known, each line with its label."""
    verdict = report.verdict
    yield Text(f"\n{SIGN[verdict]} {report.name}: {report.headline}", style=_STYLE[verdict])
    uneven = next((quantity for quantity in report.quantities if quantity.verdict == Verdict.PRECISION), None)
    rows = [("", line) for line in report.nondeterministic]
    if report.divergence:
        rows += _rows(report.divergence)
    if uneven and report.ok:
        rows.append(("where", f"first at {uneven.torch}"))
    for note in report.notes:
        rows += _cause(note)
    if uneven and report.ok and not report.notes:
        sides = zip((report.jax.side, report.torch.side), (uneven.error_jax[0], uneven.error_torch[0]), strict=True)
        rows.append(("rounding", " and ".join(f"{error:.1e} on the {side} side" for side, error in sides)))
    if rows:
        yield _grid(rows)
    for other in report.others:
        yield Text(f"\n{SIGN[verdict]} and, not because of that: {other.headline}", style=_STYLE[verdict])
        yield _grid(list(_rows(other)))
    if report.bugs:
        yield Text(f"\nThe search for causes is incomplete. {ADVICE}", style="yellow")
        yield _grid([("", str(bug)) for bug in report.bugs])


def _rows(divergence: Divergence) -> Iterator[tuple[str, str]]:
    if divergence.torch != divergence.jax:
        yield "where", f"{divergence.torch} in torch, {divergence.jax} on the JAX side"
    rounding = divergence.expected64
    apart = f"{divergence.error64:.1e}" if np.isfinite(divergence.error64) else "infinitely far"
    yield "float64", f"{apart} apart, where rounding would be about {rounding:.0e}"
    for line in divergence.details:
        label, _, text = line.partition("  ")
        yield (label, text) if text else ("", line)
    if divergence.opinion:
        yield "hint", divergence.opinion
    if divergence.cause:
        yield from _cause(divergence.cause)


def _cause(cause: Cause) -> Iterator[tuple[str, str]]:
    yield "cause", cause.explanation
    if cause.fix:
        yield "fix", cause.fix


def _grid(rows: list[tuple[str, str]]) -> RenderableType:
    """Labels in one column, text in another, so that what is wrapped stays in its own."""
    grid = Table.grid(padding=(0, 2))
    if any(label for label, _ in rows):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(*[Text(label, style="bold")][: len(grid.columns) - 1], Text(text))
    return Padding(grid, (0, 0, 0, 2))
