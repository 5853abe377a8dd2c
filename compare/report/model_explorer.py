"""The model as a graph for Google's Model Explorer: modules in order of execution, with digits of agreement.

Its JSON adapter reads `graph`, and it shows `node_data` on that graph. Their nodes have the same ids: the paths
of the torch modules.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.step.stage import Stage
from compare.verdict.ratio import FACTOR

if TYPE_CHECKING:
    from compare.report.findings import Findings

DIGITS = 16
"""Of a float64 number; what is equal agrees in all."""

_GRAPH = "model"

_COLOURS = [{"stop": 0, "bgColor": "#d73027"}, {"stop": 0.5, "bgColor": "#fee08b"}, {"stop": 1, "bgColor": "#1a9850"}]


def graph(report: "Findings") -> dict[str, Any]:
    """Return the modules that have an output as a collection of one graph.

    An edge leads to the module that runs next, since a check sees what modules take and give, and not which operations
    are between them.
    """
    states, nodes, before = _states(report), [], ""
    for path, kind in report.modules[0].items():
        if path not in states:
            continue
        digits, differs, jax = states[path]
        parent, _, label = path.rpartition(".")
        attributes = {"class": kind, "JAX side": jax, "digits of agreement": f"{digits:.1f}"}
        attributes |= {"difference": "more than rounding"} if differs else {}
        nodes.append(
            {
                "id": path,
                "label": f"{label}: {kind}" if kind else label,
                "namespace": parent.replace(".", "/"),
                "attrs": [{"key": key, "value": value} for key, value in attributes.items()],
                "incomingEdges": [{"sourceNodeId": before}] if before else [],
            }
        )
        before = path
    return {"label": report.name, "graphs": [{"id": _GRAPH, "nodes": nodes}]}


def node_data(report: "Findings") -> dict[str, Any]:
    """Return the digits to which both sides agree at each node of `graph`."""
    results = {path: {"value": round(digits, 2)} for path, (digits, _, _) in _states(report).items()}
    return {_GRAPH: {"results": results, "gradient": _COLOURS}}


def _states(report: "Findings") -> dict[str, tuple[float, bool, str]]:
    """Return for each module its digits, whether its output differs by more than rounding, and the JAX side's module.

    They are those of the first step that differs, or of the step at which the module is farthest from torch's.
    """
    found: dict[str, tuple[float, bool, str]] = {}
    for quantity in report.quantities:
        ours, theirs = quantity.subjects
        if quantity.stage != Stage.FORWARD or not ours or not ours[0]:
            continue
        step = report.divergence.step if report.divergence else int(np.argmax(quantity.ratio))
        if step < len(quantity.error64):
            digits = _digits(quantity.error64[step])
            if ours[0] not in found or digits < found[ours[0]][0]:
                found[ours[0]] = digits, bool(quantity.ratio[step] > FACTOR), "".join(theirs[:1])
    return found


def _digits(error: float) -> float:
    if not math.isfinite(error):
        return 0.0
    return DIGITS if error == 0 else min(max(-math.log10(error), 0.0), DIGITS)
