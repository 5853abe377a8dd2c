"""Figures of both sides' losses and of their differences."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compare.errors import InputError
from compare.report.findings import Findings, float32_differences

TORCH, JAX, FLOAT32, FLOAT64 = "#c43d1b", "#1c5fa8", "#8a5a00", "#0b6b50"

DIVERGENCE, GRID, TEXT, NOTE = "#b42318", "#dddddc", "#1c1e21", "#5b6169"
"""A page that shows a plot in light and in dark gives each of these colours a name, and its own value."""


def plot_reports(reports: list[Findings]) -> Figure:
    """Draw, for each report, both sides' losses over each other, and below them their differences per step.

    Raises:
        InputError: If a report has no losses, because only the forward pass was compared.

    """
    if without := [report.name for report in reports if not len(report.torch.losses32)]:
        raise InputError(f"{', '.join(without)}: no losses to plot; give both sides a loss")
    figure = Figure(figsize=(max(3.1 * len(reports), 7.0), 5.6), layout="constrained")
    axes = figure.subplots(2, len(reports), squeeze=False, sharex="col", sharey="row")
    for (losses, differences), report in zip(axes.T, reports, strict=True):
        losses.set_title(f"{report.name}: {report.verdict}", parse_math=False, pad=26)
        _draw_losses(losses, report)
        _draw_differences(differences, report)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("relative difference")
    return figure


def plot_losses(report: Findings, size: tuple[float, float]) -> Figure:
    """Draw the same of one report for a page that has a heading of its own; `size` is in inches."""
    figure = Figure(figsize=size, layout="constrained")
    losses, differences = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, report)
    _draw_differences(differences, report)
    losses.set_ylabel("loss")
    differences.set_ylabel("relative difference")
    figure.align_ylabels()
    return figure


def _draw_losses(axes: Axes, report: Findings) -> None:
    # Torch's line is broad and pale, so that it shows on both sides of JAX's where they are one over the other.
    for run, colour, look in ((report.torch, TORCH, (5, 0.4)), (report.jax, JAX, (1.4, 1))):
        width, alpha = look
        axes.plot(run.losses32, _marker(run.losses32), color=colour, linewidth=width, alpha=alpha, label=run.side)
    if report.divergence:
        axes.axvline(report.divergence.step, color=DIVERGENCE, linestyle=(0, (2, 2)), label="first divergence")
    seen = np.concatenate([run.losses32 for run in (report.torch, report.jax)])
    seen = seen[np.isfinite(seen)]
    if seen.size and 0 < 5 * seen.min() < seen.max():
        axes.set_yscale("log")
    _dress(axes)


def _draw_differences(axes: Axes, report: Findings) -> None:
    for dtype, colour, values in (
        (np.float32, FLOAT32, float32_differences(report)),
        (np.float64, FLOAT64, np.asarray(report.loss.error64)),
    ):
        # A logarithmic axis has no zero: equal losses are drawn at their dtype's machine epsilon.
        drawn = np.maximum(values, np.finfo(dtype).eps)
        axes.plot(drawn, _marker(drawn), color=colour, linewidth=1.4, label=dtype.__name__)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if report.divergence:
        axes.axvline(report.divergence.step, color=DIVERGENCE, linestyle=(0, (2, 2)))
    _dress(axes)


def _marker(values: np.ndarray) -> str:
    return "o-" if len(values) == 1 else "-"


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=GRID, labelcolor=NOTE)
    axes.margins(x=0.01)
    # Over the axes, where it hides nothing.
    axes.legend(frameon=False, labelcolor=TEXT, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
