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

    A run of 100 tensors and 1000 steps has 400,000 numbers. A square shows two digits of each, so 12 bits of the
    logarithm do, and keep such a page below 1 MB: see `_packed`.
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


_LEAST, _STEPS = -20, 160
"""The logarithm of the smallest number that is coded, and the codes for each power of ten: 1.5 % apart, up to 3e5."""

_INFINITY, _NOTHING = 4094, 4095


def _packed(values: np.ndarray, upward: np.ndarray) -> str:
    """Code 0 is zero, 4094 infinity and 4095 nothing; the others are logarithms. Two codes are three bytes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # Rounding is directed, so that a coded ratio never crosses the verdict's limit.
        exact = _STEPS * (np.log10(values) - _LEAST) + 1
        coded = np.clip(np.where(upward, np.ceil(exact), np.floor(exact)), 1, _INFINITY - 1)
    coded = np.select([np.isnan(values), np.isinf(values), values == 0], [_NOTHING, _INFINITY, 0], coded)
    codes = coded.astype(np.uint16).ravel()
    first, second = np.append(codes, np.zeros(codes.size % 2, np.uint16)).reshape(-1, 2).T
    three = np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], axis=1)
    return base64.b64encode(three.astype(np.uint8).tobytes()).decode()
