"""Runs steps of the torch side with some of their operations edited."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.graph import Compute, Graph
from compare.diagnosis.structure.recording import Operations, Tape
from compare.errors import InternalError, NotApplicable
from compare.step.observation import Observation, Port

if TYPE_CHECKING:
    import torch


def edited(rerun: Rerun, edits: Mapping[int, Compute], graph: Graph) -> Observation:
    """Run the step with operations edited, by their numbers in its graph; NotApplicable where one cannot be."""
    tape = Tape(rerun.overwritten, operations(edits, graph), written_out=graph.written_out)
    try:
        return rerun.step(tape, tape.recording(rerun.model))
    except InternalError as error:
        # Torch may refuse what an edit gives only at a later operation, such as a view of what is not contiguous any
        # more. The tape calls it, so that it looks like an error of this package; without edits it is one.
        if not edits:
            raise
        raise NotApplicable(str(error)) from error


def operations(edits: Mapping[int, Compute], graph: Graph) -> Operations:
    """Name the operations of a step's graph that are edited."""
    # A call that gives no tensor, such as x.dim(), is no operation, which is known only once it is made.
    return {(number, graph.nodes[number].name): edit for number, edit in edits.items()}


@contextlib.contextmanager
def editing(model: "torch.nn.Module", overwritten: frozenset[Port], edits: Operations) -> Iterator[None]:
    """Edit operations of the step that runs while this lasts, by their numbers from its beginning on."""
    known = next((tape for own, tape in _EDITED if own is model), None)
    if known is not None:
        # One tape makes all edits of a step: within another one, it would see what that one makes of the operations.
        before, known.edits = known.edits, {**known.edits, **edits}
        try:
            yield
        finally:
            known.edits = before
        return
    tape = Tape(overwritten, edits)
    _EDITED.append((model, tape))
    try:
        with tape.of(model), tape.recording(model):
            yield
    finally:
        _EDITED.pop()


_EDITED: "list[tuple[torch.nn.Module, Tape]]" = []
"""The models of steps that run now with edits, and the tapes that make these."""
