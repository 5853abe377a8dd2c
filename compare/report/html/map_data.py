"""What the page's map of digits of agreement is drawn from: one number a tensor and step, which report.js reads."""

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.report.html.origin import first_square, mark
from compare.verdict.ratio import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings


def differing(report: "Findings") -> set[bool]:
    """Return which looks of a square the legend must explain: of tensors that decide (True), and of others (False)."""
    return {quantity.decides for quantity in report.quantities if (quantity.ratio > FACTOR).any()}


def map_data(report: "Findings") -> dict[str, Any]:
    """Return tensors in order of computation, and for each step what the script shows of them.

    A run of 100 tensors and 1000 steps has 400,000 numbers. A square shows two or three digits of each, so 16 bits of
    the logarithm do, and keep such a page below 5 MB: see `_packed`.
    """
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
        "first": first_square(report),
        "mark": mark(report),
    }


def _packed(values: np.ndarray, upward: np.ndarray) -> str:
    """Code 0 is zero, 65534 infinity and 65535 nothing; else it is a thousand times the logarithm, plus 30000."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # From 1e-30 to 1e30 in steps of 0.23 %. Rounding is directed, so that a coded ratio never crosses the
        # verdict's limit.
        exact = 1000 * (np.log10(values) + 30)
        coded = np.clip(np.where(upward, np.ceil(exact), np.floor(exact)), 1, 60000)
    coded = np.select([np.isnan(values), np.isinf(values), values == 0], [65535, 65534, 0], coded)
    return base64.b64encode(coded.astype("<u2").tobytes()).decode()
