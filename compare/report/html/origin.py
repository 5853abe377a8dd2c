"""Where a difference begins, as the page marks it: the first divergence, or what first rounds more on one side."""

from typing import TYPE_CHECKING

from compare.verdict.ratio import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings


def mark(report: "Findings") -> str:
    """Say what begins there."""
    return "first divergence" if report.divergence else "first uneven rounding"


def first_square(report: "Findings") -> list[int] | None:
    """Return the row and the step of the map; None where nothing differs."""
    divergence = report.divergence
    if divergence is None:
        uneven = report.uneven if report.ok else None
        return None if uneven is None else [report.quantities.index(uneven), 0]
    for row, quantity in enumerate(report.quantities):
        if (
            quantity.stage == divergence.stage
            and (quantity.ratio[divergence.step : divergence.step + 1] > FACTOR).any()
        ):
            return [row, divergence.step]
    return None


def first_names(report: "Findings") -> tuple[str, str]:
    """Name what the trees mark on the torch and on the JAX side; "" where there is nothing."""
    if report.divergence:
        return report.divergence.torch, report.divergence.jax
    if report.ok and report.uneven:
        # An input belongs to no module: the one that takes it is marked.
        names = report.uneven.torch, report.uneven.jax
        torch, jax = (
            next(iter(of), name.rpartition(" ")[0]) for of, name in zip(report.uneven.subjects, names, strict=True)
        )
        return torch, jax
    return "", ""
