"""The map of digits of agreement: tensors down in order of computation, steps across, and one tensor's figures."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.report.html.parts import short, table
from compare.verdict.quantity import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings
    from compare.verdict.quantity import Quantity

_FIGURES = (
    ("digits", "digits that agree"),
    ("error64", "float64 difference"),
    ("expected", "rounding explains"),
    ("torch32", "float32 rounding, {torch}"),
    ("jax32", "float32 rounding, {jax}"),
)


def agreement(report: "Findings") -> Iterator[str]:
    """Give the section; the script draws the map, from `data`."""
    if not report.quantities:
        return
    sides = {"torch": escape(report.torch.side), "jax": escape(report.jax.side)}
    figures = "".join(
        f'<div><dt>{label.format(**sides)}</dt><dd data-figure="{name}"></dd></div>' for name, label in _FIGURES
    )
    differs = "".join(
        f'<span><i class="{look}"></i> {meaning}</span>'
        for look, meaning, decides in (
            ("wrong", "differs: more than rounding explains", True),
            ("follows", "differs inside the model, which alone is no mismatch", False),
        )
        if any(quantity.decides == decides and (quantity.ratio > FACTOR).any() for quantity in report.quantities)
    )
    first = '<button type="button" id="first">Go to the first divergence</button>' if report.divergence else ""
    yield (
        "<section><h2>Digits of agreement</h2>"
        '<p class="dim">How many digits of each tensor agree in float64. Tensors go down in order of computation, '
        "steps across. Choose a square with a click or the arrow keys to see its figures.</p>"
        '<p class="legend"><span class="scale">0 <i></i> 16 digits</span>'
        f'{differs}</p>{first}<div class="agreement">'
        '<div id="map" tabindex="0" role="application" aria-describedby="figures" '
        'aria-label="Map of agreement. The arrow keys choose a tensor and a step."></div>'
        '<aside id="figures" aria-live="polite"><p class="dim" data-figure="place"></p>'
        '<p><code data-figure="torch"></code><br><code data-figure="jax"></code></p>'
        f'<p data-figure="verdict"></p><dl>{figures}</dl><div id="course"></div></aside></div></section>'
    )


def stages(report: "Findings") -> Iterator[str]:
    """Say in words and numbers what the map shows in colours: one row a stage."""
    rows = []
    for stage in report.by_stage():
        where = f"step {stage.step}"
        if stage.stage != "loss":
            where = f"<code>{escape(stage.worst.torch)}</code>, {where}"
        wrong = stage.differing
        found = f'<span class="mismatch">✗ {wrong} differ{"s" if wrong == 1 else ""}</span>'
        rows.append(
            (
                escape(stage.stage),
                str(stage.tensors),
                found if wrong else '<span class="match">✓ all agree</span>',
                short(stage.error64),
                short(stage.expected64),
                where,
            )
        )
    if rows:
        headings = (
            "stage",
            "tensors",
            "found",
            "float64 difference",
            "rounding explains",
            "farthest from rounding at",
        )
        yield table("What was compared", headings, rows)


def data(report: "Findings") -> dict[str, Any]:
    """What the script needs, as short as it can be: numbers are 16 bits of their logarithm."""
    steps = report.steps
    error64, expected, torch32, jax32 = (
        np.full((len(report.quantities), steps), np.nan) for _ in ("error64", "expected", "torch32", "jax32")
    )
    wrong = np.zeros(error64.shape, bool)
    for row, quantity in enumerate(report.quantities):
        length = len(quantity.error64)
        error64[row, :length], ratio = quantity.error64, quantity.ratio
        # Where float32 has no correct digit left, rounding explains everything.
        powerless = (ratio == 0) & (error64[row, :length] > 0)
        expected[row, :length] = np.where(powerless, np.inf, quantity.expected[:length])
        wrong[row, :length] = ratio > FACTOR
        torch32[row, :length] = quantity.error_torch[:length]
        jax32[row, : len(quantity.error_jax)] = quantity.error_jax[:length]
    return {
        "factor": FACTOR,
        "steps": steps,
        "tensors": [
            [quantity.stage, quantity.torch, "" if quantity.jax == quantity.torch else quantity.jax, quantity.decides]
            for quantity in report.quantities
        ],
        # Rounded away from each other, or toward: what is wrong stays so, and what is right.
        "error64": _packed(error64, wrong),
        "expected": _packed(expected, ~wrong),
        "torch32": _packed(torch32, wrong),
        "jax32": _packed(jax32, wrong),
        "first": _first(report),
    }


def _packed(values: np.ndarray, upward: np.ndarray) -> str:
    """Code 0 is zero, 65534 infinity and 65535 nothing; else it is a thousand times the logarithm, plus 30000."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = 1000 * (np.log10(values) + 30)
        coded = np.clip(np.where(upward, np.ceil(exact), np.floor(exact)), 1, 60000)
    coded = np.select([np.isnan(values), np.isinf(values), values == 0], [65535, 65534, 0], coded)
    return base64.b64encode(coded.astype("<u2").tobytes()).decode()


def _first(report: "Findings") -> list[int] | None:
    """Give the row and the step of the first divergence."""
    divergence = report.divergence
    if divergence is None:
        return None
    row = first_differing(report.quantities, divergence.stage, divergence.step)
    return None if row is None else [row, divergence.step]


def first_differing(quantities: "Sequence[Quantity]", stage: str, step: int) -> int | None:
    """Find the first quantity of a stage that differs at a step."""
    for row, quantity in enumerate(quantities):
        if quantity.stage == stage and step < len(quantity.error64) and quantity.ratio[step] > FACTOR:
            return row
    return None
