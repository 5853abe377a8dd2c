"""The page: what matters first, then pictures, then everything."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import matplotlib

from compare.bugs import ADVICE
from compare.report.findings import SHOWN_GROUPS, float32_difference
from compare.report.groups import SHOWN_PLACES
from compare.report.html.agreement import agreement, data, stages
from compare.report.html.parts import code, prose, short, table
from compare.report.html.trees import trees
from compare.report.plot import DIVERGENCE, FLOAT32, FLOAT64, GRID, JAX, NOTE, TEXT, TORCH, plot_losses
from compare.report.wording import SIGN
from compare.verdict.quantity import Verdict

if TYPE_CHECKING:
    from compare.report.findings import Findings
    from compare.report.groups import Group
    from compare.verdict.divergence import Cause

_MEANING = {
    Verdict.MATCH: "The same program: nothing differs by more than rounding.",
    Verdict.PRECISION: "The same mathematics, with one side at lower precision.",
    Verdict.MISMATCH: "A different program: the port has a bug.",
}


def to_html(report: "Findings") -> str:
    """Give the page as text."""
    style, script = (
        (files("compare.report.html") / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    # Nothing but this script may run and nothing may be fetched, whatever the names in a report hold.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:"
    title = f"{SIGN[report.verdict]} {escape(report.name)}: {report.verdict}"
    sections = (*_findings(report), *_losses(report), *agreement(report), *stages(report), *trees(report))
    tables = (*_not_compared(report), *_settings(report))
    values = json.dumps(data(report), separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head>\n'
        f"<body><main>{_header(report)}{''.join(sections)}{''.join(tables)}</main>\n"
        f'<script id="data" type="application/json">{values}</script>\n<script>{script}</script></body></html>\n'
    )


def _header(report: "Findings") -> str:
    verdict = report.verdict
    meaning = "Nothing is proved: the run does not repeat itself." if report.nondeterministic else _MEANING[verdict]
    what = f"{report.compared}, each in float32 and in float64"
    return (
        f'<header><p class="dim">{escape(report.torch.side)} against {escape(report.jax.side)}: {what}</p>'
        f"<h1>{escape(report.name)}</h1>"
        f'<p class="verdict {verdict}"><strong>{SIGN[verdict]} {verdict}</strong> <span>{meaning}</span></p></header>'
    )


def _findings(report: "Findings") -> Iterator[str]:
    for line in report.nondeterministic:
        yield f'<section class="card mismatch"><h2>Nondeterministic</h2><p>{prose(line)}</p></section>'
    groups = report.groups
    if to_mend := report.to_mend:
        yield f'<p class="to-mend">{prose(to_mend)}</p>'
    for number, group in enumerate(groups[:SHOWN_GROUPS], 1):
        title = "First divergence" if report.divergence in group.findings else "Independent difference"
        yield _group(report, group, f"{number}. {title}" if len(groups) > 1 else title)
    if len(groups) > SHOWN_GROUPS:
        yield f"<p>And {len(groups) - SHOWN_GROUPS} more: the JSON has all.</p>"
    uneven = report.uneven
    if uneven and report.ok and not report.notes:
        yield (
            f'<section class="card precision"><h2>Rounds more on one side</h2><p>First at {code(uneven.torch)}: its '
            f"float32 rounding is {uneven.error_jax[0]:.1e} on the {escape(report.jax.side)} side and "
            f"{uneven.error_torch[0]:.1e} on the {escape(report.torch.side)} side.</p></section>"
        )
    for note in report.notes:
        yield (
            f'<section class="card precision"><h2>Precision: {escape(note.name)}</h2>'
            f"<h3>Cause</h3><p>{prose(note.explanation)}</p>"
            f"{_fix(f'<p>{prose(note.fix)}</p>', note.fix)}{_source(note)}</section>"
        )


def _group(report: "Findings", group: "Group", title: str) -> str:
    first, largest, several = group.first, group.largest, len(group.findings) > 1
    sides = (report.torch.side, report.jax.side)
    rows = [[name, code(group.named(side, SHOWN_PLACES))] for side, name in enumerate(sides)]
    if group.same_names:
        rows = [["", rows[0][1]]]
    rest = []
    for line in filter(None, (*group.details, first.opinion)):
        side, _, layer = line.partition("  ")
        row = next((row for row in rows if row[0] == side and layer), None)
        if row:
            row[1] += f"<br>{code(layer, 'dim')}"
        else:
            rest.append(f"<p>{prose(line)}</p>")
    places = "".join((f"<dt>{escape(side)}</dt>" if side else "") + f"<dd>{name}</dd>" for side, name in rows)
    when = escape(f"step {group.step}, {first.stage}" + (f", {group.summary}" if group.name or several else ""))
    most = "The largest float64 difference" if several else "The float64 difference"
    found = (
        f'<section class="card mismatch"><h2>{title} <small>{when}</small></h2>'
        f'<dl class="sides">{places}</dl>'
        f"<p>{most} is <b>{short(largest.error64)}</b>. Rounding would be about {largest.expected64:.0e}.</p>"
        f"{''.join(rest)}"
    )
    if cause := group.cause:
        found += f"<h3>Cause</h3><p>{prose(group.explanation)}</p>"
        found += _fix(f"<pre>{escape(group.fix)}</pre>", group.fix) + _source(cause)
    return found + "</section>"


def _fix(shown: str, fix: str) -> str:
    return f"<h3>Fix</h3>{shown}" if fix else ""


def _source(cause: "Cause") -> str:
    """Link to where the convention is documented; of several places, the first."""
    address = cause.source.split(", ")[0]
    if not address.startswith("https://"):
        return ""
    return (
        f'<p class="dim">Documented at <a href="{escape(address)}">{escape(address.removeprefix("https://"))}</a></p>'
    )


def _losses(report: "Findings") -> Iterator[str]:
    if not len(report.torch.losses32):
        return
    sides = escape(report.torch.side), escape(report.jax.side)
    found = (
        f"Largest relative difference of the two losses: {short(float32_difference(report))} in float32, "
        f"{short(max(report.loss.error64))} in float64."
    )
    label = f"The losses of {sides[0]} and {sides[1]} at each step, and their differences. {found}"
    drawn = "".join(
        f'<div class="plot {screen}" role="img" aria-label="{label}">{_svg(report, size)}</div>'
        for screen, size in (("wide", (10.5, 5.2)), ("narrow", (4.7, 5.2)))
    )
    yield f'<section><h2>Losses</h2><p class="dim">{found}</p>{drawn}</section>'


_NAMED = {
    TORCH: "--torch",
    JAX: "--jax",
    FLOAT32: "--fair",
    FLOAT64: "--good",
    DIVERGENCE: "--bad",
    GRID: "--line",
    TEXT: "--text",
    NOTE: "--dim",
    "#000000": "--text",
}


def _svg(report: "Findings", size: tuple[float, float]) -> str:
    """Draw the losses with the page's own colours and letters."""
    file = io.StringIO()
    # Names within the drawing come from the salt, and two drawings are on the page.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": str(size)}
    with matplotlib.rc_context(settings):
        plot_losses(report, size).savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawing = file.getvalue()
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing[drawing.index("<svg") :])
    for colour, name in _NAMED.items():
        drawing = drawing.replace(colour, f"var({name})")
    return drawing


def _not_compared(report: "Findings") -> Iterator[str]:
    rows = [(escape(side), _names(names), escape(reason)) for side, reason, names in report.left_out()]
    if rows:
        yield table("Not compared", ("side", "what", "why"), rows)
    if report.pinned:
        lines = "".join(f"<li>{code(line)}</li>" for line in report.pinned)
        yield f"<section><h2>Not lifted to float64</h2><ul>{lines}</ul></section>"
    if report.bugs:
        lines = "".join(f"<li>{code(str(bug))}</li>" for bug in report.bugs)
        yield f"<section><h2>The search for causes is incomplete</h2><p>{ADVICE}</p><ul>{lines}</ul></section>"


def _names(names: list[str]) -> str:
    listed = "<br>".join(map(code, names))
    return listed if len(names) <= 3 else f"<details><summary>{len(names)} tensors</summary>{listed}</details>"


def _settings(report: "Findings") -> Iterator[str]:
    rows = []
    for key, value in report.settings.items():
        several = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(escape(f"{name or key}".replace("_", " ")), code(str(each))) for name, each in several]
    if rows:
        yield table("To run it again", ("setting", "value"), rows, look="pairs")
