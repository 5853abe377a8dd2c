"""What the `netparity` command and `python -m compare` do."""

import argparse
import contextlib
import dataclasses
import enum
import gc
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.command_line.files import OF_CELLS, OF_CHECK, OF_REPORTS, Output, annotate, job_summary, opened, written
from compare.command_line.interruptible import Terminated, interruptible, shown, until_terminated
from compare.command_line.printable import printable
from compare.command_line.repair import repaired
from compare.command_line.user_function import arguments_of, told
from compare.device import DEVICES
from compare.errors import InputError
from compare.notebook.comparison import VARIANTS, run
from compare.report.progress import Progress, Show
from compare.step.user_code import is_users

_EPILOG = (
    "Exit status: 0 where all is well, 1 on a mismatch, 2 on bad usage and where nothing can be compared, 3 on an "
    "error of netparity itself, 130 on Ctrl-C. Documentation: docs/."
)


class Status(enum.IntEnum):
    """The exit statuses."""

    FINE = 0
    MISMATCH = 1
    NOT_COMPARED = 2
    """Bad usage, or a pair that cannot be compared."""
    INTERNAL = 3
    """An error of this package: nothing is known of the pair."""
    INTERRUPTED = 130
    TERMINATED = 143


class Work:
    """What a command has found up to now."""

    def __init__(self, show: Show) -> None:
        self.finished: list[Any] = []
        """Reports, or cells."""
        self._show = show
        self.latest = Progress("starting")

    def progress(self, progress: Progress) -> None:
        """Keep it for whoever stops the work, and show it."""
        self.latest = progress
        self._show(progress)

    @property
    def found(self) -> list[Any]:
        """All that is finished, and what was found of the rest."""
        rest = self.latest.found()
        return [*self.finished, *([rest] if rest else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if getattr(options, "fix", False):
        return repaired(options)
    outputs: Mapping[str, Output] = options.outputs
    work: Work | None = None
    printed = False
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(until_terminated())
            asked = {kind: getattr(options, kind) for kind in outputs if getattr(options, kind)}
            partial = {kind: stack.enter_context(opened(path)) for kind, path in asked.items()}
            with shown(quiet=options.quiet) as show:
                work = Work(show)
                interruptible(lambda: _run(options, work))
            _print(options, work.finished)
            printed = True
            for kind, path in partial.items():
                work.latest = Progress(f"writing {asked[kind]}")
                content = outputs[kind].content(work.finished, path.suffix)
                with written(asked[kind]):
                    path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if outputs is not OF_CELLS:
            job_summary(work.finished)
            annotate(work.finished)
        return Status.FINE if all(each.ok for each in work.finished) else Status.MISMATCH
    except InputError as error:
        parser.exit(Status.NOT_COMPARED, f"error: {error}\n")
    except KeyboardInterrupt as stop:
        if work and not printed and (found := work.found):
            _print(options, found)
        print(f"stopped at: {work.latest if work else 'start'}; no file is written", file=sys.stderr)
        return Status.TERMINATED if isinstance(stop, Terminated) else Status.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - its traceback is shown, and its status is not that of a mismatch
        traceback.print_exception(error)
        print(_internal(error, work), file=sys.stderr)
        return Status.INTERNAL


def _internal(error: Exception, work: Work | None) -> str:
    """Say what to send where the error is this package's own."""
    packages = ("netparity", "torch", "jax", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"internal error: {type(error).__name__}, at: {work.latest if work else 'start'}. This is a bug of netparity "
        "and says nothing of your port. Please report it with the traceback above, the function that makes the pair, "
        f"and these versions: {versions}, Python {platform.python_version()} on {platform.system()}"
    )


def _run(options: argparse.Namespace, work: Work) -> None:
    _load_frameworks()
    try:
        options.command(options, work)
    except SystemExit as error:  # of code that is the user's: this package does not exit here
        raise InputError(f"{told(error)} was raised, at: {work.latest}") from error


def _print(options: argparse.Namespace, found: list[Any]) -> None:
    from rich.console import Console

    from compare.notebook import published
    from compare.report import text

    show: Callable[..., None] = published.show if options.outputs is OF_CELLS else text.show
    try:
        with printable(sys.stdout):
            show(found, Console())
            if getattr(options, "power", False) and not all(each.ok for each in found):
                print("\npower is measured once the port matches")
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # as before `| head`, where rich exits: files are written all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", choices=DEVICES, default="auto", help="auto takes a GPU where both see one")
    shared.add_argument("--quiet", action="store_true", help="show no progress")

    seeded = argparse.ArgumentParser(add_help=False)
    seeded.add_argument("--seed", type=_whole, default=0, help="of the data and the weights (0)")

    parser = argparse.ArgumentParser(
        prog="netparity",
        description="Compare the notebook's five PyTorch programs with their JAX ports.",
        epilog=_EPILOG,
        parents=[shared, seeded],
    )
    version = f"netparity {importlib.metadata.version('netparity')}"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable; all five if not given")
    parser.add_argument("--steps", type=_whole, default=100, help="training steps (100)")
    parser.add_argument("--learning-rate", type=float, help="of both sides, in place of the notebook's")
    _gives(parser, _notebook, OF_REPORTS)

    commands = parser.add_subparsers(title="other commands", metavar="COMMAND")
    own = commands.add_parser(
        "check",
        help="compare a PyTorch program of your own with its port",
        description="Compare a PyTorch program of your own with its JAX port.",
        epilog=_EPILOG,
        parents=[shared, seeded],
    )
    own.add_argument(
        "pair",
        metavar="package.module:function",
        help="or file.py:function: it returns the arguments of compare.check, as a tuple or as a dict",
    )
    own.add_argument("--steps", type=_whole, help="training steps (as the function says, else one for each batch)")
    own.add_argument(
        "--fix", action="store_true", help="apply what the findings say to the files of the port, and check again"
    )
    own.add_argument("--power", action="store_true", help="plant faults, and say which of them the check notices")
    _gives(own, _check, OF_CHECK)
    published = commands.add_parser(
        "published",
        help="place the losses that the notebook's author printed among reproduced ones",
        description="Place the losses that the notebook's author printed among those of many seeds.",
        epilog=_EPILOG,
        parents=[shared],
    )
    published.add_argument("--seeds", type=_whole, default=256, help="how many, at least 2 (256)")
    _gives(published, _published, OF_CELLS)
    return parser


def _gives(parser: argparse.ArgumentParser, command: Callable[..., None], outputs: Mapping[str, Output]) -> None:
    """Make the parser one of a command with such outputs."""
    for kind, output in outputs.items():
        parser.add_argument(f"--{kind}", type=_file(output.suffixes), metavar="FILE", help=output.help)
    parser.set_defaults(command=command, outputs=outputs)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _file(suffixes: tuple[str, ...]) -> Callable[[str], Path]:
    """Check a file's suffix, where that says what it becomes."""

    def path(text: str) -> Path:
        if suffixes and Path(text).suffix not in suffixes:
            *others, last = suffixes
            raise argparse.ArgumentTypeError(f"must end in {', '.join(others)} or {last}, and {text!r} does not")
        return Path(text)

    return path


def _notebook(options: argparse.Namespace, work: Work) -> None:
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


def _check(options: argparse.Namespace, work: Work) -> None:
    work.progress(Progress("importing torch and jax"))
    import torch

    from compare.comparison.check import check

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - of the user's own code, which may use either
    work.progress(Progress(f"calling {options.pair}"))
    arguments = arguments_of(options.pair)
    if options.steps is not None:
        arguments["steps"] = options.steps
    if options.device != "auto":
        arguments["device"] = options.device
    try:
        report = check(**{"name": options.pair, "progress": work.progress} | arguments)
    except InputError:
        raise
    except Exception as error:
        if is_users(error):
            raise InputError(f"{told(error)}, at: {work.latest}") from error
        raise  # a bug of ours: its traceback is wanted
    work.finished.append(dataclasses.replace(report, settings=report.settings | {"seed": options.seed}))
    if options.power and report.ok:
        from compare.faults.power import power

        measured = power(**{"name": options.pair, "progress": work.progress, "seed": options.seed} | arguments)
        work.finished[-1] = dataclasses.replace(work.finished[-1], power=measured)


def _published(options: argparse.Namespace, work: Work) -> None:
    from compare.notebook import published

    for number, cell in enumerate(VARIANTS):
        work.progress(Progress(f"{cell}: {options.seeds} seeds", number, len(VARIANTS)))
        work.finished.append(published.reproduce(cell, seeds=options.seeds, device=options.device))


def _load_frameworks() -> None:
    """Import what every command needs, and leave it out of the search for garbage, where that waits for it."""
    for name in ("torch", "jax", "flax.nnx", "optax"):
        importlib.import_module(name)
    _cache_compiled_programs()
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _cache_compiled_programs() -> None:
    """Keep what XLA compiles for the next run, unless the user has told JAX where to."""
    import jax
    import platformdirs

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("netparity"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
