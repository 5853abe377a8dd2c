"""Compares the shapes of both forward passes layer by layer, up to the first that differs, without any weights."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from compare.comparison.layer_rows import RECURRENT, WHOLE, Calls, rows
from compare.errors import InputError, UserCodeError
from compare.jax_side.program import JaxProgram
from compare.jax_side.record import Ran
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.report.shapes import Call, Shape, Shapes, up_to_first
from compare.step import batch as batching
from compare.step.observation import Port, which_call
from compare.step.places import Source
from compare.torch_side.program import TorchProgram
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun
from compare.torch_side.side import Torch
from compare.weights.layers import KINDS


def shapes_by_layer(torch: Torch, jax: Flax | Jax, batches: Any, *, device: str = "cpu", name: str = "port") -> Shapes:
    """Run the torch model forward once, trace the JAX model, and compare the layers' shapes.

    Layers are paired by their kinds, in order of execution: neither shapes of weights nor names need to agree.

    Raises:
        InputError: For what are no sides or batches, and for programs.

    """
    if isinstance(torch, TorchProgram) or isinstance(jax, JaxProgram):
        raise InputError(
            "compare.TorchProgram and compare.JaxProgram have no shapes check: a program is compared as a whole. Use "
            "`netparity check`"
        )
    if not isinstance(torch, Torch) or not isinstance(jax, Flax | Jax):
        raise InputError("netparity shapes compares a compare.Torch with a compare.Flax or compare.Jax")
    given = batching.checked(batches, loss=torch.loss is not None)[0]
    errors, raised = [], ["", ""]
    record = Record(placed=True)
    try:
        TorchRun(torch, "float32", device).forward(given, record)
    except UserCodeError as error:
        errors.append(str(error))
        raised[0] = record.running
    run = JaxRun(jax, "float32", training=torch.model.training)
    try:
        modules = run.probe(given).modules
    except UserCodeError as error:
        errors.append(str(error))
        modules, raised[1] = run.structure.record.modules, run.structure.record.running
    ours = list(_calls(_shapes(record.seen), record.modules, record.calls, raised[0]))
    kinds = _kinds(modules)
    sources = {path: ran.called for path, ran in modules.items()}
    hidden = [path for path in kinds if modules[path].inside]
    theirs = list(_calls(run.structure.record.shapes, kinds, sources, raised[1], hidden))
    return Shapes(name, ("torch", jax.name), up_to_first(list(rows(ours, theirs)), ran=not errors), errors)


def _shapes(seen: Mapping[Port, Any]) -> dict[Port, Shape]:
    return {port: tuple(x.shape) for port, x in seen.items()}


def _kinds(modules: Mapping[str, Ran]) -> dict[str, str]:
    """Name the class of each module; of Flax's RNN that of its cell: the two are one layer in torch."""
    cells = {
        outer: path  # the cell is what it runs first, in a scan
        for outer, path in pairwise(modules)
        if modules[outer].cls.__name__ == "RNN" and modules[path].inside
    }
    kinds = {path: ran.cls.__name__ for path, ran in modules.items()}
    kinds |= {outer: kinds[cell] for outer, cell in cells.items() if kinds[cell] in KINDS}
    within = tuple(f"{cell}/" for cell in cells.values())
    return {path: kind for path, kind in kinds.items() if not f"{path}/".startswith(within)}


def _calls(
    shapes: Mapping[Port, Shape],
    kinds: Mapping[str, str],
    sources: Mapping[str, Source | None],
    raised: str,
    hidden: Sequence[str] = (),
) -> Iterator[Calls]:
    """List the calls of each layer that has weights of its own kind, and of the model, in order of execution.

    Args:
        shapes: Of what each module takes and gives.
        kinds: The class of each module that ran.
        sources: The lines that call them.
        raised: The module that raised an error; "" if none did.
        hidden: Modules that ran inside a transformation of JAX, out of which no shapes come.

    """
    for path, kind in kinds.items():
        is_layer = kind in KINDS or not any(other.startswith(path) for other in kinds if other != path)
        if not path or not is_layer:
            continue
        if path in hidden:
            yield [Call(path, kind, None, sources.get(path), inside=True)]
        elif calls := sorted({port.call for port in shapes if port.path == path}):
            outputs = [_output(shapes, path, call, kind) for call in calls]
            yield [
                Call(
                    path + which_call(call),
                    kind,
                    shape,
                    sources.get(path),
                    raised=path == raised and call == calls[-1],
                )
                for call, shape in zip(calls, outputs, strict=True)
            ]
    if (shape := _output(shapes, "", 0)) is not None:
        yield [Call(WHOLE, kinds.get("", ""), shape)]


def _output(shapes: Mapping[Port, Shape], path: str, call: int, kind: str = "") -> Shape | None:
    """Return the shape of the first output of a call; None if there is none."""
    outputs = [shape for port, shape in shapes.items() if port[:3] == (path, call, "output")]
    if KINDS.get(kind) in RECURRENT:  # Flax may give the carry first, which has one axis less than the sequence
        return max(outputs, key=len, default=None)
    return next(iter(outputs), None)
