"""Fixes of numbers in the user's expressions: a literal is exchanged, wherever it is written.

A decay may stand in an expression, in a variable that is assigned once, or in the argument of the one call of a helper.
An expression such as `1 - decay` follows from it.
"""

import math
from collections.abc import Mapping, Sequence

import libcst

from compare.mending.constants import Reader
from compare.mending.functions import expressions
from compare.mending.syntax import Edit, SourceFile, Unfit
from compare.verdict.divergence import Line
from compare.verdict.fix import Code, source


def exchange_numbers(file: SourceFile, code: Code, lines: Sequence[Line]) -> list[Edit]:
    """Exchange the numbers of a fix where some lines compute with them."""
    wrong = dict(code.numbers)
    if len({*wrong}) < len(code.numbers) or len({*wrong.values()}) < len(wrong):
        raise Unfit("which of two equal numbers it changes is not known")
    edits: dict[libcst.BaseExpression, str] = {}
    nodes = expressions(file, lines)
    for number in Reader(file, nodes).numbers(nodes):
        right = _exchanged(number.value, wrong)
        if right is None:
            continue
        new = {each: _exchanged(value, wrong) for each, value in number.literals.items()}
        after = number.text.format(
            *(value if (now := new[each]) is None else now for each, value in number.literals.items())
        )
        if not math.isclose(eval(after, {}), right):
            raise Unfit("the number is computed from others")
        edits |= {each: source(now) for each, now in new.items() if now is not None}
    if not edits:
        raise Unfit("the number that it changes is not in the expression")
    return [file.exchanged(node, text) for node, text in edits.items()]


def _exchanged(value: float, wrong: Mapping[float, float]) -> float | None:
    return next((right for old, right in wrong.items() if math.isclose(old, value, rel_tol=1e-12)), None)
