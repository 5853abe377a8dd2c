"""Edits that add an operation: activations, norms, factors that follow from sizes."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.structure.edit import END, Context, Edit, Kind, is_mask, one, shown
from compare.diagnosis.structure.evidence import may_apply
from compare.diagnosis.structure.graph import Node, Operation, Path
from compare.diagnosis.structure.written import without
from compare.verdict.fix import source

Unary = tuple[str, Callable[[Any], Any]]
"""A function of one tensor, and what it is called."""


_LAYERS = {"linear", "bilinear", "embedding", "embedding_bag", "layer_norm", "group_norm", "batch_norm", "rms_norm"}
_LAYERS |= {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}


def put_in(context: Context, node: Node) -> Iterator[Edit]:
    """List what the JAX side may apply where torch applies nothing: to a result, or to one operand."""
    if len(node.outputs) != 1 or not context.value(node.outputs[0]).is_floating_point():
        return
    # A parameter of the user's own, such as a table of biases, may be transposed; a layer's weights are mapped.
    own = [] if node.name in _LAYERS else [each for each in node.inputs if each[1] in context.parameters]
    for path, number in (*context.data(node), *own):
        users = context.users.get(number, [])
        if node.name == END:  # a state goes on to the next turn of a loop as well
            users = [user for user in context.graph.nodes if user.name != END and number in dict(user.inputs).values()]
        if number in context.makers and len(users) == 1:
            continue  # used once: before this operation is the same as after the one that makes it
        place = "at this place" if node.name == END else f"before {shown(node)}"
        for words, function in _functions(context, number):
            edit = _marked(functools.partial(_before, context, node, path, number, words, place), words, function)
            order = words.startswith(_ORDERS)
            yield replace(edit, order=order, odd=order and number in context.from_parameters)
    if node.name != END:
        written = _is_written(context, node)
        for words, function in _functions(context, node.outputs[0]):
            order = words.startswith(_ORDERS)
            if written and order:
                continue  # numbers that are written in another order are other numbers

            edit = _marked(functools.partial(_after, node, words), words, function)
            yield replace(edit, order=order, odd=order and node.outputs[0] in context.from_parameters)


_ORDERS = ("a reversal", "a shift")
"""Of what parameters go into, other labels or positions are likelier, where they come to the same."""


def _is_written(context: Context, node: Node) -> bool:
    """Tell whether what an operation gives comes from numbers in the user's code, and from nothing that is given."""
    made, found, written = [node], {node.number}, False
    while made:
        each = made.pop()
        written |= each.name in ("tensor", "as_tensor", "asarray") and not each.inputs
        makers = [context.makers.get(number) for _, number in each.inputs]
        if each.frozen or None in makers:
            return False
        new = {maker.number: maker for maker in makers if maker is not None and maker.number not in found}
        made += new.values()
        found |= set(new)
    return written


def _marked(make: Callable[[Callable[[Any], Any]], Edit], words: str, function: Callable[[Any], Any]) -> Edit:
    """Make an edit of a function; of a factor, with the one that has another number."""
    if not words.startswith(("a factor", "a division")):
        return make(function)
    return replace(make(function), factor=True, nudged=make(lambda x: function(x) * (1 + NUDGE)))


def _after(node: Node, words: str, function: Callable[[Any], Any]) -> Edit:
    def compute(operation: Operation) -> Any:
        return function(operation.run())

    does = f"applies {words} to the output of {shown(node)}, and torch does not"
    return one(Kind.ADDED, node, compute, does, f"leave out {words} after {node.name}", without(words))


def _before(
    context: Context, node: Node, path: Path, number: int, words: str, place: str, function: Callable[[Any], Any]
) -> Edit:
    def compute(operation: Operation) -> Any:
        return operation.having(path, function(operation.at(path))).run()

    what = context.named(number)
    does = f"applies {words} to {what} {place}, and torch does not"
    return one(Kind.ADDED, node, compute, does, f"leave out {words}: take {what} as it is {place}", without(words))


def _functions(context: Context, number: int) -> Iterator[Unary]:
    """List functions of one tensor that keep its shape and have no number to be fitted."""
    shape = tuple(context.value(number).shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = [each for axis in axes for each in _along(axis)]
    found += [_transpose(other, axis) for axis in axes for other in range(axis) if shape[other] == shape[axis]]
    # Of a mask, it is told by where its numbers are, and not by what a function makes of them.
    if not (mask := is_mask(context.value(number))):
        found += [*_pointwise(), *_norms(context, number), *(_over_last_axis() if shape else ())]
        found += [each for axis in axes for each in _over(axis)]
    # What comes with the batch may have been changed before JAX traces the step.
    given = not any(number in known for known in (context.graph.made_by, context.parameters, context.names))
    yield from (each for each in found if given or may_apply(each[0], context.theirs, shape))
    if mask:
        return
    for size in context.sizes():
        # The JAX side's program has the size, its root or its inverse where it multiplies by one of them.
        if context.theirs.has_one_of(size, size**0.5):
            yield from _factors(size)
    yield from _written_factors(sorted(context.theirs.numbers or ()))


def _pointwise() -> list[Unary]:
    import torch
    from torch.nn import functional

    return [
        ("relu", torch.relu),
        ("gelu", functional.gelu),
        ("gelu with approximate=True", lambda x: functional.gelu(x, approximate="tanh")),
        ("silu", functional.silu),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
        ("leaky_relu", functional.leaky_relu),
        ("elu", functional.elu),
        ("softplus", functional.softplus),
        ("hardswish", functional.hardswish),
        ("hardsigmoid", functional.hardsigmoid),
        ("relu6", functional.relu6),
        ("mish", functional.mish),
        ("selu", functional.selu),
        ("logsigmoid", functional.logsigmoid),
        ("log", torch.log),
        ("sin", torch.sin),
        ("cos", torch.cos),
        ("a reciprocal", torch.reciprocal),
        ("exp", torch.exp),
        ("abs", torch.abs),
        ("a change of sign", torch.neg),
        ("1 - x", lambda x: 1 - x),
        ("a square", torch.square),
        ("a square root", torch.sqrt),
    ]


def _over_last_axis() -> list[Unary]:
    import torch
    from torch.nn import functional

    return [
        ("softmax", lambda x: torch.softmax(x, -1)),
        ("log_softmax", lambda x: torch.log_softmax(x, -1)),
        ("L2 normalization over the last axis", lambda x: functional.normalize(x, dim=-1)),
        ("layer_norm without parameters", lambda x: functional.layer_norm(x, x.shape[-1:])),
    ]


def _over(axis: int) -> list[Unary]:
    import torch

    return [
        (f"softmax over axis {axis}", lambda x: torch.softmax(x, axis)),
        (f"a subtraction of the mean over axis {axis}", lambda x: x - x.mean(axis, keepdim=True)),
    ]


def _along(axis: int) -> list[Unary]:
    return [
        (f"a reversal of axis {axis}", lambda x: x.flip(axis)),
        (f"a shift by one along axis {axis}", lambda x: x.roll(1, axis)),
        (f"a shift by minus one along axis {axis}", lambda x: x.roll(-1, axis)),
        (f"a shift by one along axis {axis}, with zeros,", lambda x: shifted(x, axis, 1)),
        (f"a shift by minus one along axis {axis}, with zeros,", lambda x: shifted(x, axis, -1)),
    ]


def shifted(x: Any, axis: int, by: int) -> Any:
    """Shift along an axis and fill with zeros."""
    import torch

    kept = x.narrow(axis, max(-by, 0), x.shape[axis] - abs(by))
    zeros = torch.zeros_like(x.narrow(axis, 0, abs(by)))
    return torch.cat([zeros, kept] if by > 0 else [kept, zeros], axis)


def _transpose(axis: int, other: int) -> Unary:
    return f"a transpose of axes {axis} and {other}", lambda x: x.transpose(axis, other)


def _factors(size: int) -> list[Unary]:
    root = math.isqrt(size)
    words = str(root) if root * root == size else f"sqrt({size})"
    return [
        (f"a factor {words}", lambda x: x * size**0.5),
        (f"a factor 1/{words}", lambda x: x * size**-0.5),
        (f"a factor {size}", lambda x: x * size),
        (f"a factor 1/{size}", lambda x: x / size),
    ]


def _written_factors(numbers: Sequence[float]) -> list[Unary]:
    """List factors and divisors that are written into the JAX side's program: none is fitted."""
    own = [each for each in numbers if each not in (0.0, 1.0, -1.0) and math.isfinite(each)]
    if len(own) > MOST:
        return []
    factors = [(f"a factor {source(each)}", lambda x, each=each: x * each) for each in own]
    return [*factors, *((f"a division by {source(each)}", lambda x, each=each: x / each) for each in own)]


NUDGE = 1e-3
"""By how much a factor is made larger to see whether the result tells which one it is: behind a bound, any may fit."""

MOST = 12
"""Numbers of a program that are tried as factors, at most."""

_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "InstanceNorm1d", "InstanceNorm2d")


def _norms(context: Context, number: int) -> Iterator[Unary]:
    """List the model's own norms that take a tensor of this shape."""
    value = context.value(number)
    for path, module in context.modules.items():
        kind = type(module).__name__
        # A batch norm in training updates its running statistics with each call.
        if kind not in _NORMS or (kind.startswith("Batch") and module.training):
            continue
        size: Any = getattr(module, "normalized_shape", ())
        channels = getattr(module, "num_features", getattr(module, "num_channels", None))
        if (not size or tuple(value.shape[-len(size) :]) == tuple(size)) and (
            channels is None or (value.dim() > 1 and value.shape[1] == channels)
        ):
            yield path, module.forward


def at_every_use(context: Context, node: Node) -> Iterator[Edit]:
    """List what may be applied to a value that is used more than once, such as a table, wherever it is used."""
    if node.name != END:
        return
    for number, users in context.users.items():
        if len(users) < 2 or number in context.makers or not context.value(number).is_floating_point():
            continue
        what = context.named(number)
        every = [each for each in context.graph.nodes if any(own == number for _, own in each.inputs)]
        # Another part of the step may use it too, and agree.
        where = "wherever it is used" if len(every) == len(users) else f"in {', '.join(map(shown, users))}"
        for words, function in _functions(context, number):
            yield _marked(functools.partial(_everywhere, number, users, what, where, words), words, function)


def _everywhere(
    number: int, users: Sequence[Node], what: str, where: str, words: str, function: Callable[[Any], Any]
) -> Edit:
    def compute(operation: Operation) -> Any:
        for path, other in operation.node.inputs:
            if other == number:
                operation = operation.having(path, function(operation.at(path)))
        return operation.run()

    at = tuple((user.number, compute) for user in users)
    does = f"applies {words} to {what} {where}, and torch does not"
    return Edit(Kind.ADDED, at, does, f"leave out {words}: take {what} as it is {where}")


def counted(context: Context, node: Node) -> Iterator[Edit]:
    """List positions and labels that may begin one later or earlier."""
    if len(node.outputs) != 1 or (node.name not in ("arange", "cumsum", "argmax") and node.name != END):
        return
    value = context.value(node.outputs[0])
    if value.is_floating_point() or value.dtype.is_complex or str(value.dtype) == "torch.bool":
        return
    what = context.named(node.inputs[0][1]) if node.name == END else f"the output of {shown(node)}"
    for by in (1, -1):

        def compute(operation: Operation, by: int = by) -> Any:
            return operation.run() + by

        yield one(Kind.ADDED, node, compute, f"adds {by} to {what}, and torch does not", f"do not add {by} to {what}")


GENERATORS = (put_in, counted, at_every_use)
