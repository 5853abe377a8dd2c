"""The second question to a match of models or programs: whether it also holds from other weights and batches."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from compare import bugs
from compare.comparison.common_pair import CommonPair
from compare.comparison.elsewhere import scattered
from compare.errors import InputError
from compare.jax_side.reading import ForeignCall
from compare.report.report import Report
from compare.step.observation import to_numpy
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Cause
from compare.verdict.following import Followed

QUICK = "without the second question: only these weights and batches were tried (--quick)"

ELSEWHERE = "from other weights and batches"

DOCS = "docs/match.md"

Ask = Callable[[Any], tuple[Report, Followed]]
"""Takes one step of a pair, with what is compiled already."""


class Elsewhere(NamedTuple):
    """A step from other weights and on other batches."""

    report: Report
    followed: Followed
    pair: Any


def asked_elsewhere(pair: CommonPair, ask: Ask) -> Elsewhere | Cause | str:
    """Take a step from other weights and on other batches, or say why that is not possible."""
    reason = ""
    for other in _pairs_elsewhere(pair):
        try:
            report, followed = ask(other)
            return Elsewhere(report, followed, other)
        except InputError as error:
            reason = str(error).partition("\n")[0]
            if _torch_takes(other):
                name = pair.jax.name
                return Cause(
                    f"the {name} side fails {ELSEWHERE}",
                    f"torch takes a step {ELSEWHERE} of the same shapes, and the {name} side does not: {reason}",
                    "",
                    DOCS,
                )
        except Exception as error:  # noqa: BLE001 - the first question has its answer
            bugs.report("the second question", error)
            return "without the second question, which failed"
    return f"without the second question: torch takes no step {ELSEWHERE}: {reason}"


def _pairs_elsewhere(pair: CommonPair) -> Iterator[CommonPair]:
    """Yield the pair with weights farther and nearer."""
    run = pair.torch_run("float64")  # what is not moved, such as a table, stays as exact as torch has it
    given = run.arrays()
    moved = {link.torch for link in pair.links if link.torch in given and pair.movable(link.torch)}
    for near in (False, True):
        run.load(scattered(given, moved, near=near))
        yield pair.elsewhere(run.arrays())


def _torch_takes(pair: CommonPair) -> bool:
    """Return whether torch takes a step of a pair, and its loss is finite."""
    try:
        run = pair.torch_run("float64")  # outside: what a program draws while it is built is no draw of its step
        with ControlledRun(lift=True):
            seen = run.step(pair.batches[0])
    except InputError:
        return False
    return seen.loss is None or bool(np.isfinite(to_numpy(seen.loss)))


def foreign(side: str, calls: Iterable[ForeignCall]) -> list[Cause]:
    """Name the calls out of the JAX side's program: what is computed there is not the port's."""
    each = list(dict.fromkeys(calls))
    placed = [call for call in each if call.place] or each
    if not placed:
        return []
    return [
        Cause(
            f"the JAX side calls {placed[0].name}",
            f"{', '.join(map(str, placed))} on the {side} side: what is computed outside the program is not "
            "part of the port, and may be torch itself",
            "write it in JAX. jax.debug.callback and jax.debug.print may stay",
            DOCS,
        )
    ]


def differs_elsewhere(found: Report, other: Report) -> Report:
    """Return a report with what differs from other weights and on other batches."""
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
