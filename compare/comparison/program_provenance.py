"""Describes what ran for two programs: the source of both, their optimizers and their batches."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from compare.comparison.program_pair import ProgramPair
from compare.comparison.provenance import callable_name, source_hash, transformation
from compare.jax_side.program_run import JaxProgramRun
from compare.step.batch import described


def what_programs_ran(
    pair: ProgramPair, port: JaxProgramRun, weights: Mapping[str, str | None] | None
) -> dict[str, Any]:
    """Describe what both programs consist of, so that a person can compare it with what they expect."""
    import torch

    run = pair.torch_run("float32")
    models = [run.model.get_submodule(path) for path in run.models]
    ours = list(dict.fromkeys(type(module) for model in models for module in model.modules()))
    optimizers: dict[str, torch.optim.Optimizer] = run.optimizers
    nodes = dict(_nodes(port.user_state, ""))
    theirs = list(dict.fromkeys(kind for node in nodes.values() for kind in _classes(node)))
    transformations = {path: transformation(node.tx) for path, node in nodes.items() if hasattr(node, "tx")}
    return {
        "mode": "program",
        "batches": list(dict.fromkeys(map(described, pair.batches))),
        "batches_count": len(pair.batches),
        "weights": None if weights is None else dict(weights),
        "torch": _side(
            pair.torch.build, [*ours, run.user_step], {path: str(each) for path, each in optimizers.items()}
        ),
        "jax": _side(pair.jax.build, [*theirs, port.user_step], transformations, pair.jax.batch),
    }


def program_parts(port: JaxProgramRun) -> list[Any]:
    """List the classes and functions that are the port, as far as they are known."""
    nodes = dict(_nodes(port.user_state, "")).values()
    return [_opened(port.side.build)[0], *(kind for node in nodes for kind in _classes(node)), port.user_step]


def _side(build: Any, parts: list[Any], optimizers: Mapping[str, str], batch: Any = None) -> dict[str, Any]:
    function, arguments = _opened(build)
    batch_parts = [] if batch is None else [_opened(batch)[0]]
    return {
        "program": callable_name(function),
        "optimizers": {name: " ".join(text.split()) for name, text in optimizers.items()},
        "batch": callable_name(batch),
        "source": source_hash([function, *arguments, *parts, *batch_parts]),
    }


def _opened(function: Any) -> tuple[Any, list[Any]]:
    """Return the function within a partial, and its arguments that are plain values: others may print an address."""
    arguments: list[Any] = []
    while isinstance(function, functools.partial):
        given = [*function.args, *sorted(function.keywords.items())]
        arguments += [repr(each) for each in given if isinstance(each, bool | int | float | str | tuple)]
        function = function.func
    return function, arguments


def _nodes(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """List the objects of a JAX state with their paths: nnx modules and optimizers, and the inner nodes of pytrees."""
    import jax
    from flax import nnx

    children = [] if isinstance(value, nnx.Pytree) else _children(value)
    if isinstance(value, nnx.Pytree) or children:
        yield path, value
    for key, child in children:
        yield from _nodes(child, "/".join(filter(None, [path, jax.tree_util.keystr(key, simple=True, separator="/")])))


def _children(value: Any) -> list[tuple[Any, Any]]:
    """Return what is directly below a node of a pytree; nothing for an array and for what optax remembers."""
    import jax

    if type(value).__module__.startswith("optax"):
        return []
    below: Any = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda each: each is not value)[0]
    return [(key, child) for key, child in below if child is not value]


def _classes(node: Any) -> Iterator[type]:
    """List the classes of an object of a JAX state whose source is the model's."""
    from flax import nnx

    if isinstance(node, nnx.Optimizer):
        return
    if isinstance(node, nnx.Module):
        yield from (type(module) for _, module in nnx.iter_modules(node))
    elif type(node).__module__ != "builtins":
        yield type(node)
        # A TrainState knows its Linen module by the method that it calls.
        linen = getattr(getattr(node, "apply_fn", None), "__self__", None)
        if linen is not None:
            yield type(linen)
