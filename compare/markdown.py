"""A report as Markdown, for a pull request's comment or a CI job's summary."""

from typing import TYPE_CHECKING

from compare.verdict import Verdict

if TYPE_CHECKING:
    from compare.report import Report

_SIGN = {Verdict.MATCH: "✅", Verdict.PRECISION: "≈", Verdict.MISMATCH: "❌"}


def to_markdown(report: "Report") -> str:
    """Give the verdict, the first divergence with its cause and fix, and the stages folded away."""
    lines = [f"### {_SIGN[report.verdict]} {report.name}: {report.verdict}", ""]
    lines += [f"- nondeterministic: {line}" for line in report.nondeterministic]
    for title, each in (
        ("First divergence", report.divergence),
        *(("And by itself", other) for other in report.others),
    ):
        if each is None:
            continue
        names = f"`{each.torch}`" + (f" / `{each.jax}`" if each.jax != each.torch else "")
        lines.append(f"**{title}: step {each.step}, {each.stage}, {names}**, float64 difference {each.error64:.1e}")
        lines += [f"- `{line}`" for line in (*each.details, each.opinion) if line]
        if each.cause:
            lines += [f"- cause: {each.cause.explanation}", f"- fix: `{each.cause.fix}`"]
        lines.append("")
    lines += [f"- {note.name}: {note.explanation}" for note in report.notes]
    lines += [
        "<details><summary>What was compared</summary>",
        "",
        "| stage | tensors | largest float64 difference | worst ratio |",
        "|---|---|---|---|",
    ]
    for stage in dict.fromkeys(quantity.stage for quantity in report.quantities):
        of = [quantity for quantity in report.quantities if quantity.stage == stage]
        apart = max(max(quantity.error64) for quantity in of)
        lines.append(f"| {stage} | {len(of)} | {apart:.1e} | {max(float(q.ratio.max()) for q in of):.2g} |")
    lines += ["", f"{len(report.not_compared)} not compared", "", "</details>"]
    return "\n".join(lines) + "\n"
