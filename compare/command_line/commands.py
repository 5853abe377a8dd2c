"""The commands: they call the user's function, compare the two sides, and keep the result."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from compare.command_line.accepting import accepted
from compare.command_line.user_function import arguments_of, told
from compare.errors import InputError
from compare.notebook.comparison import VARIANTS, run
from compare.report.progress import Progress, Show
from compare.step.user_code import is_users


class Work:
    """What a command has found up to now."""

    def __init__(self, show: Show) -> None:
        self.finished: list[Any] = []
        """Reports, or cells."""
        self._show = show
        self.latest = Progress("starting")

    def progress(self, progress: Progress) -> None:
        """Keep the latest progress, for a message when the work is stopped, and show it."""
        self.latest = progress
        self._show(progress)

    @property
    def found(self) -> list[Any]:
        """All that is finished, and what was found of the rest."""
        rest = self.latest.found()
        return [*self.finished, *([rest] if rest else [])]


def notebook(options: argparse.Namespace, work: Work) -> None:
    """Compare the notebook's programs."""
    variants = list(dict.fromkeys(options.variant or VARIANTS))
    for number, variant in enumerate(variants):

        def progress(at: Progress, before: int = number * options.steps) -> None:
            work.progress(dataclasses.replace(at, done=before + at.done, steps=len(variants) * options.steps))

        report = run(
            variant,
            steps=options.steps,
            seed=options.seed,
            learning_rate=options.learning_rate,
            device=options.device,
            progress=progress,
        )
        work.finished.append(report)


def check(options: argparse.Namespace, work: Work) -> None:
    """Compare the user's pair and, with --power, plant faults."""
    work.progress(Progress("importing torch and jax"))
    import torch

    from compare.comparison.check import check as compared

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - of the user's own code, which may use either
    work.progress(Progress(f"calling {options.pair}"))
    arguments = arguments_of(options.pair)
    if options.steps is not None:
        arguments["steps"] = options.steps
    if options.quick:
        arguments["quick"] = True
    if options.device != "auto":
        arguments["device"] = options.device
    if options.stages is not None:
        arguments["stages"] = options.stages
    if accept := {**accepted(Path.cwd(), options.accept), **(arguments.get("accept") or {})}:
        arguments["accept"] = accept
    try:
        report = compared(**{"name": options.pair, "progress": work.progress} | arguments)
    except InputError:
        raise
    except Exception as error:
        if is_users(error):
            raise InputError(f"{told(error)}, at: {work.latest}") from error
        raise  # a bug of ours: its traceback is wanted
    work.finished.append(dataclasses.replace(report, settings=report.settings | {"seed": options.seed}))
    if options.power and report.ok:
        from compare.faults.power import power

        arguments.pop("quick", None)  # power has questions of its own
        measured = power(**{"name": options.pair, "progress": work.progress, "seed": options.seed} | arguments)
        report = work.finished[-1]
        lines = [*report.unexercised, *measured.unread]
        work.finished[-1] = dataclasses.replace(report, power=measured, unexercised=lines)


def shapes(options: argparse.Namespace, work: Work) -> None:
    """Hold the shapes of both forward passes against each other."""
    import torch

    from compare.comparison.shapes_by_layer import shapes_by_layer
    from compare.device import resolve, running

    torch.manual_seed(options.seed)
    work.progress(Progress(f"calling {options.pair}"))
    arguments = arguments_of(options.pair)
    device = resolve(options.device)
    with running(device, 0):
        sides = arguments["torch"], arguments["jax"], arguments["batches"]
        work.finished.append(shapes_by_layer(*sides, device=device, name=options.pair))


def show_shapes(found: list[Any], console: Any) -> None:
    """Print what `shapes` has found."""
    from compare.report.shapes import show

    for each in found:
        show(each, console)


def published(options: argparse.Namespace, work: Work) -> None:
    """Place the published losses among reproduced ones."""
    from compare.notebook.published import reproduce

    for number, cell in enumerate(VARIANTS):
        work.progress(Progress(f"{cell}: {options.seeds} seeds", number, len(VARIANTS)))
        work.finished.append(reproduce(cell, seeds=options.seeds, device=options.device))
