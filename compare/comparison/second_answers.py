"""What is said of a match after the second question, of models and of programs alike."""

import dataclasses
from collections.abc import Iterable

from compare.jax_side.reading import ForeignCall
from compare.report.report import Report
from compare.verdict.divergence import Cause

QUICK = "without the second question: only these weights and batches were tried (--quick)"

ELSEWHERE = "from other weights and batches"

DOCS = "docs/match.md"


def foreign(side: str, calls: Iterable[ForeignCall]) -> list[Cause]:
    """Name the calls out of the JAX side's program: what is computed there is not the port's."""
    each = list(dict.fromkeys(calls))
    placed = [call for call in each if call.place] or each
    if not placed:
        return []
    return [
        Cause(
            f"the JAX side calls {placed[0].name}",
            f"{', '.join(map(str, placed))} on the {side} side: what is computed outside the program is no part of the "
            "port, and may be torch itself",
            "write it in JAX. jax.debug.callback and jax.debug.print may stay",
            DOCS,
        )
    ]


def differs_elsewhere(found: Report, other: Report) -> Report:
    """Give a report with what differs from other weights and on other batches."""
    differences = [
        dataclasses.replace(each, question=each.question or ELSEWHERE)
        for each in (*([other.divergence] if other.divergence else []), *other.others)
    ]
    return dataclasses.replace(
        found,
        divergence=differences[0] if differences else None,
        others=differences[1:],
        nondeterministic=[*found.nondeterministic, *other.nondeterministic],
        notes=[],
    )
