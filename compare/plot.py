"""Pictures of what was found. Nothing is shown: each function gives a matplotlib figure."""

import numpy as np
from matplotlib.figure import Figure

from compare.published import Reproduction
from compare.report import Report, float32_differences

_TORCH, _JAX, _BAND = "#c43d1b", "#1c5fa8", "#9aa5b1"
_FLOAT32, _FLOAT64 = "#8a5a00", "#2b7a4b"


def plot_reports(reports: list[Report]) -> Figure:
    """Draw, for each report, both sides' losses over each other, and below them their differences per step."""
    figure = Figure(figsize=(max(3.1 * len(reports), 5.0), 5.6), layout="constrained")
    axes = figure.subplots(2, len(reports), squeeze=False, sharex="col", sharey="row")
    for losses, differences, report in zip(*axes, reports, strict=True):
        losses.set_title(f"{report.name}: {report.verdict}")
        losses.plot(report.torch.losses32, color=_TORCH, linewidth=4, alpha=0.45, label=report.torch.side)
        losses.plot(report.jax.losses32, color=_JAX, linewidth=1.2, label=report.jax.side)
        losses.set_yscale("log")
        losses.legend()
        for dtype, colour, values in (
            (np.float32, _FLOAT32, float32_differences(report)),
            (np.float64, _FLOAT64, report.loss.error64),
        ):
            # A logarithmic axis has no zero: equal losses are drawn at their dtype's machine epsilon.
            differences.plot(np.maximum(values, np.finfo(dtype).eps), color=colour, label=dtype.__name__)
        differences.set_yscale("log")
        differences.set_xlabel("step")
        differences.legend()
        if report.divergence:
            differences.axvline(report.divergence.step, color="black", linestyle=":")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("relative difference of the losses")
    return figure


def plot_published(reproductions: list[Reproduction]) -> Figure:
    """Draw, for each cell, the published losses over the band of the reproduced ones."""
    figure = Figure(figsize=(3.1 * len(reproductions), 3.6), layout="constrained")
    for axis, cell in zip(figure.subplots(1, len(reproductions), squeeze=False)[0], reproductions, strict=True):
        steps = np.arange(len(cell.printed))
        low, median, high = np.quantile(cell.losses, (0, 0.5, 1), axis=0)
        axis.fill_between(steps, low, high, color=_BAND, alpha=0.4, label=f"range of {len(cell.losses)} seeds")
        axis.plot(steps, median, color=_BAND, label="their median")
        axis.plot(steps, cell.printed, ".", color=_TORCH, markersize=4, label="published")
        axis.set_yscale("log")
        axis.set_title(cell.cell)
        axis.set_xlabel("step")
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend()
    return figure
