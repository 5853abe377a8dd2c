"""Proves a JAX/Flax port of a PyTorch training program right, or says where it first goes wrong.

>>> import compare
>>> compare.notebook.run("manual", steps=3).verdict
<Verdict.MATCH: 'match'>

Neither framework is loaded before one of its sides is used.
"""

from compare import notebook
from compare.problem import InputError, Problem, draw
from compare.report import Cause, Divergence, Report
from compare.sides import Altered, altered
from compare.verdict import Verdict

__all__ = [
    "Altered",
    "Cause",
    "Divergence",
    "InputError",
    "Problem",
    "Report",
    "Verdict",
    "altered",
    "draw",
    "notebook",
]
