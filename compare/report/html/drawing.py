"""The losses as a drawing within the page: matplotlib's SVG, in the page's colours and letters."""

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib

from compare.report.plot import DIVERGENCE, FLOAT32, FLOAT64, GRID, JAX, NOTE, TEXT, TORCH, plot_losses

if TYPE_CHECKING:
    from compare.report.findings import Findings

_SIZES = {"wide": (7.4, 3.6), "narrow": (4.7, 4.4)}
"""In inches; a page shows the one that fits its width."""

_VARIABLES = {
    TORCH: "--torch",
    JAX: "--jax",
    FLOAT32: "--fair",
    FLOAT64: "--good",
    DIVERGENCE: "--bad",
    GRID: "--line",
    TEXT: "--text",
    NOTE: "--dim",
    "#000000": "--text",
}
"""The variable of report.css for each colour of a plot: a dark page has other colours."""


def drawings(report: "Findings") -> dict[str, str]:
    """Draw the losses for a wide and for a narrow screen; a single step has no course to draw."""
    if len(report.torch.losses32) < 2:
        return {}
    return {screen: _drawing(report, size) for screen, size in _SIZES.items()}


def _drawing(report: "Findings", size: tuple[float, float]) -> str:
    file = io.StringIO()
    # matplotlib makes the ids within a drawing from the salt. Two drawings on one page must not share them.
    # Points that lie within half a point of the line between others are left out.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": str(size), "path.simplify_threshold": 0.5}
    with matplotlib.rc_context(settings):
        plot_losses(report, size).savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawing = file.getvalue()
    # matplotlib names groups "axes_1" and so on, the same in every drawing. Nothing refers to these.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing[drawing.index("<svg") :])
    drawing = re.sub(r' d="[^"]*"', lambda path: _shortened(path[0]), drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return drawing


def _shortened(path: str) -> str:
    """Write the coordinates of a path to a tenth of a point, which is less than a pixel: a long run has thousands."""
    rounded = re.sub(r"(\.\d)\d+", r"\1", path).replace(".0 ", " ")
    return re.sub(r"\s*([ML])\s*", r"\1", rounded)
