"""Compares the shapes of both forward passes layer by layer, up to the first that differs, without any weights."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compare.errors import InputError, UserCodeError
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.report.shapes import Call, Row, Shape, Shapes
from compare.step import batch as batching
from compare.step.observation import Port
from compare.step.places import Source
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun
from compare.torch_side.side import Torch
from compare.weights.layers import KINDS

WHOLE = "the model"
"""The name of what no layer is."""


def shapes_by_layer(torch: Torch, jax: Flax | Jax, batches: Any, *, device: str = "cpu", name: str = "port") -> Shapes:
    """Run the torch model forward once, trace the JAX model, and hold the layers' shapes against each other.

    Layers are partners by their kinds, in order of execution: weights need not fit, nor have names alike.

    Raises:
        InputError: For what are no sides or batches.

    """
    if not isinstance(torch, Torch) or not isinstance(jax, Flax | Jax):
        raise InputError("shapes are compared of a compare.Torch and a compare.Flax or compare.Jax")
    given = batching.checked(batches, loss=torch.loss is not None)[0]
    errors = []
    record = Record(placed=True)
    try:
        TorchRun(torch, "float32", device).forward(given, record)
    except UserCodeError as error:
        errors.append(str(error))
    run = JaxRun(jax, "float32", training=torch.model.training)
    try:
        run.probe(given)
    except UserCodeError as error:
        errors.append(str(error))
    kinds = {path: type(module).__name__ for path, module in run.record.modules.items()}
    ours = list(_calls({port: tuple(x.shape) for port, x in record.seen.items()}, record.modules, record.calls))
    theirs = list(_calls({port: tuple(x.shape) for port, x in run.record.seen.items()}, kinds, run.record.calls))
    return Shapes(name, ("torch", jax.name), list(_up_to_first(_rows(ours, theirs))), errors)


def _calls(
    shapes: Mapping[Port, Shape], kinds: Mapping[str, str], sources: Mapping[str, Source | None]
) -> Iterator[Call]:
    """List the calls of layers that have weights of their own kind, and the whole model, in order of execution."""
    for path, kind in kinds.items():
        is_layer = kind in KINDS or not any(other.startswith(path) for other in kinds if other != path)
        calls = sorted({port.call for port in shapes if port.path == path})
        if path and is_layer:
            for call in calls:
                given = [shape for port, shape in shapes.items() if port[:3] == (path, call, "output")]
                yield Call(
                    path + (f" (call {call})" if call else ""), kind, given[0] if given else None, sources.get(path)
                )
    outputs = [shape for port, shape in shapes.items() if port[:3] == ("", 0, "output")]
    if outputs:
        yield Call(WHOLE, kinds.get("", ""), outputs[0])


def _rows(ours: Sequence[Call], theirs: Sequence[Call]) -> Iterator[Row]:
    """Put partners side by side: calls of the same kind, in the same order."""
    torch, jax = ([_kind(call) for call in side] for side in (ours, theirs))
    # As a diff of two files: kinds of layers in order of execution, so that a layer that one side lacks
    # shifts nothing.
    matcher = difflib.SequenceMatcher(a=torch, b=jax, autojunk=False)
    for what, first, last, start, end in matcher.get_opcodes():
        if what == "equal":
            yield from (Row(a, b) for a, b in zip(ours[first:last], theirs[start:end], strict=True))
        else:
            yield from (Row(call, None) for call in ours[first:last])
            yield from (Row(None, call) for call in theirs[start:end])


def _kind(call: Call) -> str:
    return call.name if call.name == WHOLE else KINDS.get(call.kind, call.kind)


def _up_to_first(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        yield row
        if row.differs:
            return
