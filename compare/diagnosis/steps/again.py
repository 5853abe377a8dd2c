"""A step of a torch program that can be taken again and again: what the search for causes in a model works on."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from compare.diagnosis.changes import combined
from compare.diagnosis.conventions.base import DROPOUT
from compare.diagnosis.counterfactuals import FUNCTIONS, Counterfactual
from compare.diagnosis.rewriting import Call, Rewrite, Window, rewriting
from compare.diagnosis.searched import Searched
from compare.diagnosis.steps.edit import Edit
from compare.diagnosis.structure.editing import editing
from compare.diagnosis.structure.recording import Operations
from compare.errors import InternalError, NotApplicable
from compare.numerics.relations import is_simple
from compare.step.draws import Draw
from compare.step.observation import Observation
from compare.step.user_code import of_a_library, site_of
from compare.torch_side.common_run import CommonRun
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.record import Record
from compare.torch_side.snapshot import snapshot
from compare.verdict.divergence import Cause

if TYPE_CHECKING:
    import torch


class Again:
    """A step of a program, from the state that a run has now.

    Args:
        run: In float64, before the step.

    """

    def __init__(self, run: TorchProgramRun) -> None:
        self.model, self.parameters, self.overwritten = run.model, run.parameters, run.overwritten
        self._run, self._snapshot, self._taken = run, snapshot(run), run.taken

    def without_update(self, *, loss: bool = True) -> "Again":
        """Give the whole step: where it updates what is the user's own business."""
        del loss
        return self

    def restorer(self) -> Callable[[], None]:
        """Return the function that puts back the state before the step, whatever has run since."""

        def restore() -> None:
            with Record.working(keeping=True):
                self._snapshot()
            self._run.taken = self._taken

        return restore

    def buffers(self) -> "dict[str, torch.Tensor]":
        """Return the buffers of the state's modules, by name."""
        return dict(self.model.named_buffers())

    def around(self) -> contextlib.AbstractContextManager[None]:
        """Make the changes of the step that are known already."""
        return self._run.around()

    def controlled(self, replay: Sequence[Draw] | None) -> contextlib.AbstractContextManager[Any]:
        """Return what controls a step."""
        return self._run.controlled(replay)

    def step(self, batch: Any, record: Record) -> Observation:
        """Take the step."""
        import torch

        # Who takes it may have no use for gradients, and the user's step has. Calls are numbered from its beginning on,
        # as they are where an edit is in force while it runs.
        with torch.enable_grad():
            try:
                return self._run.step(batch, record)
            except InternalError as error:  # what a change of a call leads to, as in the user's backward pass
                raise NotApplicable(str(error)) from error

    @property
    def shows_values(self) -> bool:
        """Whether all that it differentiates is compared as well: a loss that the step does not show is not."""
        return False

    def makes(self, frame: FrameType) -> bool:
        """Tell whether the call of torch that a frame makes is of the user's code."""
        return is_users(frame)


def wider_edit(searched: Searched) -> Edit | None:
    """Make an edit of an operation or a call at all calls of its line, for all steps; None if there are no others."""
    if (found := _of_operations(searched, searched.at_all_calls)) is not None or searched.edited:
        return found
    cause, meant = searched.cause, [each for group, _ in searched.changed for each in group]
    if cause is None or len(searched.changed) != 1 or not all(any(each.call.site) for each in meant):
        return None
    made = combined(searched.changed)
    rewrites = {(each.call.name, each.call.site): _of(each, made[each.number]) for each in meant}

    def at_its_line(call: Call) -> Any:
        rewrite = rewrites.get((call.name, site_of(sys._getframe(1))))
        return call.run() if rewrite is None else rewrite(call)

    during, free = functools.partial(_rewritten, start=Window(), rewrites=lambda number: at_its_line), _free(searched)
    return Edit(cause.name, cause.explanation, cause.fix, during=during, free=free, source=cause.source)


def _of_operations(searched: Searched, edits: Operations | None) -> Edit | None:
    cause = searched.cause
    if cause is None or not edits:
        return None
    during = functools.partial(_recomputed, edits=edits)
    return Edit(cause.name, cause.explanation, cause.fix, during=during, source=cause.source, of_operations=True)


def edit_of(searched: Searched) -> Edit | None:
    """Make an edit, for all steps, of what a search has found in one; None where it changes no call of torch."""
    cause = searched.cause
    if (found := _of_operations(searched, searched.edited)) is not None:
        return found
    if cause is None or not searched.changed:
        return None
    each_one = {each.number: each for group, _ in searched.changed for each in group}
    rewrites = {number: _of(each_one[number], rewrite) for number, rewrite in combined(searched.changed).items()}
    during = functools.partial(_rewritten, start=Window(searched.window.start), rewrites=rewrites.get)
    free = _free(searched)
    return Edit(cause.name, cause.explanation, cause.fix, during=during, free=free, source=cause.source)


def edit_of_loss(cause: Cause, multiple: float) -> Edit:
    """Make an edit of the loss of a model: a multiple of torch's takes its place."""

    @contextlib.contextmanager
    def during(run: Any) -> Iterator[None]:
        loss = run.loss
        run.loss = lambda output, target: loss(output, target) * multiple
        try:
            yield
        finally:
            run.loss = loss

    # It is fitted, unless it is a number as a user writes one: the gradients are then the same multiple.
    return Edit(cause.name, cause.explanation, cause.fix, during=during, free=int(not is_simple(multiple)))


def _free(searched: Searched) -> int:
    """Count the numbers that were fitted."""
    return sum(value is not None for _, value in searched.changed)


def _of(meant: Counterfactual, rewrite: Rewrite) -> Rewrite:
    """Rewrite calls of one function alone: another step, or another edit of it, may number its calls otherwise."""

    def rewritten(call: Call) -> Any:
        if call.name != meant.call.name:
            return call.run()
        if meant.name == DROPOUT:
            call.run()  # its random numbers are used up, so that those of later draws are theirs
        return rewrite(call)

    return rewritten


@contextlib.contextmanager
def _rewritten(run: CommonRun, start: Window, rewrites: Callable[[int], Rewrite | None]) -> Iterator[None]:
    # The calls are numbered from the start of the window on, as where the cause was found.
    with rewriting(start, run.overwritten, rewrites, FUNCTIONS) as record, record.of(run.model):
        yield


@contextlib.contextmanager
def _recomputed(run: CommonRun, edits: Operations) -> Iterator[None]:
    with editing(run.model, run.overwritten, edits):
        yield


def is_users(frame: FrameType | None) -> bool:
    """Tell whether a call of torch comes from the user's code: not from an optimizer, nor from what watches a step."""
    while frame := frame.f_back if frame else None:
        file = Path(frame.f_code.co_filename)
        # What controls a run stands between the user's calls and torch, and makes none itself.
        watches = file.parent.name == "torch_side" and "compare" in file.parts and file.stem != "control"
        if "optim" in file.parts or watches:
            return False
        if not of_a_library(str(file)):
            return True
    return False
