"""Edits of masks: inverted, left out, transposed, with another diagonal, and added."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

from compare.diagnosis.structure.edit import Context, Edit, Kind, one, shown
from compare.diagnosis.structure.graph import Node, Operation, Path
from compare.verdict.fix import source


def other_masks(context: Context, node: Node) -> Iterator[Edit]:
    """List other masks where an operation takes one."""
    import torch

    for path, number in node.inputs:
        value = context.value(number)
        boolean = value.dtype == torch.bool
        if not boolean and not (value.is_floating_point() and torch.isinf(value).any()):
            continue
        if not boolean and context.graph.made_by.get(number) is not None:
            continue  # these are scores that were masked before, and no mask
        # Softmax of a row of -inf alone is 0 / 0. An inverted mask often has such rows, so each is tried with a large
        # finite number too, as in flax.linen.dot_product_attention_weights (jnp.finfo(dtype).min).
        for words, _ in _masks(value):
            for finite in (False, True):

                def compute(operation: Operation, path: Path = path, words: str = words, finite: bool = finite) -> Any:
                    mask = dict(_masks(operation.at(path)))[words]
                    return (_finite(operation) if finite else operation).having(path, mask).run()

                fix = _FIXES.get(words, f"give {shown(node)} torch's mask")
                yield one(Kind.MASK, node, compute, f"has the mask {words} in {shown(node)}", fix)


_FIXES = {
    "inverted": "invert the mask: jnp.logical_not(mask)",
    "left out": "apply the mask, as torch does",
}


def _finite(operation: Operation) -> Operation:
    """Mask with a finite number, as Flax does: the softmax of a row that is masked as a whole is then no NaN."""
    import torch

    last = len(operation.args) - 1
    if operation.node.name == "masked_fill" and operation.args[last] == -math.inf:
        return operation.having(("args", last), torch.finfo(operation.args[0].dtype).min)
    return operation


def _masks(mask: Any) -> Iterator[tuple[str, Any]]:
    import torch

    if mask.dtype != torch.bool:  # minus infinity where nothing is to be seen
        hidden = mask == -math.inf
        for words, other in _masks(hidden):
            yield words, torch.zeros_like(mask).masked_fill(other, torch.finfo(mask.dtype).min)
        return
    # Of masks that come to the same, the first is told: the one that changes least.
    yield from _with_other_diagonals(mask)
    yield "inverted", mask.logical_not()
    yield "left out", torch.zeros_like(mask)
    if mask.dim() > 1:
        if mask.shape[-1] == mask.shape[-2]:
            yield "transposed", mask.transpose(-1, -2)
        for by in (-1, 1):
            yield f"rolled by {by}", mask.roll(by, -1)


def _with_other_diagonals(mask: Any) -> Iterator[tuple[str, Any]]:
    import torch

    if mask.dim() < 2:
        return
    rows, columns = mask.shape[-2:]
    every = torch.ones(rows, columns, dtype=torch.bool, device=mask.device)
    for hides in (True, False):
        for diagonal in range(-1, columns - rows + 2):
            plain = every.triu(diagonal + 1) if hides else every.tril(diagonal)
            if torch.equal(plain.expand_as(mask), mask):
                for by in (-1, 1, columns - rows - diagonal or -2, -diagonal or 2):
                    shifted = every.triu(diagonal + by + 1) if hides else every.tril(diagonal + by)
                    yield f"with its diagonal moved by {by}", shifted.expand_as(mask)
                return
    own = mask.diagonal(dim1=-2, dim2=-1)
    if rows == columns and (own.all() or not own.any()):  # as of pairs of examples
        yield f"{not own.any()} on its diagonal", mask ^ torch.eye(rows, dtype=torch.bool, device=mask.device)


def added_masks(context: Context, node: Node) -> Iterator[Edit]:
    """List other masks where torch adds zeros and a large negative number to the scores.

    The JAX side may fill the scores with that number in place of adding it. In a row that is hidden as a whole, the
    scores are then lost, which float64 would otherwise keep.
    """
    import torch

    if node.name != "add" or len(node.inputs) != 2:
        return
    for (path, number), (scores, _) in itertools.permutations(node.inputs, 2):
        value = context.value(number)
        if not _hides_by_adding(value):
            continue
        fill = float(value.min())
        for words in ("", *(words for words, _ in _masks(value < 0))):
            for filled in (False, True) if words else (True,):

                def compute(
                    operation: Operation,
                    path: Path = path,
                    scores: Path = scores,
                    words: str = words,
                    filled: bool = filled,
                    fill: float = fill,
                ) -> Any:
                    hidden = operation.at(path) < 0
                    hidden = dict(_masks(hidden))[words] if words else hidden
                    if filled:
                        return torch.where(hidden, fill, operation.at(scores))
                    return operation.at(scores) + torch.where(hidden, fill, 0.0)

                does = f"has the mask {words} in {shown(node)}"
                fix = _FIXES.get(words, "apply torch's mask")
                if not words:
                    does = (
                        f"fills the hidden scores with one number in {shown(node)}, where torch adds {fill:g} to them"
                    )
                    fix = f"add the mask as torch does: scores + jnp.where(hidden, {source(fill)}, 0.0)"
                yield one(Kind.MASK, node, compute, does, fix)


def _hides_by_adding(value: Any) -> bool:
    """Return whether a tensor is zero but for one large negative number, such as -1e9."""
    if not value.is_floating_point() or not value.numel() or not value.isfinite().all():
        return False
    least = value.min()
    return bool(least <= HIDES and ((value == 0) | (value == least)).all())


HIDES = -1e3
"""What is added to a score hides it if it is no larger than this."""


_BOUNDS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}
"""Comparisons, and those that differ from them where both sides are equal alone."""


def other_bounds(context: Context, node: Node) -> Iterator[Edit]:
    """List comparisons that count the bound in, or leave it out: `t <= length` for `t < length`."""
    import torch

    if node.name not in _BOUNDS or len(node.args) != 2:
        return
    other = _BOUNDS[node.name]
    # Of the four names, only "le" and "ge" contain an "e": these are true for equal numbers.
    ours, theirs = ("true", "false") if "e" in node.name else ("false", "true")

    def compute(operation: Operation) -> Any:
        return getattr(torch, other)(*operation.args)

    does = f"takes equal numbers as {theirs} in {shown(node)}, torch as {ours}"
    signs = "<= and >=, not < and >" if ours == "true" else "< and >, not <= and >="
    yield one(Kind.MASK, node, compute, does, f"compare as torch does: {signs}")


def diagonals(context: Context, node: Node) -> Iterator[Edit]:
    """List other diagonals where a triangle is cut out."""
    if node.name not in ("tril", "triu"):
        return
    own = node.kwargs.get("diagonal", node.args[1] if len(node.args) > 1 else 0)
    for other in (own - 1, own + 1):

        def moved(operation: Operation, other: int = other) -> Any:
            return getattr(operation.args[0], operation.node.name)(other)

        does = f"cuts the triangle at diagonal {other} in {shown(node)}, torch at {own}"
        yield one(Kind.MASK, node, moved, does, f"jnp.{node.name}(..., k={own})")

    def turned(operation: Operation) -> Any:
        return operation.run().transpose(-1, -2)

    yield one(Kind.MASK, node, turned, f"has the triangle of {shown(node)} transposed", f"jnp.{node.name}")


def where_exchanged(context: Context, node: Node) -> Iterator[Edit]:
    """List the branches of `where` exchanged, and masking after a softmax instead of before it."""
    if node.name == "where" and len(node.args) == 3:

        def exchanged(operation: Operation) -> Any:
            import torch

            condition, a, b = operation.args
            return torch.where(condition, b, a)

        does = f"exchanges the two branches of {shown(node)}"
        yield one(Kind.MASK, node, exchanged, does, "jnp.where(condition, x, y) has torch's order")
    if node.name == "masked_fill" and len(node.args) == 3:
        for value in (0.0, -1.0, -math.inf):
            if value != node.args[2]:

                def filled(operation: Operation, value: float = value) -> Any:
                    return operation.having(("args", 2), value).run()

                does = f"fills with {value} in {shown(node)}, torch with {node.args[2]}"
                yield one(Kind.MASK, node, filled, does, f"fill with {node.args[2]}")
        for user in context.users.get(node.outputs[0], []):
            if user.name == "softmax":

                def after(operation: Operation, node: Any = node) -> Any:
                    scores, mask, _ = operation.of(node).args
                    return operation.having(("args", 0), scores).run().masked_fill(mask, 0.0)

                does = f"masks after {shown(user)}, torch before it"
                yield one(Kind.MASK, user, after, does, "mask the scores with -jnp.inf before jax.nn.softmax")


def put_in(context: Context, node: Node) -> Iterator[Edit]:
    """List causal masks that torch has not."""
    import torch

    if node.name != "softmax" or not context.data(node):
        return
    ((path, number),) = context.data(node)[:1]
    shape = context.value(number).shape
    if len(shape) < 2 or shape[-1] == 1:
        return

    def causal(operation: Operation, path: Path = path) -> Any:
        scores = operation.at(path)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return operation.having(path, scores.masked_fill(hidden, -math.inf)).run()

    does = f"has a causal mask before {shown(node)}, torch has none"
    yield one(Kind.MASK, node, causal, does, "attend to all positions: leave out the causal mask")


GENERATORS = (other_masks, added_masks, other_bounds, diagonals, where_exchanged, put_in)
