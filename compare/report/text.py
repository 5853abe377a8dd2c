"""A report as text: what `print(report)` and the commands show."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compare.bugs import ADVICE
from compare.report.changed_lines import beside
from compare.report.findings import SHOWN_GROUPS, float32_difference
from compare.report.groups import SHOWN_PLACES
from compare.report.places import listed
from compare.report.power import show as show_power
from compare.report.ran import ran
from compare.report.summary import by_reason
from compare.report.wording import SIGN, at, counted
from compare.step.stage import Stage
from compare.verdict.divergence import Role
from compare.verdict.ratio import Verdict

if TYPE_CHECKING:
    from compare.mending.patch import Patch
    from compare.report.findings import Findings
    from compare.report.groups import Group
    from compare.verdict.divergence import Line

_STYLE = {Verdict.MATCH: "green", Verdict.PRECISION: "yellow", Verdict.MISMATCH: "bold red"}

NEWLINE = "\n"

_SHOWN = 3
"""The largest number of tensors not compared, or not run in float64, that are all named; `--verbose` names all."""


def to_text(report: "Findings") -> str:
    """Return the text at 80 columns, without colours."""
    console = Console(width=80, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        show([report], console)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def show(reports: "list[Findings]", console: Console, *, verbose: bool | None = None) -> None:
    """Print the tables, what their columns mean, and for each report its first divergence, its notes or its verdict.

    With `verbose=False` a match is one line, with what was compared; with True all that ran is described too.
    """
    brief = [report for report in reports if verbose is False and report.stages and report.verdict == Verdict.MATCH]
    reports = [report for report in reports if report not in brief]
    if reports:
        _show(reports, console, verbose=bool(verbose))
    for report in brief:
        for part in _parts(report, f": {_covered(report)}"):
            console.print(part)
        for line in ran(report, verbose=False):
            console.print(Text(line, style="dim"))
        if report.power:
            console.print()
            show_power(report.power, console)


def _covered(report: "Findings") -> str:
    """Say in one line what a match covers."""
    stages = ", ".join(f"{stage.stage} {stage.tensors}" for stage in report.by_stage())
    rest = [
        *([f"not compared: {len(report.not_compared)}"] if report.not_compared else []),
        *([f"not in float64: {len(report.pinned)}"] if report.pinned else []),
    ]
    return "; ".join([f"{report.compared} ({stages})", *rest]) + (", see --verbose" if rest else "")


def _show(reports: "list[Findings]", console: Console, *, verbose: bool) -> None:
    if losses := all(len(report.torch.losses32) for report in reports):
        console.print(table(reports))
    # Where something differs, everything after it differs too: a table of that says nothing.
    staged = [report for report in reports if report.stages and (report.ok or verbose)]
    for number, report in enumerate(staged):
        if losses or number:
            console.print()
        console.print(stages(report))
    timed = any(report.torch.seconds is not None for report in reports)
    caption = []
    if timed:
        caption.append("time: one float32 training run, without compilation; torch and NumPy use one thread.")
    if losses or staged:
        where = "" if staged else " of the two sides' losses"
        caption.append(f"{'float32, float64' if losses else 'float64'}: the largest relative difference{where}.")
    if staged:
        caption.append("rounding: the difference that rounding would explain there. See docs/verdict.md.")
    elif not any(report.stages for report in reports):
        caption.append("Rounding shrinks in float64, a bug does not: docs/verdict.md.")
    if losses or staged:
        console.print()
    for line in (
        *caption,
        *(line for report in reports for line in (*ran(report, verbose=verbose), *_left_out(report, verbose=verbose))),
    ):
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
    """One row a stage: how much was compared, and the difference with the largest ratio to what rounding explains."""
    out = Table(box=None, pad_edge=False, padding=(0, 1))
    out.add_column("stage", no_wrap=True)
    for heading in ("tensors", "float64", "rounding"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("largest ratio at", overflow="fold")
    for stage in report.by_stage():
        where = f"step {stage.step}" if stage.stage == Stage.LOSS else f"{stage.worst.torch}, step {stage.step}"
        out.add_row(stage.stage, str(stage.tensors), f"{stage.error64:.1e}", f"{stage.expected64:.1e}", Text(where))
    return out


def _left_out(report: "Findings", *, verbose: bool) -> Iterator[str]:
    """Say how much was not compared, and why; with `verbose`, by all names. A mismatch has more to say than why."""
    left_out = report.left_out()
    if not report.ok and not verbose:
        left_out = by_reason([each._replace(reason="") for each in report.not_compared])
    reasons = [
        (", ".join(filter(None, (f"not compared on the {side} side", reason))), names)
        for side, reason, names in left_out
    ]
    if report.pinned:
        reasons.append(("not run in float64", report.pinned))
    for reason, names in reasons:
        whole = verbose or len(names) <= _SHOWN
        shown = names if whole else names[:1]
        more = "" if whole else f" and {len(names) - 1} more"
        yield f"{reason}: {', '.join(shown)}{more}"


def _parts(report: "Findings", more: str = "") -> Iterator[RenderableType]:
    """Yield the headline, and below it what is known, each line with its label."""
    verdict, groups = report.verdict, report.groups
    yield Text(
        f"{'' if more else NEWLINE}{SIGN[verdict]} {report.name}: {report.headline}{more}", style=_STYLE[verdict]
    )
    rows = [("", line) for line in report.nondeterministic]
    for reason in report.unproved:
        rows += _cause(reason.explanation, reason.fix)
    if len(groups) == 1:
        rows += _rows(report, groups[0])
    uneven = report.uneven
    if uneven and report.ok:
        # A gradient and an update bear the name of their parameter.
        stage = f", {uneven.stage}" if uneven.stage in (Stage.GRADIENT, Stage.UPDATE) else ""
        rows.append(("where", f"first {at(uneven.torch)}{stage}"))
    for note in report.notes:
        rows += _cause(note.explanation, note.fix)
    if uneven and report.ok and not report.notes:
        sides = zip((report.jax.side, report.torch.side), (uneven.error_jax[0], uneven.error_torch[0]), strict=True)
        rows.append(("rounding", " and ".join(f"{error:.1e} on the {side} side" for side, error in sides)))
    rows += _accepted(report)
    if rows:
        yield _grid(rows)
    if report.ok and report.unexercised:
        yield Text(f"  {verdict}, but nothing here exercises:")
        yield _grid([("", line) for line in report.unexercised])
    if len(groups) > 1:
        yield from _several(report, groups)
    if links := dict.fromkeys(link for group in groups[:SHOWN_GROUPS] for link in group.links):
        # One line for all findings: a report of three stays on one screen.
        yield Text(f"see {_of_one_page(links)}", style="dim")
    if report.bugs:
        yield Text(f"\nThe search for causes is incomplete. {ADVICE}", style="yellow")
        yield _grid([("", str(bug)) for bug in report.bugs])


def _of_one_page(links: Iterable[str]) -> str:
    """List links, each page once: "docs/traps.md#layernorm-epsilon, #adamw-weight-decay"."""
    pages: dict[str, list[str]] = {}
    for link in links:
        page, _, anchor = link.partition("#")
        pages.setdefault(page, []).append(f"#{anchor}")
    return ", ".join(page + ", ".join(anchors) for page, anchors in pages.items())


def _accepted(report: "Findings") -> Iterator[tuple[str, str]]:
    """List what may differ, with the user's reasons, and the entries that no longer apply."""
    for each in report.accepted:
        if each.places:
            yield "accepted", f"{each.what} ({listed(each.places, '.', SHOWN_PLACES)}): {each.reason}"
        else:
            yield (
                "accepted",
                f"{each.what} applies to nothing: no place that differs has this name. Remove or correct the entry",
            )


def _several(report: "Findings", groups: "list[Group]") -> Iterator[RenderableType]:
    """Yield the list of all groups, then each group."""
    yield Text(report.to_mend)
    for number, group in enumerate(groups[:SHOWN_GROUPS], 1):
        yield Text(f"\n{number}. {group.headline}", style=_STYLE[report.verdict])
        yield _grid(list(_rows(report, group)))
    if len(groups) > SHOWN_GROUPS:
        yield Text(f"\nand {len(groups) - SHOWN_GROUPS} more: report.others has all")


def _rounding(expected: float) -> str:
    """Say how much of a difference rounding would explain."""
    if not np.isfinite(expected):
        return ""
    return f"; rounding would explain about {expected:.0e}" if expected else "; rounding would explain none of it"


def _rows(report: "Findings", group: "Group") -> Iterator[tuple[str, str]]:
    first, largest = group.first, group.largest
    if not group.in_headline:
        yield "where", group.where
    if len(group.findings) == 1 or not group.cause:  # the JSON has the difference at each place
        apart = f"{largest.error64:.1e}" if np.isfinite(largest.error64) else "infinite"
        most = "up to " if len(group.findings) > 1 else ""
        yield "float64", f"the difference is {most}{apart}{_rounding(largest.expected64)}"
    for detail in group.details:
        yield report.side_name(detail.side), detail.text
    yield from _lines(group, (report.torch.side, report.jax.side))
    if first.opinion:
        yield "hint", first.opinion
    if group.cause:
        yield from _cause(group.explanation, "" if group.patch else group.fix)
    if group.patch:
        yield "fix", _patched(group.fix, group.patch)


def _lines(group: "Group", sides: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Show the lines of the user's code, of a long one the expression; what the patch changes stands there."""
    for key, side in zip(("torch", "jax"), sides, strict=True):
        if key == "torch" or not group.patch:
            for number, found in enumerate(group.shown_lines(key)):
                yield "" if number else f"{side} at", f"{found.source}  {line(found)}"


def _patched(fix: str, patch: "Patch") -> str:
    """Show a fix, and the first lines that its patch changes."""
    first, *others = patch.changes
    removed, added = ([line.strip() for line in lines] for _, lines in first.signed)
    if removed and added:
        removed[0], added[0] = beside(removed[0], added[0], _LONGEST)
    shown = [
        f"{sign} {_shortened(line, _LONGEST)}"
        for sign, lines in zip("-+", (removed, added), strict=True)
        for line in lines
    ]
    more = [f"and {counted(len(others), 'more change')}: --patch FILE writes all"] if others else []
    return "\n".join([f"{first.place}: {fix}", *shown, *more])


def line(of: "Line") -> str:
    """Show a line of the user's; of a long one the expression."""
    source = of.source
    if of.role is Role.GIVEN:  # what differs is computed before it, maybe on another line
        return _shortened(f"given to {source.expression}", _BESIDE)
    return source.text if len(source.text) <= _BESIDE else _shortened(source.expression, _BESIDE)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


_LONGEST = 66
"""Characters of a line of the user's that is shown."""

_BESIDE = 54
"""The same next to the name of its file."""


def _cause(explanation: str, fix: str) -> Iterator[tuple[str, str]]:
    yield "cause", explanation
    if fix:
        yield "fix", fix


def _grid(rows: list[tuple[str, str]]) -> RenderableType:
    """Labels in one column, text in another, so that what is wrapped stays in its own."""
    grid = Table.grid(padding=(0, 2))
    if any(label for label, _ in rows):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(*[Text(label, style="bold")][: len(grid.columns) - 1], Text(text))
    return Padding(grid, (0, 0, 0, 2))
