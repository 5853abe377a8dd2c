"""The figure of the published losses among reproduced ones."""

import numpy as np
from matplotlib.figure import Figure

from compare.notebook.published import Reproduction
from compare.report.plot import TORCH

_BAND = "#9aa5b1"


def plot_published(reproductions: list[Reproduction]) -> Figure:
    """Draw, for each cell, the published losses over the band of the reproduced ones."""
    figure = Figure(figsize=(3.1 * len(reproductions), 3.6), layout="constrained")
    for axis, cell in zip(figure.subplots(1, len(reproductions), squeeze=False)[0], reproductions, strict=True):
        steps = np.arange(len(cell.printed))
        low, median, high = np.quantile(cell.losses, (0, 0.5, 1), axis=0)
        axis.fill_between(steps, low, high, color=_BAND, alpha=0.4, label=f"range of {len(cell.losses)} seeds")
        axis.plot(steps, median, color=_BAND, label="their median")
        axis.plot(steps, cell.printed, ".", color=TORCH, markersize=4, label="published")
        axis.set_yscale("log")
        axis.set_title(cell.cell)
        axis.set_xlabel("step")
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend()
    return figure
