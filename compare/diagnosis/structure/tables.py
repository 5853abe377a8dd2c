"""Numbers that depend on no parameter and differ on the JAX side: tables, masks, positions."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.signatures import signature_of
from compare.diagnosis.structure.edit import END, UNKNOWN, Context, Edit, Kind, shown
from compare.diagnosis.structure.graph import Node, Operation, Path

if TYPE_CHECKING:
    import torch

ROUNDED = 2.0**-22
"""Relative difference of two tables that one side, or both, had rounded to float32."""

HUGE = 1e30
"""Numbers beyond this are infinite to a softmax."""

FEWEST = 2
"""Numbers that a table must have: a single one would be a constant, which is fitted elsewhere."""


def other_numbers(context: Context, node: Node) -> Iterator[Edit]:
    """List what the JAX side computes without any parameter in the place of such an operand of torch's.

    The array is the JAX side's own, and no number is fitted, so agreement of the whole result is a proof.
    """
    if node.name == END or not context.theirs.values:
        return
    for path, number in node.inputs:
        if number in context.from_parameters or context.value(number).numel() < FEWEST:
            continue
        seen: set[bytes] = set()
        for place, value in enumerate(context.theirs.values):
            if (key := value.array.tobytes()) not in seen:
                seen.add(key)
                yield from filter(None, (_edit(context, node, path, number, place, turned) for turned in (False, True)))


def _edit(context: Context, node: Node, path: Path, number: int, place: int, turned: bool) -> Edit | None:
    """Make one edit; a mask that is `turned` is True where the JAX side's is False, as one that hides is."""
    if place >= len(context.theirs.values):
        return None
    own, value = context.value(number), context.theirs.values[place]
    array = _shaped(value.array, own)
    if array is None or (turned and array.dtype != bool):
        return None
    array = ~array if turned else array
    ours = own.detach().cpu().numpy()
    if np.array_equal(array, ours):
        return None
    kept = number not in context.graph.made_by
    if not kept and _is_neutral(array):
        return None
    given = own.new_tensor(array)

    def compute(operation: Operation) -> Any:
        return operation.having(path, given).run()

    where = f", computed at {value.line}" if value.line else ""
    argument = "" if kept else _argument(node, path)
    name = f"the {argument} of {node.name}" if argument else context.named(number)
    if name == UNKNOWN:  # no input of a module: class weights of a loss, or a table that is made outside of the step
        name = f"the constant of shape {tuple(own.shape)} that {node.name} takes"
    kind = Kind.MASK if array.dtype == bool else Kind.TABLE if kept else Kind.NUMBERS
    # What torch uses in several places, the JAX side may have right in others.
    uses = sum(any(own == number for _, own in each.inputs) for each in context.graph.nodes)
    use = f" in {shown(node)}" if uses > 1 and not argument else ""
    does = f"has other numbers for {name}{use}{where}: {_first_apart(ours, array)}"
    fix = f"take {name}{use}, as torch does" if use else f"compute {name} as torch does"
    fix = f"give {name} torch's numbers" if context.named(number) == UNKNOWN else fix
    again = functools.partial(_edit, node=node, path=path, number=number, place=place, turned=turned)
    if array.dtype.kind == "f" and np.allclose(array, ours, rtol=ROUNDED, atol=0):  # belongs to it, and is no fault
        does = fix = ""
    return Edit(kind, ((node.number, compute),), does, fix, again=again)


def _is_neutral(array: np.ndarray) -> bool:
    """Tell whether it is zeros, ones or an identity matrix: with it, an operation does nothing, and is left out."""
    if array.dtype == bool:
        return False
    alone = not array.any() or bool((array == 1).all())
    square = array.ndim > 1 and array.shape[-2] == array.shape[-1]
    return alone or (square and bool((array == np.eye(array.shape[-1])).all()))


def _argument(node: Node, path: Path) -> str:
    """Name the argument of a function that is at a path, such as `weight`; "" for one that every function has."""
    place = path[1] if len(path) == 2 else None
    if isinstance(place, int):
        signature = signature_of(node.function)
        place = [*signature.parameters][place] if signature and place < len(signature.parameters) else None
    return place if isinstance(place, str) and place not in _OPERANDS else ""


_OPERANDS = ("input", "self", "other", "tensors", "mat2", "tensor1", "tensor2", "exponent", "args", "kwargs")
"""Names that torch gives to what an operation computes with: they say nothing to a person."""


def _shaped(array: np.ndarray, own: "torch.Tensor") -> np.ndarray | None:
    """Give an array in the shape of torch's tensor, where only axes of length one differ and the numbers are alike."""
    kinds = {"b": "b", "f": "f", "i": "iu", "u": "iu"}
    mine = own.detach().cpu().numpy() if not own.dtype.is_complex else np.empty(0)
    if array.dtype.kind not in kinds.get(mine.dtype.kind, ""):
        return None
    if [n for n in array.shape if n != 1] != [n for n in own.shape if n != 1]:
        return None
    return array.reshape(tuple(own.shape))


def _first_apart(ours: np.ndarray, array: np.ndarray) -> str:
    """Say where the numbers are farthest apart."""
    # A mask adds the lowest number of float64 on one side and of float32 on the other: both hide alike, and a place
    # that only one side hides says more.
    own, other = (np.clip(each.astype(np.float64), -HUGE, HUGE) for each in (ours, array))
    apart = ours != array if array.dtype == bool else np.abs(own - other)
    at = np.unravel_index(int(np.argmax(apart)), ours.shape)
    index = ", ".join(map(str, at))
    return f"at [{index}] torch has {_short(ours[at])}, the JAX side {_short(array[at])}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if np.asarray(value).dtype.kind == "f" else str(value)


GENERATORS = (other_numbers,)
