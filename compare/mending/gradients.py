"""Fixes of the gradients that an optimizer is given: they are changed where the user's code gives them to it."""

import libcst

from compare.mending.functions import put
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.verdict.divergence import Line
from compare.verdict.fix import Code

_BY_POSITION = {"update": 1}
"""Which argument the gradients are: `optimizer.update(model, gradients)`; for `apply_gradients`, it has a name."""


def change_gradients(file: SourceFile, code: Code, line: Line) -> list[Edit]:
    """Put an expression of the gradients in their place."""
    call = file.expression(line.source.span)
    if not isinstance(call, libcst.Call) or not isinstance(call.func, libcst.Attribute):
        raise Unfit("the optimizer is not called on the line")
    named = [each.value for each in call.args if each.keyword is not None and each.keyword.value == "grads"]
    at = _BY_POSITION.get(call.func.attr.value, len(call.args))
    plain = [each.value for each in call.args if each.keyword is None and not each.star]
    given = named or plain[at : at + 1]
    if not given:
        raise Unfit("which argument of the optimizer the gradients are is not known")
    return put(file, given[0], str(code), {"gradients": given[0]})
