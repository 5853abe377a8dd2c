"""What `python -m compare` does."""

import argparse
import contextlib
import dataclasses
import errno
import importlib
import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.device import DEVICES
from compare.notebook import VARIANTS, run
from compare.problem import InputError

_EPILOG = "Exit status: 0 where all is well, 1 on a mismatch, 2 on bad usage. Documentation: docs/."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with contextlib.ExitStack() as stack:
            outputs = {
                kind: stack.enter_context(_output(getattr(options, kind)))
                for kind in ("json", "plot", "html", "markdown")
                if getattr(options, kind, None)
            }
            _cache_compiled_programs()
            status: int = options.command(options, outputs)
            return status
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped\n")


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", choices=DEVICES, default="auto", help="auto takes a GPU where both see one")
    shared.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found as JSON")
    shared.add_argument("--quiet", action="store_true", help="show no progress")
    shared.add_argument("--plot", type=_plot_file, metavar="FILE", help="draw it: .png, .svg or .pdf")

    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("--seed", type=_whole, default=0, help="of the data and the weights (0)")

    parser = argparse.ArgumentParser(
        prog="python -m compare",
        description="Compare the notebook's five PyTorch programs with their JAX ports.",
        epilog=_EPILOG,
        parents=[shared, run],
    )
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable; all five if not given")
    parser.add_argument("--steps", type=_whole, default=100, help="training steps (100)")
    parser.add_argument("--learning-rate", type=float, help="of both sides, in place of the notebook's")
    parser.set_defaults(command=_notebook)

    commands = parser.add_subparsers(title="other commands", metavar="COMMAND")
    own = commands.add_parser(
        "check",
        help="compare a PyTorch program of your own with its port",
        description="Compare a PyTorch program of your own with its JAX port.",
        epilog=_EPILOG,
        parents=[shared, run],
    )
    own.add_argument(
        "pair",
        metavar="package.module:function",
        help="a function without arguments that returns those of compare.check, as a tuple or as a dict",
    )
    own.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page")
    own.add_argument("--markdown", type=Path, metavar="FILE", help="write it for a pull request's comment")
    own.add_argument("--steps", type=_whole, help="training steps (as the function says, else one for each batch)")
    own.set_defaults(command=_check)
    published = commands.add_parser(
        "published",
        help="place the losses that the notebook's author printed among reproduced ones",
        description="Place the losses that the notebook's author printed among those of many seeds.",
        epilog=_EPILOG,
        parents=[shared],
    )
    published.add_argument("--seeds", type=_whole, default=256, help="how many, at least 2 (256)")
    published.set_defaults(command=_published)
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _notebook(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    from rich.console import Console

    from compare.report import SCHEMA, show

    variants = list(dict.fromkeys(options.variant or VARIANTS))
    reports = []
    with _progress(len(variants) * max(options.steps, 0), quiet=options.quiet) as (describe, advance):
        for variant in variants:
            describe(variant)
            reports.append(
                run(
                    variant,
                    steps=options.steps,
                    seed=options.seed,
                    learning_rate=options.learning_rate,
                    device=options.device,
                    progress=advance,
                )
            )
    if "json" in outputs:
        _write_json(outputs["json"], {"schema": SCHEMA, "reports": [report.to_dict() for report in reports]})
    if "plot" in outputs:
        from compare.plot import plot_reports

        plot_reports(reports).savefig(outputs["plot"])
    show(reports, Console())
    return 0 if all(report.ok for report in reports) else 1


def _check(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    import torch
    from rich.console import Console

    from compare.check import check
    from compare.report import SCHEMA, show

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - of the user's own code, which may use either
    arguments = _arguments(options.pair)
    if options.steps is not None:
        arguments["steps"] = options.steps
    if options.device != "auto":
        arguments["device"] = options.device
    with _progress(arguments.get("steps"), quiet=options.quiet) as (describe, advance):
        describe(options.pair)
        report = check(**{"name": options.pair, "progress": advance} | arguments)
    report = dataclasses.replace(report, settings=report.settings | {"seed": options.seed})
    if "json" in outputs:
        _write_json(outputs["json"], {"schema": SCHEMA, "reports": [report.to_dict()]})
    if "plot" in outputs:
        if not len(report.torch.losses32):
            raise InputError("--plot draws losses, and this pair has none")
        from compare.plot import plot_reports

        plot_reports([report]).savefig(outputs["plot"])
    for kind, text in (("html", report.to_html), ("markdown", report.to_markdown)):
        if kind in outputs:
            outputs[kind].write_text(text(), encoding="utf-8")
    show([report], Console())
    return 0 if report.ok else 1


def _arguments(pair: str) -> dict[str, Any]:
    """Call the user's function, and name the arguments that it returns."""
    from compare.check import check

    module, _, name = pair.partition(":")
    if not module or not name:
        raise InputError(f"give a function as package.module:function, not {pair!r}")
    try:
        function = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"no module {error.name!r} is found from here: is {pair!r} right?") from error
    except AttributeError as error:
        raise InputError(f"{module} has no {name!r}: is {pair!r} right?") from error
    found = function()
    if isinstance(found, tuple):
        found = dict(zip(("torch", "jax", "batches"), found, strict=False)) | (found[3] if len(found) == 4 else {})
    known = inspect.signature(check).parameters
    if not isinstance(found, dict) or not {"torch", "jax", "batches"} <= set(found) <= set(known):
        raise InputError(
            f"{pair} must return the arguments of compare.check: (torch, jax, batches), or these and a dict of the "
            "others, or a dict of all"
        )
    return found


def _published(options: argparse.Namespace, outputs: dict[str, Path]) -> int:
    from rich.console import Console

    from compare import published

    with _progress(len(VARIANTS), quiet=options.quiet) as (describe, advance):
        reproductions = []
        for cell in VARIANTS:
            describe(f"{cell}: {options.seeds} seeds")
            reproductions.append(published.reproduce(cell, seeds=options.seeds, device=options.device))
            advance()
    if "json" in outputs:
        found = [reproduction.to_dict() for reproduction in reproductions]
        _write_json(outputs["json"], {"schema": published.SCHEMA, "cells": found})
    if "plot" in outputs:
        from compare.plot import plot_published

        plot_published(reproductions).savefig(outputs["plot"])
    published.show(reproductions, Console())
    return 0 if all(reproduction.inside for reproduction in reproductions) else 1


@contextlib.contextmanager
def _progress(total: int | None, *, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Show on stderr, where that is a terminal, what is being done and how long it still needs."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda text: progress.update(task, description=text), lambda: progress.advance(task)


def _plot_file(text: str) -> Path:
    """Check the name of a plot, whose suffix says what it becomes."""
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"must end in .png, .svg or .pdf, and {text!r} does not")
    return path


@contextlib.contextmanager
def _output(path: Path) -> Iterator[Path]:
    """Give a file to write to that becomes `path` only when all has gone well.

    Raises:
        InputError: Before any work is done, if the file cannot be written.

    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp's files are their owner's alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, content: Any) -> None:
    """Write JSON, which has no infinity and no NaN: they become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _cache_compiled_programs() -> None:
    """Keep what XLA compiles for the next run, unless the user has told JAX where to."""
    import jax
    import platformdirs

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("netparity"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
