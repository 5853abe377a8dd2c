"""All edits of the operations that a difference can come from, the likeliest first."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from compare.diagnosis.structure import arrangement, exchanges, insertion, masks, operands, reductions, removal
from compare.diagnosis.structure.edit import SILENT, Context, Edit, Generator
from compare.diagnosis.structure.graph import FAILURES

GENERATORS: tuple[Generator, ...] = (
    *removal.GENERATORS,
    *arrangement.GENERATORS,
    *masks.GENERATORS,
    *reductions.GENERATORS,
    *exchanges.GENERATORS,
    *operands.GENERATORS,
    *insertion.GENERATORS,
)


def listed(context: Context) -> Iterator[Edit]:
    """List edits, the likeliest first. An operation of a form that nobody has foreseen has none.

    What is called in a loop, or in a function that is called twice, is edited at one of its calls, and at all.
    """
    for generator in GENERATORS:
        by_site: dict[tuple[int, ...], list[list[Edit]]] = {}
        for node in context.nodes:
            if not node.frozen and (node.name not in SILENT or generator in _AT_THE_END):
                found: list[Edit] = []
                with contextlib.suppress(*FAILURES):
                    found.extend(generator(context, node))
                by_site.setdefault(node.site, []).append(found)
                yield from found
        for site, calls in by_site.items():
            if site and len(calls) > 1 and len({len(found) for found in calls}) == 1:
                yield from map(_everywhere, zip(*calls, strict=True))


_AT_THE_END = (*operands.GENERATORS, *insertion.GENERATORS)


def _everywhere(edits: Sequence[Edit]) -> Edit:
    """Make the same edit at all calls of one site."""
    at = tuple(pair for edit in edits for pair in edit.at)
    return dataclasses.replace(edits[0], at=at, does=f"{edits[0].does}, and so each of {len(edits)} times")
