"""Compares a PyTorch model, its loss and its optimizer with a JAX port: `compare.check`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from compare.comparison.asks_if_traced import asks_if_traced
from compare.comparison.enough_steps import default_steps, program_steps, schedule_change
from compare.comparison.model_check import ModelCheck
from compare.comparison.model_pair import ModelPair
from compare.comparison.program_check import ProgramCheck, checked_batches
from compare.comparison.program_pair import ProgramPair
from compare.comparison.program_provenance import program_parts, what_programs_ran
from compare.comparison.provenance import jax_parts, what_ran
from compare.comparison.selection import Selection
from compare.device import resolve, running
from compare.errors import InputError
from compare.jax_side.program import JaxProgram
from compare.jax_side.side import Flax, Jax
from compare.jax_side.unjitted import Remembered
from compare.report.progress import Progress, Show, ignore
from compare.report.report import Report
from compare.step import batch as batching
from compare.torch_side.program import TorchProgram
from compare.torch_side.side import Torch


def check(
    torch: Torch | TorchProgram,
    jax: Flax | Jax | JaxProgram,
    batches: Any,
    *,
    steps: int | None = None,
    weights: Mapping[str, str | None] | None = None,
    accept: Mapping[str, str] | None = None,
    stages: str | Sequence[str] | None = None,
    device: str = "auto",
    name: str = "port",
    progress: Show = ignore,
    quick: bool = False,
) -> Report:
    """Compare a PyTorch training program with its port.

    Both sides get the torch model's weights and the same batches, and take the same steps together, each in float32
    and in float64. Everything that a step computes is compared: outputs of modules, loss, gradients, updates,
    optimizer state, parameters and buffers.

    Args:
        torch: The original.
        jax: The port.
        batches: `[(inputs, target), ...]` as NumPy arrays of any shape, in torch's layout. They are repeated if there
            are more `steps` than batches. Inputs may be an array, a tuple (positional) or a dict (keyword).
            Floating-point arrays must be finite and are cast to each precision; integers and booleans are not changed.
            Without a loss, the target is not used.
        steps: The number of steps, at least 1. By default, one step for each batch. With an optimizer, at least 3
            steps, and one step past the next change of its settings if that change comes within 32 steps. A program
            that accumulates gradients takes as many as two updates need, up to 32.
        weights: `{"torch name or regex": "flax/path"}`, for tensors that cannot be matched automatically. A path that
            ends in ".T" is a matrix to be transposed, "name[0:8]" is a part of a tensor, and None means no partner.
        accept: Known differences that are accepted, with the reason: `{"buffers: *.running_var": "we keep Flax's"}`.
            Each key is a stage and a name of the torch side, in which "*" matches anything. Accepted differences are
            listed, and do not affect the verdict.
        stages: Compare only these stages: "forward", or ["forward", "loss"]. What they do not need, such as the
            optimizer, is not run.
        device: "auto" (a GPU if both frameworks see one), "cpu" or "cuda".
        name: The name of the pair in the report.
        progress: A function that is called with a `compare.Progress` before each task; `print` shows it.
        quick: Whether to skip the second question: a step from other weights and on other batches of the same shapes.
            A match then says so.

    Returns:
        The report. A mismatch does not raise an error; call `report.raise_on_mismatch()` for that.

    Raises:
        InputError: If the two sides cannot be compared: a parameter without a partner, shapes that do not fit, a batch
            that a side does not accept, a loss that is not a scalar or not finite on both sides, a device that does
            not exist. The message names the culprit on both sides, and says what to do.

    """
    # Most of its lines describe its arguments: users read them here.
    selection = Selection(stages, accept)
    kept = Remembered(jax.batch) if getattr(jax, "batch", None) else None
    with prepared(torch, jax, batches, steps, weights, device, progress, selection) as (pair, steps):
        if isinstance(pair, ProgramPair):
            programs = ProgramCheck(pair, name, steps, progress)
            found = programs.report(quick=quick)
            ran, parts = what_programs_ran(pair, programs.jax, weights), program_parts(programs.jax)
        else:
            found = ModelCheck(pair, name, steps, progress).report(quick=quick)
            ran, parts = what_ran(pair, weights), jax_parts(pair.jax)
    chosen = {} if selection.stages is None else {"stages": [str(stage) for stage in selection.stages]}
    limits = [] if selection.stages is None else [f"of {', '.join(selection.stages)} alone, as stages= says"]
    limits += ["with a batch= that keeps something from call to call"] if kept and kept.changed else []
    accepted = selection.acceptance.found(found.quantities)
    if asks := asks_if_traced(parts):
        limits.append(f"where the port is traced by JAX, which {asks} checks")
    settings = found.settings | ran | chosen
    return dataclasses.replace(found, accepted=accepted, settings=settings, limits=[*limits, *found.limits])


def _check_steps(steps: Any) -> None:
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise InputError(f"steps must be a positive whole number, not {steps!r}")


@contextlib.contextmanager
def prepared(
    torch: Torch | TorchProgram,
    jax: Flax | Jax | JaxProgram,
    batches: Any,
    steps: int | None,
    weights: Mapping[str, str | None] | None,
    device: str,
    progress: Show,
    selection: Selection | None = None,
) -> Iterator[tuple[ModelPair | ProgramPair, int]]:
    """Check what the user gives and map the weights: the pair and its steps, while both frameworks are set up."""
    selection = selection or Selection()
    make = _programs if isinstance(torch, TorchProgram) or isinstance(jax, JaxProgram) else _models
    size, mapped, default = make(torch, jax, batches, selection)
    _check_steps(steps)
    if not isinstance(weights, Mapping | None):
        raise InputError(f"weights must be a dict of torch names or patterns and their partners, not {weights!r}")
    device = resolve(device)
    if not callable(progress):
        raise InputError(f"progress must be a function of a compare.Progress, such as print, not {progress!r}")
    progress(Progress("mapping the weights"))
    with running(device, size):
        pair = mapped(weights, device, selection)
        yield pair, default(pair) if steps is None else steps


_Made = tuple[int, Callable[..., Any], Callable[[Any], int]]
"""The number of parameters, as far as it is known, what maps the weights, and what says how many steps to take."""


def _programs(torch: Any, jax: Any, batches: Any, _: Selection) -> _Made:
    for side, kind, what in ((torch, TorchProgram, "TorchProgram"), (jax, JaxProgram, "JaxProgram")):
        if not isinstance(side, kind):
            other = type(side).__name__
            raise InputError(f"a program can only be compared with a program: pass a compare.{what}, not a {other}")
    given = checked_batches(batches)
    return 0, functools.partial(ProgramPair, torch, jax, given), program_steps


def _models(torch: Any, jax: Any, batches: Any, selection: Selection) -> _Made:
    _check_sides(torch, jax)
    torch, jax = selection.cut(torch), selection.cut(jax)
    given = batching.checked(batches, loss=torch.loss is not None)
    size = sum(parameter.numel() for parameter in torch.model.parameters())
    return size, functools.partial(ModelPair, torch, jax, given), lambda p: default_steps(p, schedule_change(p))


def _check_sides(torch: Any, jax: Any) -> None:
    if not isinstance(torch, Torch):
        raise InputError(f"the first argument must be a compare.Torch, not a {type(torch).__name__}")
    if not isinstance(jax, Flax | Jax):
        raise InputError(f"the second argument must be a compare.Flax or compare.Jax, not a {type(jax).__name__}")
    for what in ("loss", "optimizer"):
        ours, theirs = getattr(torch, what), getattr(jax, what)
        if (ours is None) != (theirs is None):
            has, lacks = ("torch", jax.name) if theirs is None else (jax.name, "torch")
            raise InputError(f"{what}: the {has} side has one and the {lacks} side has none. Give both, or neither")
    if torch.loss is not None and not any(True for _ in torch.model.parameters()):
        raise InputError("the torch model has no parameters, so no gradient can be compared: leave out the loss")
