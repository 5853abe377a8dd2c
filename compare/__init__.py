"""Proves a JAX/Flax port of a PyTorch training program right, or says where it first goes wrong.

>>> import compare
>>> compare.notebook.run("manual", steps=3).verdict
<Verdict.MATCH: 'match'>

Neither framework is loaded before one of its sides is used.
"""

from compare import notebook
from compare.check import check
from compare.jax_side import Flax, Jax
from compare.power import power
from compare.power_result import Power
from compare.problem import InputError, Problem, draw
from compare.programs import Altered, altered
from compare.progress import Progress
from compare.report import Cause, Divergence, Report
from compare.torch_side import Torch
from compare.verdict import Verdict
from compare.weights import copy_weights

__all__ = [
    "Altered",
    "Cause",
    "Divergence",
    "Flax",
    "InputError",
    "Jax",
    "Power",
    "Problem",
    "Progress",
    "Report",
    "Torch",
    "Verdict",
    "altered",
    "check",
    "copy_weights",
    "draw",
    "notebook",
    "power",
]
