"""The entry point of the `netparity` command and of `python -m compare`."""

import argparse
import contextlib
import enum
import gc
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compare.command_line.commands import Work
from compare.command_line.completion import script
from compare.command_line.files import OF_CELLS, OF_REPORTS, STDOUT, Output, annotate, job_summary, opened, written
from compare.command_line.interruptible import Terminated, interruptible, shown, until_terminated
from compare.command_line.parser import parser_of_all
from compare.command_line.printable import printable
from compare.command_line.repair import repaired
from compare.command_line.user_function import told
from compare.errors import InputError
from compare.report.progress import Progress


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status."""
    parser = parser_of_all()
    options = parser.parse_args(arguments)
    if "completes" in options:
        print(script(options.completes, options.shell), end="")
        return Status.FINE
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
        if OF_REPORTS.items() <= outputs.items():
            job_summary(work.finished)
            annotate(work.finished, sys.stderr if _is_taken(options) else sys.stdout)
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
        f"internal error: {type(error).__name__}, at: {work.latest if work else 'start'}. This is a bug in "
        "netparity and says nothing about your port. Please report it with the traceback above, the function "
        f"that makes the pair, and these versions: {versions}, Python {platform.python_version()} "
        f"on {platform.system()}"
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

    show: Callable[..., None] = options.show or (published.show if options.outputs is OF_CELLS else text.show)
    try:
        with printable(sys.stdout):
            more = {"verbose": options.verbose} if "verbose" in options else {}
            console = Console(stderr=_is_taken(options))
            with contextlib.nullcontext() if console.is_terminal else console.capture() as captured:
                show(found, console, **more)
            if captured:  # in a file or a CI log, without the spaces with which lines are filled up
                console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
            if getattr(options, "power", False) and not all(each.ok for each in found):
                print("\npower is measured only when the port matches")
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # as before `| head`, where rich exits: files are written all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_taken(options: argparse.Namespace) -> bool:
    """Return whether a file is printed on standard output, which then has nothing else."""
    return any(getattr(options, kind, None) == STDOUT for kind in options.outputs)


def _load_frameworks() -> None:
    """Import what every command needs, and leave it out of the search for garbage, where that waits for it."""
    for name in ("torch", "jax", "flax.nnx", "optax"):
        importlib.import_module(name)
    _cache_compiled_programs()
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _cache_compiled_programs() -> None:
    """Cache what XLA compiles for the next run, unless the user has configured JAX's cache."""
    import jax
    import platformdirs

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("netparity"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
