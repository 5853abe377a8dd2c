"""Lists all edits of the operations that a difference can come from, the likeliest first."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from compare.diagnosis.structure import arrangement, exchanges, insertion, masks, operands, reductions, removal
from compare.diagnosis.structure.edit import DIFFERENT, SILENT, Context, Edit, Generator, Kind
from compare.diagnosis.structure.graph import FAILURES, Node

if TYPE_CHECKING:
    import torch

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
    """List edits, the likeliest first; none for an operation in a form that the generators do not know.

    What is called in a loop, or in a function that is called twice, is edited at one of its calls, and at all.
    """
    for generator in GENERATORS:
        by_site: dict[tuple[int, ...], list[list[Edit]]] = {}
        for node in context.nodes:
            if not node.frozen and (node.name not in SILENT or generator in _AT_THE_END):
                found: list[Edit] = []
                with contextlib.suppress(*FAILURES):
                    found.extend(each for each in generator(context, node) if not _by_chance(context, node, each))
                by_site.setdefault(node.site, []).append(found)
                yield from found
        for site, calls in by_site.items():
            if site and len(calls) > 1 and len({len(found) for found in calls}) == 1:
                yield from map(_everywhere, zip(*calls, strict=True))


def _by_chance(context: Context, node: Node, edit: Edit) -> bool:
    """Tell whether an edit would prove nothing: of a mask, which has two numbers, many functions give the same two."""
    return edit.kind in _OF_VALUES and any(_few(context.value(number)) for number in node.outputs)


_OF_VALUES = {Kind.ADDED, Kind.TWICE, Kind.EXCHANGED, Kind.SCALE}
"""Edits that a tensor proves by its numbers, and not by where they are."""


def _few(tensor: "torch.Tensor") -> bool:
    first = tensor.detach().flatten()[:1000]  # masks repeat themselves: a part is enough
    return tensor.numel() >= DIFFERENT and len(first.unique()) < DIFFERENT


_AT_THE_END = (*operands.GENERATORS, *insertion.GENERATORS)


def _everywhere(edits: Sequence[Edit]) -> Edit:
    """Make the same edit at all calls of one site."""
    at = tuple(pair for edit in edits for pair in edit.at)
    return dataclasses.replace(edits[0], at=at, does=f"{edits[0].does}, and so each of {len(edits)} times")
