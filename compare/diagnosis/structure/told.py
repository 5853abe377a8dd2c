"""Describes edits that are a cause, and tells which of several say it most plainly."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compare.diagnosis.structure.edit import Context, Edit, Kind
from compare.diagnosis.structure.graph import FAILURES
from compare.diagnosis.structure.pairs import SAME
from compare.diagnosis.structure.step import array_of, changes
from compare.numerics.distance import distance
from compare.verdict.divergence import Cause, Part

if TYPE_CHECKING:
    import torch


def plainer(edits: Sequence[Edit], others: Sequence[Edit]) -> bool:
    """Tell whether edits say more plainly what others say as well: what a count comes to nothing by is a quotient."""
    odd, other_odd = (sum(edit.odd for edit in each) for each in (edits, others))
    if odd != other_odd:
        return odd < other_odd
    # What is missing, or is another function, is a slip that people make: the same numbers by another tensor or by
    # another order are a way to write it.
    for one, two in ((edits, others), (others, edits)):
        if all(edit.kind in _DIRECT for edit in one) and any(edit.kind in _INDIRECT for edit in two):
            return one is edits
    # A count that is left out makes a divisor 1: the quotient behind it is what was left out.
    left_out, others_left_out = (
        sorted(number for edit in each if edit.kind == Kind.LEFT_OUT for number, _ in edit.at)
        for each in (edits, others)
    )
    same = sorted(edit.kind for edit in edits) == sorted(edit.kind for edit in others)
    return same and left_out > others_left_out


_DIRECT = {Kind.LEFT_OUT, Kind.EXCHANGED}
_INDIRECT = {Kind.OPERAND, Kind.MOVED}


def worth_telling(fitting: Sequence[list[Edit]]) -> list[list[Edit]]:
    """Drop what only comes to the same as an operation that is left out, such as x - x."""
    missing = [edits for edits in fitting if all(edit.kind == Kind.LEFT_OUT for edit in edits)]
    return missing or list(fitting)


def with_equal_terms(edits: Sequence[Edit], context: Context) -> Sequence[Edit]:
    """Say of an operation whose lack makes both terms of a sum equal that the port may lack one of them.

    (f(x) + f(x.T)) / 2, as a symmetric loss has it, is then f(x).
    """
    graph = context.graph
    if len(edits) != 1 or edits[0].kind != Kind.LEFT_OUT:
        return edits
    try:
        values = graph.changed(context.nodes, changes(edits), {})
    except FAILURES:
        return edits
    for node in context.nodes:
        numbers = [number for _, number in node.inputs]
        if node.name == "add" and len(numbers) == 2 and not any(node.number == number for number, _ in edits[0].at):
            before, after = ([known.get(n, graph.values[n]) for n in numbers] for known in ({}, values))
            if _equal(*after) and not _equal(*before):
                does = f"{edits[0].does}, or has twice one term in place of the sum ({node.line}), which is the same"
                return [replace(edits[0], does=does, fix=f"{edits[0].fix}; or add the other term", code=None)]
    return edits


def _equal(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    return one.shape == other.shape and distance(array_of(one), array_of(other)) < SAME


def _clauses(edits: Sequence[Edit]) -> str:
    return ", and ".join(dict.fromkeys(edit.does for edit in edits if edit.does))


def told(fitting: Sequence[Sequence[Edit]], apart: float) -> Cause:
    """Describe a cause: all of several different edits that fit, but of other numbers only those that say most."""
    of_tables = [edits for edits in fitting if all(edit.again for edit in edits)]
    if of_tables and len(of_tables) == len(fitting):
        # What is computed of other numbers is other as well: a table that torch keeps is where they come
        # from, and otherwise the last place shows what they lead to.
        fitting = [min(of_tables, key=lambda edits: (edits[0].kind != Kind.TABLE, -edits[0].at[0][0]))]
    by_words: dict[str, Sequence[Edit]] = {}
    for edits in fitting:
        by_words.setdefault(_clauses(edits), edits)
    first, *others = by_words.values()
    name = " and ".join(dict.fromkeys(edit.kind for edit in first))
    does = " or ".join(_clauses(edits) for edits in (first, *others[:2]))
    both = "; on this batch these are the same" if others else ""
    fixes = ("; ".join(dict.fromkeys(each.fix for each in edits if each.fix)) for edits in (first, *others[:2]))
    fix = "; or ".join(dict.fromkeys(fixes))
    says = f"the JAX side {does}{both}"
    explanation = f"{name}: {says}. With this change on the torch side, the difference is {apart:.1e}"
    codes = [edit.code for edit in first if edit.code] if not others else []
    code = codes[0] if len(codes) == len(first) == 1 else None
    every = tuple(codes) if len(codes) == len(first) else ()
    return Cause(name, explanation, fix, code=every, parts=(Part(name, says, fix, code),))
