"""Exchanges pre-norm, x + f(norm(x)), and post-norm, norm(x + f(x)), in a residual network.

A model has one of the two throughout (Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020),
and nearly every tensor in it differs if its port has the other. So this edit is made at all residual sums at once, and
is proved by the outputs of the whole model.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from compare.diagnosis.structure.edit import Edit, Kind
from compare.diagnosis.structure.graph import Graph, Node, Operation, Path
from compare.diagnosis.structure.removal import applied

_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")


class Residual(NamedTuple):
    """A sum of x and of what is computed from x, with its norm."""

    norm: Node
    total: Node
    x: int
    """The value that the branch starts from, and that is added."""
    branch: int
    """The value that is added to it."""


def post_norms(graph: Graph) -> Iterator[Residual]:
    """Find norm(x + f(x))."""
    for norm in graph.nodes:
        if norm.name not in _NORMS:
            continue
        maker = graph.made_by.get(norm.inputs[0][1])
        if maker is None or graph.nodes[maker].name != "add":
            continue
        yield from _residuals(graph, norm, graph.nodes[maker], None)


def pre_norms(graph: Graph) -> Iterator[Residual]:
    """Find x + f(norm(x))."""
    for norm in graph.nodes:
        if norm.name in _NORMS:
            x = norm.inputs[0][1]
            totals = [node for node in graph.nodes if node.name == "add" and x in [n for _, n in node.inputs]]
            for total in totals:
                yield from _residuals(graph, norm, total, x)


def _residuals(graph: Graph, norm: Node, total: Node, x: int | None) -> Iterator[Residual]:
    operands = [number for _, number in total.inputs]
    for source, branch in (operands, operands[::-1]) if len(operands) == 2 else ():
        start = source if x is None else norm.outputs[0]
        # The branch must really depend on x, or on its norm: otherwise the sum is not a residual connection.
        cone = graph.cone(branch, {start})
        if (x is None or source == x) and any(number == start for node in cone for _, number in node.inputs):
            yield Residual(norm, total, source, branch)
            return


def norms_moved(graph: Graph) -> Iterator[Edit]:
    """List pre-norm in place of post-norm, and the reverse, at all residual sums."""
    if found := list(post_norms(graph)):
        at = [pair for each in found for pair in _to_pre(graph, each)]
        yield Edit(
            Kind.PRE_NORM,
            tuple(at),
            "has x + f(norm(x)), a norm before each layer, where torch has norm(x + f(x)), a norm after the "
            f"sum, at {len(found)} sums",
            "x = norm(x + f(x)) for each residual layer f and its norm, as torch does",
        )
    if found := list(pre_norms(graph)):
        at = [pair for each in found for pair in _to_post(each)]
        yield Edit(
            Kind.POST_NORM,
            tuple(at),
            "has norm(x + f(x)), a norm after each sum, where torch has x + f(norm(x)), a norm before the "
            f"layer, at {len(found)} sums",
            "x = x + f(norm(x)) for each residual layer f and its norm, as torch does",
        )


def _gives_its_input(operation: Operation) -> Any:
    return operation.at(operation.node.inputs[0][0])


def _to_pre(graph: Graph, residual: Residual) -> Iterator[tuple[int, Any]]:
    norm, x = residual.norm, residual.x
    # post to pre: the norm after the sum becomes an identity, and every operation of the branch that reads x reads
    # norm(x).
    yield norm.number, _gives_its_input
    for node in graph.cone(residual.branch, {x}):
        if x in [number for _, number in node.inputs]:

            def compute(operation: Operation) -> Any:
                for path, number in operation.node.inputs:
                    if number == x:
                        operation = operation.having(path, _normed(operation, norm, operation.at(path)))
                return operation.run()

            yield node.number, compute


def _to_post(residual: Residual) -> Iterator[tuple[int, Any]]:
    yield residual.norm.number, _gives_its_input
    yield residual.total.number, lambda operation: _normed(operation, residual.norm, operation.run())


def _normed(operation: Operation, norm: Node, tensor: Any) -> Any:
    path: Path = norm.inputs[0][0]
    return applied(operation, norm, path, tensor)
