"""Lists all edits of the operations that a difference can come from, the likeliest first."""

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator, Sequence

from compare.diagnosis.structure import (
    arrangement,
    exchanges,
    insertion,
    masked_means,
    masks,
    operands,
    reductions,
    removal,
    tables,
)
from compare.diagnosis.structure.edit import COPIED, SILENT, Context, Edit, Generator, Kind, is_mask
from compare.diagnosis.structure.graph import FAILURES, Node

GENERATORS: tuple[Generator, ...] = (
    *removal.GENERATORS,
    *arrangement.GENERATORS,
    *masks.GENERATORS,
    *tables.GENERATORS,
    *reductions.GENERATORS,
    *masked_means.GENERATORS,
    *exchanges.GENERATORS,
    *operands.GENERATORS,
    *insertion.GENERATORS,
)


def listed(context: Context) -> Iterator[Edit]:
    """List edits, the likeliest first; none for an operation in a form that the generators do not know.

    A call in a loop, or in a function that is called twice, is one line of the user's code. It is edited at all of its
    calls first, and at single calls only after everything else.
    """
    calls: dict[tuple[int, ...], list[Node]] = {}
    for node in context.nodes:
        calls.setdefault(node.site or (-1, node.number), []).append(node)
    single: list[tuple[Generator, Node]] = []
    for generator in GENERATORS:
        # The last operation that takes other numbers says most: what is computed of them is other as well.
        for nodes in reversed(calls.values()) if generator in tables.GENERATORS else calls.values():
            found = [_edits(context, node, generator) for node in nodes]
            if len(nodes) == 1:
                yield from found[0]
            else:
                if len({len(each) for each in found}) == 1:
                    yield from map(_everywhere, zip(*found, strict=True))
                single += [(generator, node) for node in nodes]
    for generator, node in single:
        yield from _edits(context, node, generator)


def at_all_calls(edit: Edit, whole: Context, *, in_one_module: bool = False) -> Edit:
    """Make an edit at the other calls of its line too, which the difference does not come from: a module may run twice.

    Args:
        edit: Of operations of one line.
        whole: The whole step.
        in_one_module: Whether to make it in the same module alone, and not in other layers of its class.

    """
    if edit.origin is None or not (made_for := whole.graph.nodes[edit.origin[2]]).site:
        return edit
    generator, position, _ = edit.origin
    at, own = list(edit.at), _edits(whole, made_for, generator) if edit.taken else []
    for node in whole.nodes:
        alike = (node.site, node.name) == (made_for.site, made_for.name)
        elsewhere = in_one_module and node.module != made_for.module
        if not alike or elsewhere or node is made_for:
            continue
        others = _edits(whole, node, generator)
        if edit.taken:
            found = _corresponding(edit, own, others, whole)
        elif position >= len(others) or others[position].kind != edit.kind:
            return edit
        else:
            found = others[position : position + 1]
        at += [pair for each in found for pair in each.at if pair[0] not in dict(edit.at)]
    return dataclasses.replace(edit, at=tuple(at))


def _corresponding(edit: Edit, own: Sequence[Edit], others: Sequence[Edit], whole: Context) -> Sequence[Edit]:
    """Find the edit that takes at another call what an edit takes at its own: as many calls of the same line before it.

    In a first turn of a loop there may be none: a first state is zeros, which no line of the loop has computed.
    """
    if edit.taken is None:
        return []
    for sort in _sorts(edit.taken[1], whole):
        ours, theirs = ([each for each in several if _takes(each, edit, sort, whole)] for several in (own, others))
        places = [position for position, each in enumerate(ours) if each.taken == edit.taken]
        if places and len(theirs) > places[0]:
            return [theirs[places[0]]]
    return []


def _takes(each: Edit, edit: Edit, sort: Hashable, whole: Context) -> bool:
    """Tell whether an edit is of the same argument as another, and takes a value of a sort."""
    if each.taken is None or edit.taken is None:
        return False
    alike = each.kind == edit.kind and each.taken[0] == edit.taken[0]
    return alike and sort in _sorts(each.taken[1], whole)


def _sorts(number: int, whole: Context) -> list[Hashable]:
    """Say what a value is, whatever the turn of a loop: what a line gives, or what a module takes or gives."""
    maker = whole.graph.made_by.get(number)
    ports = [(port.path, port.kind, port.leaf) for port, value in whole.ports.items() if value == number]
    # A first state is a module's input as later ones are, and comes from another line.
    return [*ports, number if maker is None else (whole.graph.nodes[maker].site, whole.graph.nodes[maker].name)]


def _edits(context: Context, node: Node, generator: Generator) -> list[Edit]:
    if node.frozen or node.name == COPIED or (node.name in SILENT and generator not in _AT_THE_END):
        return []
    found: list[Edit] = []
    with contextlib.suppress(*FAILURES):
        found.extend(each for each in generator(context, node) if not _by_chance(context, node, each))
    return [dataclasses.replace(each, origin=(generator, position, node.number)) for position, each in enumerate(found)]


def _by_chance(context: Context, node: Node, edit: Edit) -> bool:
    """Tell whether an edit would prove nothing: of a mask, which has two numbers, many functions give the same two."""
    return edit.kind in _OF_VALUES and any(is_mask(context.value(number)) for number in node.outputs)


_OF_VALUES = {Kind.ADDED, Kind.TWICE, Kind.EXCHANGED, Kind.SCALE}
"""Edits that a tensor proves by its numbers, and not by where they are."""


_AT_THE_END = (*operands.GENERATORS, *insertion.GENERATORS)


def _everywhere(edits: Sequence[Edit]) -> Edit:
    """Make the same edit at all calls of one site."""
    at = tuple(pair for edit in edits for pair in edit.at)
    does = f"{edits[0].does}, at each of {len(edits)} calls"
    return dataclasses.replace(edits[0], at=at, does=does, again=None)
