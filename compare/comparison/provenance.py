"""What ran: both sides' settings and a hash of their source, so that a weakened original is seen."""

import hashlib
import inspect
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from compare.comparison.model_pair import ModelPair

_DEPTH = 4
"""How deep to look into the closures of an optax transformation."""


def what_ran(pair: ModelPair, weights: Mapping[str, str | None] | None) -> dict[str, Any]:
    """Describe what both sides are made of, for a person to compare with what it should be."""
    torch, jax = pair.torch, pair.jax
    run = pair.torch_run("float32")
    sides = [
        _Side(_classes(list(torch.model.modules())), torch.loss, torch.optimizer, None),
        _Side(_jax_classes(jax), jax.loss, None, jax.batch),
    ]
    optimizers = [str(run.optimizer) if run.optimizer else None, jax.optimizer and transformation(jax.optimizer)]
    described_sides = [side.described(optimizer) for side, optimizer in zip(sides, optimizers, strict=True)]
    return {
        "mode": "training" if pair.training else "evaluation",
        "batches": list(dict.fromkeys(map(str, pair.batches))),
        "batches_count": len(pair.batches),
        "weights": None if weights is None else dict(weights),
        "torch": described_sides[0],
        jax.name: described_sides[1],
    }


class _Side:
    def __init__(self, classes: list[type], loss: Any, optimizer: Any, batch: Any) -> None:
        self.classes, self.loss, self.batch = classes, loss, batch
        self.functions = [each for each in (loss, optimizer, batch) if each is not None]

    def described(self, optimizer: str | None) -> dict[str, Any]:
        """Give names, the optimizer as it is written, and the hash of all source that is the user's."""
        return {
            "model": (callable_name(self.classes[0]) or "") if self.classes else "",
            "loss": callable_name(self.loss),
            "optimizer": optimizer and " ".join(optimizer.split()),
            "batch": callable_name(self.batch),
            "source": source_hash([*self.classes, *self.functions]),
        }


def callable_name(function: Any) -> str | None:
    """Name a function or an object that is called; None where there is none."""
    if function is None:
        return None
    return (
        repr(function)
        if hasattr(function, "extra_repr")
        else getattr(function, "__qualname__", type(function).__name__)
    )


def _classes(modules: list[Any]) -> list[type]:
    """List the classes of modules, the first one's first."""
    return list(dict.fromkeys(type(module) for module in modules))


def jax_parts(side: Any) -> list[Any]:
    """List the classes and functions that are the port, as far as they are known."""
    update = getattr(side.optimizer, "update", None)
    return [*_jax_classes(side), *(each for each in (side.loss, side.batch, update) if each is not None)]


def _jax_classes(side: Any) -> list[Any]:
    from flax import nnx

    if not hasattr(side, "model"):
        return [side.apply]
    if isinstance(side.model, nnx.Module):
        return _classes([side.model, *(module for _, module in nnx.iter_modules(side.model))])
    return [type(side.model[0])]


def source_hash(parts: list[Any]) -> str:
    """Hash the source of classes and functions that are no library's; of other callables, that of their class."""
    digest = hashlib.sha256()
    for part in parts:
        for each in (part, type(part)):
            try:
                source = _source(each)
            except (TypeError, OSError, IndexError):  # IndexError: doctest's own lines of another block
                continue
            digest.update(source.encode())
            break
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:12]


def _source(part: Any) -> str:
    """Read the source of a class or a function; that of a class once, since Python parses its whole file for it."""
    if not isinstance(part, type):
        return inspect.getsource(part)
    if part not in _SOURCES:
        _SOURCES[part] = inspect.getsource(part)
    return _SOURCES[part]


_SOURCES: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def transformation(optimizer: Any) -> str:
    """Describe an optax transformation by the functions in its closures, and the numbers in them.

    >>> import optax
    >>> transformation(optax.trace(0.5))
    'trace(decay=0.5, nesterov=False)'
    """
    return ", ".join(dict.fromkeys(_links(getattr(optimizer, "update", None), _DEPTH))) or type(optimizer).__name__


def _links(function: Any, depth: int) -> Iterator[str]:
    function = getattr(function, "__func__", getattr(function, "func", function))
    code, closure = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    if code is None or not depth:
        return
    numbers, inner = [], []
    for name, cell in zip(code.co_freevars, closure, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        if isinstance(value, bool | int | float | str):
            numbers.append(f"{name}={value!r}")
        else:
            inner += [each for each in (value if isinstance(value, list | tuple) else [value]) if callable(each)]
    found = [link for each in inner for link in _links(each, depth - 1)]
    name = function.__qualname__.partition(".")[0]
    if numbers or (depth == _DEPTH and not found):
        yield f"{name}({', '.join(numbers)})"
    yield from found
