"""A report as Markdown, for a pull request's comment or a CI job's summary."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from compare.verdict.quantity import Verdict

if TYPE_CHECKING:
    from compare.report.findings import Findings
    from compare.verdict.divergence import Cause, Divergence

_SIGN = {Verdict.MATCH: "✅", Verdict.PRECISION: "≈", Verdict.MISMATCH: "❌"}


def to_markdown(report: "Findings") -> str:
    """Give the verdict, the first divergence with its cause and fix, and what was compared folded away."""
    lines = [f"### {_SIGN[report.verdict]} {_plain(report.name)}: {_plain(report.headline)}", ""]
    lines += [f"- {_plain(line)}" for line in report.nondeterministic]
    if report.divergence:
        lines += _divergence(report.divergence)
    for note in report.notes:
        lines += _cause(note)
    for other in report.others:
        lines += ["", f"**And, not because of that: {_plain(other.headline)}**", "", *_divergence(other)]
    steps = max((len(quantity.error64) for quantity in report.quantities), default=0)
    compared = f"{_count(len(report.quantities), 'tensor')} over {_count(steps, 'step')}"
    lines += [
        "",
        f"<details><summary>Compared: {compared}; not compared: {len(report.not_compared)}</summary>",
        "",
        "| stage | tensors | float64 difference | rounding explains | farthest from rounding at |",
        "|---|---|---|---|---|",
    ]
    for stage in dict.fromkeys(quantity.stage for quantity in report.quantities):
        of = [quantity for quantity in report.quantities if quantity.stage == stage]
        worst = max(of, key=lambda quantity: float(quantity.ratio.max()))
        step = int(np.argmax(worst.ratio))
        where = f"step {step}" if stage == "loss" else f"{_code(worst.torch)}, step {step}"
        apart, explained = worst.error64[step], worst.expected[step]
        lines.append(f"| {stage} | {len(of)} | {apart:.1e} | {explained:.1e} | {where} |")
    lines.append("")
    by_reason: dict[tuple[str, str], list[str]] = {}
    for side, name, reason in report.not_compared:
        by_reason.setdefault((side, reason), []).append(_code(name))
    lines += [
        f"- not compared on the {_plain(side)} side, {_plain(reason)}: {', '.join(names)}"
        for (side, reason), names in by_reason.items()
    ]
    lines += [f"- not lifted to float64: {_code(what)}" for what in report.pinned]
    lines += [f"- the search for causes is incomplete: {_code(str(bug))}" for bug in report.bugs]
    versions = report.settings.get("versions", {})
    lines += ["", _plain(", ".join(f"{name} {version}" for name, version in versions.items())), "", "</details>"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _divergence(divergence: "Divergence") -> Iterator[str]:
    yield f"- torch {_code(divergence.torch)}, JAX {_code(divergence.jax)}: {divergence.error64:.1e} apart in float64"
    for line in divergence.details:
        side, _, layer = line.partition("  ")
        yield f"- {side} {_code(layer)}" if layer else f"- {_plain(line)}"
    if divergence.opinion:
        yield f"- {_plain(divergence.opinion)}"
    if divergence.cause:
        yield from _cause(divergence.cause)


def _cause(cause: "Cause") -> Iterator[str]:
    yield f"- cause: {_plain(cause.explanation)}"
    if cause.fix:
        yield f"- **fix:** {_plain(cause.fix)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _plain(text: str) -> str:
    """Escape what Markdown would take for its own: names have underscores, stars and brackets."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"
