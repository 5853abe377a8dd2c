"""Proves a JAX/Flax port of a PyTorch training program right, or says where it first goes wrong.

>>> import compare
>>> compare.notebook.run("manual", steps=3).verdict
<Verdict.MATCH: 'match'>

Each name is imported when it is first used, so that importing the package loads neither framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compare import notebook
    from compare.comparison.check import check
    from compare.conversion import copy_weights
    from compare.errors import InputError
    from compare.faults.power import power
    from compare.jax_side.program import JaxProgram
    from compare.jax_side.side import Flax, Jax
    from compare.notebook.problem import Problem, draw
    from compare.notebook.programs import Altered, altered
    from compare.report.power import Power
    from compare.report.progress import Progress
    from compare.report.report import Report
    from compare.torch_side.program import TorchProgram
    from compare.torch_side.side import Torch
    from compare.verdict.divergence import Cause, Divergence
    from compare.verdict.ratio import Verdict

if TYPE_CHECKING:
    __version__: str

_PLACES = {
    "comparison.check": ["check"],
    "conversion": ["copy_weights"],
    "errors": ["InputError"],
    "faults.power": ["power"],
    "jax_side.program": ["JaxProgram"],
    "jax_side.side": ["Flax", "Jax"],
    "notebook.problem": ["Problem", "draw"],
    "notebook.programs": ["Altered", "altered"],
    "report.power": ["Power"],
    "report.progress": ["Progress"],
    "report.report": ["Report"],
    "torch_side.program": ["TorchProgram"],
    "torch_side.side": ["Torch"],
    "verdict.divergence": ["Cause", "Divergence"],
    "verdict.ratio": ["Verdict"],
}
"""The module of each public name."""

__all__ = [
    "Altered",
    "Cause",
    "Divergence",
    "Flax",
    "InputError",
    "Jax",
    "JaxProgram",
    "Power",
    "Problem",
    "Progress",
    "Report",
    "Torch",
    "TorchProgram",
    "Verdict",
    "altered",
    "check",
    "copy_weights",
    "draw",
    "notebook",
    "power",
]


def __getattr__(name: str) -> Any:
    """Import a public name: PEP 562."""
    if name == "notebook":
        return importlib.import_module("compare.notebook")
    if name == "__version__":
        from importlib.metadata import version

        return version("netparity")
    for place, names in _PLACES.items():
        if name in names:
            value = getattr(importlib.import_module(f"compare.{place}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
