"""Batches: the inputs of both models, and the targets of their losses."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.errors import InputError
from compare.step.user_code import call_user_code, on_another_device


class Batch(NamedTuple):
    """One step's inputs and targets, as NumPy arrays."""

    inputs: Any
    """An array, a tuple (positional) or a dict (keyword)."""
    target: Any = None

    def __str__(self) -> str:
        """Like "inputs float32 (64, 1000), target int64 (64,)"."""
        return f"inputs {described(self.inputs)}, target {described(self.target)}"


def described(tree: Any) -> str:
    """Show what arrays a batch, or a part of one, is made of: "{x: float32 (64, 1000)}"."""
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key}: {described(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(map(described, tree)) + ")"
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    return f"{tree!r:.60}"


def kinds_of(value: Any) -> str:
    """Name what a function returned in place of something else: "a float"; the parts of a tuple, "(dict, float)"."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        listed = [_kind(each) for each in value[:MOST]]
        return f"({', '.join(listed)}{', ...' if len(value) > MOST else ',' if len(value) == 1 else ''})"
    kind = _kind(value)
    return kind if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


MOST = 6
"""Parts of a tuple that are named, at most."""


def _kind(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # the class of what JAX traces says nothing
        return "scalar" if not value.shape else f"array of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    jitted = callable(value) and hasattr(value, "__wrapped__")
    return "function" if jitted or inspect.isroutine(value) else type(value).__name__


def described_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Show the arguments of a call: "inputs float32 (64, 1000)", with the names of those that have one."""
    named = [f"{name}={described(value)}" for name, value in kwargs.items()]
    return "inputs " + (", ".join([*map(described, args), *named]) or "none")


def checked(batches: Any, *, loss: bool) -> list[Batch]:
    """Turn what a user gives as batches into a list of them.

    Raises:
        InputError: If there is none, one is not a pair although there is a loss, or an array is neither NumPy's nor
            finite.

    """
    if isinstance(batches, Mapping | np.ndarray | str) or not isinstance(batches, Sequence):
        raise InputError(f"batches must be a list of (inputs, targets), not a {type(batches).__name__}")
    if not batches:
        raise InputError("batches is empty: nothing would be compared")
    return [_batch(number, batch, loss) for number, batch in enumerate(batches)]


def _batch(number: int, batch: Any, loss: bool) -> Batch:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        found = Batch(*batch)
    elif loss:
        raise InputError(f"batches[{number}] must be a pair (inputs, targets), but is {described(batch)}")
    else:
        found = Batch(batch)
    arrays: list[np.ndarray] = []

    def kept(value: Any) -> Any:
        array = checked_array(f"batches[{number}]", value)
        arrays.extend([array] if isinstance(array, np.ndarray) else [])
        return array

    inputs = mapped(found.inputs, kept)
    if arrays and not any(array.size for array in arrays):
        raise InputError(f"batches[{number}] is empty: its inputs are {described(inputs)}, without any element")
    return Batch(inputs, mapped(found.target, kept))


def checked_array(name: str, value: Any) -> Any:
    """Check one leaf of a batch, called `name` in messages."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if type(value).__module__.partition(".")[0] == "torch":
        raise InputError(f"{name} holds a torch tensor: give NumPy arrays, for example tensor.numpy()")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} holds an array of dtype {array.dtype}: only numbers can be compared")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise InputError(f"{name} holds {array[tuple(where)]} at {where}: the data must be finite")
    return array


def first_axes(batches: Any) -> set[int]:
    """Return the lengths of the first axes of all arrays in a pytree."""
    import jax

    return {len(leaf) for leaf in jax.tree.leaves(batches) if np.ndim(leaf)}


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to each leaf of nested tuples, named tuples, lists and dicts.

    Dicts keep their order, which `jax.tree.map` does not: modules' inputs are shown in it.
    """
    if isinstance(tree, Mapping):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [mapped(value, function) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return function(tree)


def with_one_reversed(batch: Any) -> Iterator[Any]:
    """Yield a batch with the examples of one of its arrays in reverse order, for each that may be a target.

    Those are the targets of a `Batch`, and of a program's batch all arrays.
    """
    tree = batch.target if isinstance(batch, Batch) else batch
    leaves: list[Any] = []
    mapped(tree, leaves.append)
    for number, leaf in enumerate(leaves):
        if np.ndim(leaf) and len(leaf) > 1:
            other = mapped(tree, functools.partial(_reversed_at, number, itertools.count()))
            yield batch._replace(target=other) if isinstance(batch, Batch) else other


def _reversed_at(number: int, count: Iterator[int], leaf: Any) -> Any:
    return leaf[::-1].copy() if next(count) == number else leaf


def called(inputs: Any, convert: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a batch's inputs into a call's positional and keyword arguments, with each array converted."""
    tree = mapped(inputs, convert)
    if isinstance(tree, Mapping):
        return (), dict(tree)
    return (tuple(tree) if isinstance(tree, tuple) else (tree,)), {}


def check_call(
    call: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], advice: str = ""
) -> None:
    """Raise InputError if a function of the user's cannot be called so: an argument is missing, or one too many."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is written in C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"{call} does not take {described_call(args, kwargs)}: {error}{advice and f'. {advice}'}"
        ) from error


def checked_loss(side: str, loss: Callable[[Any, Any], Any], output: Any, target: Any) -> Any:
    """Compute the loss; InputError if it fails, or is not a real scalar."""
    call = f"the {side} loss"
    check_call(call, loss, (output, target), {}, "It is called with the model's output and the batch's target")
    given = f"output {described(output)}, target {described(target)}"
    value = call_user_code(call, functools.partial(loss, output, target), given=given, advice=on_another_device)
    checked_scalar(call, value)
    return value


def checked_scalar(call: str, value: Any) -> None:
    """Raise InputError if what a call gives is not a real scalar."""
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape) != ():
        what = f"has shape {tuple(shape)}" if shape is not None else f"is a {type(value).__name__}"
        raise InputError(f"{call} {what}, but must be a scalar: take its mean or its sum")
    if "complex" in str(value.dtype):
        raise InputError(f"{call} is complex, but must be a real number: take its real part or its absolute value")
    if "float" not in str(value.dtype):
        raise InputError(f"{call} is of type {value.dtype}, but must be a floating-point number, to have a gradient")


def adapted(batch: Batch, adapt: Callable[..., Any] | None) -> Batch:
    """Apply the user's `batch=` function."""
    if adapt is None:
        return batch
    args = tuple(batch) if _takes_two(adapt) else (tuple(batch),)
    check_call("batch=", adapt, args, {}, "It is called with the inputs and the target, or with a pair of them")
    found = call_user_code("batch=", functools.partial(adapt, *args), given=f"{batch}")
    if isinstance(found, tuple | list) and len(found) == 2:
        return Batch(*(mapped(part, _checked_adapted) for part in found))
    if batch.target is None:
        return Batch(mapped(found, _checked_adapted))
    raise InputError(f"batch= must return a pair (inputs, target), but returned {kinds_of(found)}")


def _takes_two(adapt: Callable[..., Any]) -> bool:
    """Return whether `batch=` is a function of inputs and target, and not of a pair of them."""
    try:
        parameters = inspect.signature(adapt).parameters.values()
    except (TypeError, ValueError):  # of what is written in C
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.default is each.empty and each.kind in positional for each in parameters) == 2


def _checked_adapted(value: Any) -> Any:
    if type(value).__module__.partition(".")[0] == "torch":
        raise InputError(
            "batch= returned a torch tensor: this side needs NumPy or JAX arrays, for example tensor.numpy()"
        )
    return value


def channels_last(batch: Batch, adapt: Callable[..., Any] | None) -> bool:
    """Return whether `batch=` moves channels to the end."""
    ours, theirs = batch.inputs, adapted(batch, adapt).inputs
    return (
        isinstance(ours, np.ndarray)
        and ours.ndim > 2
        and not np.array_equal(ours, theirs)
        and np.array_equal(np.moveaxis(ours, 1, -1), theirs)
    )
