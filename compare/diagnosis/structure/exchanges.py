"""Edits that exchange an operation for another of the same kind."""

from collections.abc import Callable, Iterator
from typing import Any

from compare.diagnosis.counterfactuals import FUNCTIONS, counterfactuals
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Call
from compare.diagnosis.signatures import ANY, bound, signature_of
from compare.diagnosis.structure.edit import Context, Edit, Kind, one, shown
from compare.diagnosis.structure.evidence import may_apply
from compare.diagnosis.structure.graph import Node, Operation, Ref
from compare.verdict.fix import Code, source


def functions_alone(context: Context, node: Node) -> Iterator[Edit]:
    """List the conventions for single functions as edits, so that they are also found together with another edit."""
    if node.name not in FUNCTIONS:
        return
    call = _call(Operation(node, *_filled(context, node), context.value))
    if call is None:
        return
    for each in counterfactuals([call], gradient=False):
        if each.of is not None:
            continue

        def compute(operation: Operation, rewrite: Callable[[Call], Any] = each.rewrite) -> Any:
            call = _call(operation)
            assert call is not None
            return rewrite(call)

        fix = each.fix(each.call, Place()) or f"compute {node.name} as torch does ({node.line})"
        code = fix if isinstance(fix, Code) else None
        yield one(Kind.EXCHANGED, node, compute, f"{each.jax_does} in {shown(node)}", str(fix), code)


def _filled(context: Context, node: Node) -> tuple[Any, Any]:
    whole = Operation(node, node.args, node.kwargs, context.value).of(node)
    return whole.args, whole.kwargs


def _call(operation: Operation) -> Call | None:
    function = operation.node.function
    signature = bound(signature_of(function) or ANY, operation.args, operation.kwargs)
    return Call(operation.node.name, function, operation.args, operation.kwargs, signature)


_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")

_WRITTEN = {
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / y",
    "maximum": "jnp.maximum(x, y)",
    "minimum": "jnp.minimum(x, y)",
    "mean": "(x + y) / 2",
}

_NAMED = {
    "add": "the sum",
    "sub": "the difference",
    "mul": "the product",
    "div": "the quotient",
    "maximum": "the maximum",
    "minimum": "the minimum",
    "mean": "the mean",
}

_OF_JNP = {"sin", "cos", "exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "sqrt", "square", "abs"}
"""Functions that `jax.numpy` has under the same name."""

_LARGEST = ("maximum", "minimum")

_NAMED_TWICE = {"max": "maximum", "min": "minimum"}
"""Functions that also do what another one does, where they take two tensors."""


def other_arithmetic(context: Context, node: Node) -> Iterator[Edit]:
    """List sums for products, and so on."""
    import torch

    own = _NAMED_TWICE.get(node.name, node.name)
    if own not in _BINARY or len(context.data(node)) < 2:
        return
    # Of two critics, a port may take the mean for the lower one.
    for name in (*_BINARY, "mean") if own in _LARGEST else _BINARY:
        if name != own:

            def compute(operation: Operation, name: str = name) -> Any:
                one, other = operation.args[:2]
                given = (one + other) / 2 if name == "mean" else getattr(torch, name)(one, other)
                # If one of the two is always the larger, the maximum is this one, and nothing is exchanged.
                chooses = name in _LARGEST and own not in _LARGEST
                if chooses and any(bool((given == each).all()) for each in (one, other)):
                    raise ValueError(name)
                return given

            does = f"computes {_NAMED[name]} of the two operands of {shown(node)}"
            # Of a sum, which operand is to be subtracted is not known.
            code = None if own in ("sub", "div") else Code(around=_WRITTEN[own], before=(_WRITTEN[name],))
            yield one(Kind.EXCHANGED, node, compute, does, f"compute {_NAMED[own]} of them, as torch does", code)


def other_sign(context: Context, node: Node) -> Iterator[Edit]:
    """List numbers that are added for those that torch subtracts, and the reverse."""
    numbers = [n for n, each in enumerate(node.args) if isinstance(each, int | float) and not isinstance(each, bool)]
    if node.name not in ("add", "sub") or len(node.args) != 2 or len(numbers) != 1 or not node.args[numbers[0]]:
        return
    (position,) = numbers

    def compute(operation: Operation) -> Any:
        return operation.having(("args", position), -operation.args[position]).run()

    does, did = ("adds", "subtracts") if node.name == "sub" else ("subtracts", "adds")
    number = source(float(node.args[position]))
    code = Code(around=_WRITTEN[node.name].replace("y", number)) if position == 1 else None
    does = f"{does} {number} in {shown(node)}, where torch {did} it"
    yield one(Kind.EXCHANGED, node, compute, does, f"{did.removesuffix('s')} {number}, as torch does", code)


def other_numbers(context: Context, node: Node) -> Iterator[Edit]:
    """List numbers that follow from sizes, in place of a factor, a divisor or an exponent of torch's."""
    if node.name not in ("mul", "div", "pow") or len(node.args) != 2:
        return
    for position, own in enumerate(node.args):
        if isinstance(own, bool) or not isinstance(own, int | float) or not own:
            continue
        for words, number in _numbers(context, node, float(own)):

            def compute(operation: Operation, number: float = number, position: int = position) -> Any:
                return operation.having(("args", position), number).run()

            what = "power of" if node.name == "pow" else "factor" if node.name == "mul" else "divisor"
            does = f"takes {words} for the {what} {own:.6g} of {shown(node)}"
            sign = {"mul": "*", "div": "/", "pow": "**"}[node.name]
            code = Code(around=f"x {sign} {source(float(own))}", wrong=number) if position == 1 else None
            yield one(Kind.SCALE, node, compute, does, f"take {source(float(own))}, as torch does", code)


_ROOTS = ("std", "norm")
"""Functions that end in a square root. Where `sqrt` is an operation of its own, `moved` exchanges it and the sum."""


def inside_the_root(context: Context, node: Node) -> Iterator[Edit]:
    """List numbers that torch adds to a deviation or a norm. The JAX side may add them to its square."""
    if node.name != "add" or len(node.args) != 2 or not isinstance(node.args[0], Ref):
        return
    number, root = node.args[1], context.makers.get(node.args[0].number)
    if isinstance(number, bool) or not isinstance(number, int | float) or root is None or root.name not in _ROOTS:
        return

    def compute(operation: Operation) -> Any:
        return (operation.args[0].square() + number).sqrt()

    own, added = context.named(node.args[0].number), source(float(number))
    does = f"adds {added} to the square of {own} and takes the root of the sum; torch adds it to the root, in "
    does += shown(node)
    yield one(Kind.MOVED, node, compute, does, f"add {added} to {own}, not to its square")


def other_divisors(context: Context, node: Node) -> Iterator[Edit]:
    """List sizes in place of a count that torch divides by: padding is counted."""
    if node.name != "div" or len(node.args) != 2 or not isinstance(node.args[1], Ref):
        return
    summed = context.makers.get(node.args[0].number) if isinstance(node.args[0], Ref) else None
    elements = [context.value(number).numel() for _, number in summed.inputs] if summed else []
    for size in sorted({*context.sizes(), *elements}):

        def compute(operation: Operation, size: int = size) -> Any:
            return operation.having(("args", 1), size).run()

        own = context.named(node.args[1].number)
        does = f"divides by {size} in {shown(node)}, where torch divides by {own}"
        yield one(Kind.REDUCTION, node, compute, does, f"divide by {own}, as torch does")


def _numbers(context: Context, node: Node, own: float) -> Iterator[tuple[str, float]]:
    if node.name == "pow":
        yield from ((str(n), float(n)) for n in (1, 2, 3, 4, 0.5, -0.5, -1) if n != own)
        return
    # Numbers that follow from torch's own, or from the sizes of tensors: sqrt(head size) for sqrt(model
    # size). None is fitted, so that each that fits is evidence by itself.
    yield f"{1 / own:.6g}, its inverse,", 1 / own
    yield f"{own * own:.6g}, its square,", own * own
    yield f"{-own:.6g}, its negative,", -own
    if own > 0:
        yield f"{own**0.5:.6g}, its square root,", own**0.5
    for size in context.sizes():
        for words, number in (
            (f"{size}", size),
            (f"sqrt({size})", size**0.5),
            (f"1/{size}", 1 / size),
            (f"1/sqrt({size})", size**-0.5),
        ):
            # A size may give torch's own number, as sqrt(64) is 8: that is no edit.
            if abs(number / own - 1) > 1e-12 and context.theirs.has_one_of(number):
                yield words, number


def repeated(context: Context, node: Node) -> Iterator[Edit]:
    """List tile for repeat: [a, b, a, b] for [a, a, b, b]."""
    if node.name == "repeat_interleave" and len(node.args) > 1 and isinstance(node.args[1], int):
        axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else None)
        if axis is None:
            return

        def tiled(operation: Operation, axis: int = axis) -> Any:
            x, count = operation.args[:2]
            sizes = [1] * x.dim()
            sizes[axis] = count
            return x.repeat(sizes)

        does = f"repeats the whole axis {axis} in {shown(node)}, as jnp.tile does, torch each element"
        fix = f"jnp.repeat(x, {node.args[1]}, axis={axis}), where the axis is that of torch's layout"
        yield one(Kind.PARTS, node, tiled, does, fix)
    if node.name in ("repeat", "tile"):
        sizes = node.args[1:] if isinstance(node.args[1], int) else tuple(node.args[1])

        def each(operation: Operation, sizes: tuple[int, ...] = tuple(sizes)) -> Any:
            x = operation.args[0]
            x = x.reshape((1,) * (len(sizes) - x.dim()) + tuple(x.shape))
            for axis, count in enumerate(sizes):
                x = x.repeat_interleave(count, axis)
            return x

        does = f"repeats each element in {shown(node)}, as jnp.repeat does, torch the whole axis"
        fix = f"jnp.tile(x, {tuple(sizes)}), where the axes are those of torch's layout"
        yield one(Kind.PARTS, node, each, does, fix)


def resampled(context: Context, node: Node) -> Iterator[Edit]:
    """List other ways to resize an image."""
    from torch.nn import functional

    modes = [("nearest", None), ("nearest-exact", None), ("linear", False), ("linear", True)]
    modes += [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True), ("area", None)]
    if node.name not in ("interpolate", "upsample"):
        return
    for mode, corners in modes:

        def compute(operation: Operation, mode: str = mode, corners: bool | None = corners) -> Any:
            given = {k: v for k, v in operation.kwargs.items() if k in ("size", "scale_factor")}
            given |= dict(zip(("size", "scale_factor"), operation.args[1:3], strict=False))
            return functional.interpolate(operation.args[0], **given, mode=mode, align_corners=corners)

        with_corners = "" if corners is None else f" with align_corners={corners}"
        own = node.kwargs.get("mode", "nearest")
        does = f'resizes in {shown(node)} as mode="{mode}" does{with_corners}, torch with mode="{own}"'
        yield one(Kind.RESAMPLING, node, compute, does, f'resize as torch\'s mode="{own}" does')


def farthest(context: Context, node: Node) -> Iterator[Edit]:
    """List the largest for the smallest, and the reverse, where it is the place that counts."""
    other = {"argmax": "argmin", "argmin": "argmax"}.get(node.name)
    if other is None:
        return

    def compute(operation: Operation) -> Any:
        return getattr(operation.args[0], other)(*operation.args[1:], **operation.kwargs)

    yield one(Kind.EXCHANGED, node, compute, f"takes {other} for {shown(node)}", f"take {node.name}, as torch does")


def tiled(context: Context, node: Node) -> Iterator[Edit]:
    """List an image that is repeated as a whole in place of each of its pixels."""
    if node.name not in ("interpolate", "upsample") or not isinstance(node.args[0], Ref):
        return
    sizes = context.value(node.args[0].number).shape, context.shape(node)
    if any(after % before for before, after in zip(*sizes, strict=True)):
        return

    def compute(operation: Operation) -> Any:
        return operation.args[0].repeat([after // before for before, after in zip(*sizes, strict=True)])

    does = f"repeats the whole image in {shown(node)}, as jnp.tile does, torch resizes it"
    yield one(Kind.RESAMPLING, node, compute, does, "repeat each pixel: jnp.repeat for each of the two axes")


def pooled(context: Context, node: Node) -> Iterator[Edit]:
    """List max for mean in pools."""
    from torch.nn import functional

    kind, _, rest = node.name.partition("_pool")
    other = {"max": "avg", "avg": "max", "adaptive_avg": "adaptive_max", "adaptive_max": "adaptive_avg"}.get(kind)
    if other is None or not rest:
        return
    function = getattr(functional, f"{other}_pool{rest[:2]}")

    def compute(operation: Operation, function: Callable[..., Any] = function) -> Any:
        # The arguments that both kinds of pools have; count_include_pad or dilation, which one of them has,
        # is dropped.
        names = ("kernel_size", "stride", "padding", "output_size")
        given = {k: v for k, v in operation.kwargs.items() if k in names and v is not None}
        return function(*operation.args[:4], **given)

    words = {"max": "the largest", "avg": "the mean"}[other.removeprefix("adaptive_")]
    own = {"max": "the mean", "avg": "the largest"}[other.removeprefix("adaptive_")]
    yield one(Kind.REDUCTION, node, compute, f"takes {words} in {shown(node)}, torch {own}", f"take {own}")


def other_curves(context: Context, node: Node) -> Iterator[Edit]:
    """List softmax for sigmoid, sin for cos, and so on."""
    import torch

    groups: list[dict[str, Callable[[Any], Any]]] = [
        {"sin": torch.sin, "cos": torch.cos},
        {"exp": torch.exp, "expm1": torch.expm1, "softplus": torch.nn.functional.softplus, "exp2": torch.exp2},
        {"log": torch.log, "log1p": torch.log1p, "log2": torch.log2, "log10": torch.log10},
        {"sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "square": torch.square},
        {"abs": torch.abs, "square": torch.square, "relu": torch.relu},
        {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid, "relu": torch.relu,
         "log_softmax": lambda x: torch.log_softmax(x, -1), "tanh": torch.tanh},
    ]  # fmt: skip
    own = "square" if node.name in _POWERS and node.args[1:] == (2,) else node.name
    for group in groups:
        if own not in group or not node.args or not isinstance(node.args[0], Ref):
            continue
        for name, function in group.items():
            if name != own and may_apply(name, context.theirs, context.shape(node)):

                def compute(operation: Operation, function: Callable[[Any], Any] = function) -> Any:
                    return function(operation.args[0])

                does = f"applies {name} for {shown(node)}"
                known = {name, own} <= _OF_JNP
                code = Code(around=f"jnp.{own}(x)", before=(f"jnp.{name}(x)",)) if known else None
                yield one(Kind.EXCHANGED, node, compute, does, f"apply {own}, as torch does", code)


_POWERS = frozenset({"pow", "__pow__"})


GENERATORS = (
    other_divisors,
    inside_the_root,
    functions_alone,
    repeated,
    resampled,
    tiled,
    farthest,
    pooled,
    other_curves,
    other_arithmetic,
    other_sign,
    other_numbers,
)
