"""Batches: what goes into both models, and what their outputs are held against."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.errors import InputError


class Batch(NamedTuple):
    """One step's inputs and targets, as NumPy arrays."""

    inputs: Any
    """An array, a tuple (positional) or a dict (keyword)."""
    target: Any = None

    def __str__(self) -> str:
        """Like "inputs float32 (64, 1000), target int64 (64,)"."""
        return f"inputs {_described(self.inputs)}, target {_described(self.target)}"


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(map(_described, tree)) + ")"
    return f"{tree.dtype} {tree.shape}" if hasattr(tree, "shape") else repr(tree)


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
        raise InputError(f"batches[{number}] must be a pair (inputs, targets), and is {_described(batch)}")
    else:
        found = Batch(batch)
    return Batch(*(mapped(part, lambda array: _array(f"batches[{number}]", array)) for part in found))


def _array(name: str, value: Any) -> Any:
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


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to each leaf of nested tuples, lists and dicts."""
    if isinstance(tree, Mapping):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(value, function) for value in tree)
    return function(tree)


def called(inputs: Any, convert: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a batch's inputs into a call's positional and keyword arguments, with each array converted."""
    tree = mapped(inputs, convert)
    if isinstance(tree, Mapping):
        return (), dict(tree)
    return (tree if isinstance(tree, tuple) else (tree,)), {}


def checked_loss(side: str, loss: Callable[[Any, Any], Any], output: Any, target: Any) -> Any:
    """Compute the loss; InputError if it fails, or is not a scalar."""
    try:
        value = loss(output, target)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"the {side} loss does not take the model's output and the target: {error}") from error
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape) != ():
        what = f"has shape {tuple(shape)}" if shape is not None else f"is a {type(value).__name__}"
        raise InputError(f"the {side} loss {what}, but must be a scalar: take its mean or its sum")
    return value


def adapted(batch: Batch, adapt: Callable[..., Any] | None) -> Batch:
    """Apply the user's `batch=` function."""
    if adapt is None:
        return batch
    positional = [
        parameter
        for parameter in inspect.signature(adapt).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    try:
        found = adapt(*batch) if len(positional) == 2 else adapt(tuple(batch))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"batch= does not take the batch ({batch}), a pair of inputs and target: {error}") from error
    if isinstance(found, tuple | list) and len(found) == 2:
        return Batch(*found)
    if batch.target is None:
        return Batch(found)
    raise InputError(f"batch= must give a pair (inputs, target), and gave a {type(found).__name__}")


def channels_last(batch: Batch, adapt: Callable[..., Any] | None) -> bool:
    """Tell whether `batch=` moves channels to the end."""
    ours, theirs = batch.inputs, adapted(batch, adapt).inputs
    return (
        isinstance(ours, np.ndarray)
        and ours.ndim > 2
        and not np.array_equal(ours, theirs)
        and np.array_equal(np.moveaxis(ours, 1, -1), theirs)
    )
