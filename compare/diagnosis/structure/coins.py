"""Tells whether a difference may come from a few random booleans alone: edits of operations may seem to explain it."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compare.diagnosis.structure.graph import FAILURES, Graph
from compare.diagnosis.structure.step import Step, apart, array_of

if TYPE_CHECKING:
    import torch


def is_by_chance(step: Step) -> bool:
    """Tell whether torch gives what the JAX side does if a few booleans that it has drawn are others.

    Where a step augments its batch with probability 0.3, a port that never does, one that always does and one with
    another probability differ from it alike: by what the coin of this step decides.
    """
    import torch

    graph, end = step.context.graph, step.end
    with torch.no_grad():
        for number in _coins(graph, end):
            for other in _others(graph.values[number]):
                try:
                    given = graph.evaluate(graph.nodes, {}, end, {number: other})
                except FAILURES:
                    continue
                if apart(array_of(given), step.target) <= step.limit:
                    return True
    return False


def _coins(graph: Graph, end: int) -> Iterator[int]:
    """List the values of a few booleans each that were drawn, or computed from what was drawn."""
    drawn: set[int] = set()
    for node in graph.cone(end, ()):
        if node.frozen or any(number in drawn for _, number in node.inputs):
            drawn |= set(node.outputs)
            yield from (number for number in node.outputs if _is_few(graph.values[number]))


def _is_few(value: "torch.Tensor") -> bool:
    return 0 < value.numel() < COINS and bool(((value == 0) | (value == 1)).all())


def _others(value: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Give other values of a few booleans: all that there are, or of more than four alike ones and the opposite."""
    size = value.numel()
    if size <= _EACH:
        for each in itertools.product((0, 1), repeat=size):
            yield value.new_tensor(each).reshape(value.shape)
    else:
        yield from (value.new_ones(value.shape), value.new_zeros(value.shape), (1 - value.int()).to(value.dtype))


COINS = 16
"""From this number of booleans on, it is unlikely that all are true, or all false, by chance."""

_EACH = 4
"""Up to this number of booleans, every combination is tried."""
