"""A report as Markdown, for a pull request's comment or a CI job's summary."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compare.report.findings import SHOWN_GROUPS
from compare.step.stage import Stage
from compare.verdict.divergence import DetailKind
from compare.verdict.ratio import Verdict

if TYPE_CHECKING:
    from compare.report.findings import Findings
    from compare.report.groups import Group

_SIGN = {Verdict.MATCH: "✅", Verdict.PRECISION: "≈", Verdict.MISMATCH: "❌"}


def to_markdown(report: "Findings") -> str:
    """Return the verdict, the first divergence with its cause and fix, and what was compared folded away."""
    lines = [f"### {_SIGN[report.verdict]} {_plain(report.name)}: {_plain(report.headline)}", ""]
    lines += [f"- {_plain(line)}" for line in report.nondeterministic]
    for reason in report.unproved:
        lines += _cause(reason.explanation, reason.fix)
    if report.ok:
        lines += [f"- nothing here exercises {_plain(line)}" for line in report.unexercised]
    groups = report.groups
    if len(groups) == 1:
        lines += _group(report, groups[0])
    for each in report.accepted:
        where = ", ".join(map(_code, each.places)) or "applies to nothing: remove or correct the entry"
        lines.append(f"- accepted: {_code(each.what)}, {_plain(each.reason)}: {where}")
    for note in report.notes:
        lines += _cause(note.explanation, note.fix)
    if len(groups) > 1:
        lines += [_plain(report.to_mend)]
        for number, group in enumerate(groups[:SHOWN_GROUPS], 1):
            lines += ["", f"**{number}. {_plain(group.headline)}**", "", *_group(report, group)]
    lines += [
        "",
        f"<details><summary>Compared: {report.compared}; not compared: {len(report.not_compared)}</summary>",
        "",
        "| stage | tensors | float64 difference | rounding explains | largest ratio at |",
        "|---|---|---|---|---|",
    ]
    for stage in report.by_stage():
        where = f"step {stage.step}" if stage.stage == Stage.LOSS else f"{_code(stage.worst.torch)}, step {stage.step}"
        lines.append(f"| {stage.stage} | {stage.tensors} | {stage.error64:.1e} | {stage.expected64:.1e} | {where} |")
    lines.append("")
    lines += [
        f"- not compared on the {_plain(side)} side, {_plain(reason)}: {', '.join(map(_code, names))}"
        for side, reason, names in report.left_out()
    ]
    lines += [f"- not run in float64: {_code(what)}" for what in report.pinned]
    lines += [f"- the search for causes is incomplete: {_code(str(bug))}" for bug in report.bugs]
    versions = report.settings.get("versions", {})
    lines += ["", _plain(", ".join(f"{name} {version}" for name, version in versions.items())), "", "</details>"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _group(report: "Findings", group: "Group") -> Iterator[str]:
    first, largest = group.first, group.largest
    if len(group.findings) == 1:
        yield f"- torch {_code(first.torch)}, JAX {_code(first.jax)}: {first.error64:.1e} apart in float64"
    else:
        yield f"- {_code(group.where)}: up to {largest.error64:.1e} apart in float64"
    for detail in group.details:
        is_layer = detail.kind == DetailKind.LAYER
        yield f"- {report.side_name(detail.side)} {_code(detail.text)}" if is_layer else f"- {_plain(detail.text)}"
    for side in ("torch", "jax"):
        yield from (f"- {_code(str(at.source))}: {_code(at.source.text)}" for at in group.shown_lines(side))
    if first.opinion:
        yield f"- {_plain(first.opinion)}"
    if group.cause:
        yield f"- cause: {_plain(group.explanation)}"
    if group.patch:
        yield from ("- **fix:**", "", *_block("diff", group.patch.diff))
    elif group.cause and group.fix:
        yield from _fix(group)
    if group.links:
        yield f"- see {', '.join(map(_code, group.links))}"


def _fix(group: "Group") -> Iterator[str]:
    """Yield a fix that is code as a block of it, and words as words."""
    if group.codes and group.fix == "; ".join(map(str, group.codes)):
        yield from ("- **fix:**", "", *_block("python", group.fix.replace("; ", "\n")))
    else:
        yield f"- **fix:** {_plain(group.fix)}"


def _block(language: str, text: str) -> Iterator[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    yield from (f"{fence}{language}", text.rstrip("\n"), fence, "")


def _cause(explanation: str, fix: str) -> Iterator[str]:
    yield f"- cause: {_plain(explanation)}"
    if fix:
        yield f"- **fix:** {_plain(fix)}"


def _plain(text: str) -> str:
    """Escape what Markdown would take for its own: names have underscores, stars and brackets."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _code(text: str) -> str:
    # CommonMark: a code span with a backtick in it needs a longer fence.
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"
