"""The files that the commands write, as a table with one row for each kind of file."""

import contextlib
import errno
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from compare.errors import InputError
from compare.mending.patch import diff
from compare.report.annotations import annotations
from compare.report.json import dumps, to_json
from compare.report.junit import to_junit
from compare.report.model_explorer import graph, node_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from compare.notebook.published import Reproduction
    from compare.report.report import Report


class Output(NamedTuple):
    """One kind of file."""

    help: str
    content: Callable[[Any, str], str | bytes]
    """Takes what was found, and the file's suffix."""
    suffixes: tuple[str, ...] = ()
    """The file name extensions that it must have; any is allowed if empty."""


def _drawn(figure: "Figure", suffix: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=suffix.removeprefix("."))
    return file.getvalue()


def _plot(reports: "Sequence[Report]", suffix: str) -> bytes:
    from compare.report.plot import plot_reports

    return _drawn(plot_reports(list(reports)), suffix)


def _plot_published(cells: "Sequence[Reproduction]", suffix: str) -> bytes:
    from compare.notebook.plot import plot_published

    return _drawn(plot_published(list(cells)), suffix)


def _published_json(cells: "Sequence[Reproduction]", _: str) -> str:
    from compare.notebook.published import SCHEMA

    return dumps({"schema": SCHEMA, "cells": [cell.to_dict() for cell in cells]})


def _html(reports: "Sequence[Report]", _: str) -> str:
    from compare.report.html import several_to_html

    return reports[0].to_html() if len(reports) == 1 else several_to_html(reports)


def _patch(reports: "Sequence[Report]", _: str) -> str:
    """Return the patches of all findings as one diff; one that changes what another does is left out."""
    return "".join(diff(report.edits) for report in reports)


def _of_model(make: "Callable[[Report], dict[str, Any]]") -> Callable[[Any, str], str]:
    return lambda reports, _: dumps(make(reports[0]))


def markdown(reports: "Sequence[Report]", _: str = "") -> str:
    """Return the reports one after the other."""
    return "\n".join(report.to_markdown() for report in reports)


_PICTURES = (".png", ".svg", ".pdf")

OF_REPORTS: Mapping[str, Output] = {
    "json": Output("write the whole report as JSON", lambda reports, _: to_json(reports)),
    "html": Output("write the report as one HTML page", _html),
    "markdown": Output("write the report as Markdown, for a comment on a pull request", markdown),
    "junit": Output("write the report as JUnit XML, for CI", lambda reports, _: to_junit(reports)),
    "plot": Output("plot the losses: .png, .svg or .pdf", _plot, _PICTURES),
}

OF_CHECK: Mapping[str, Output] = {
    **OF_REPORTS,
    "patch": Output("write the fixes as a unified diff, for `git apply` or `patch -p1`", _patch),
    "graph": Output("write the model's layers as a graph for Model Explorer, as JSON", _of_model(graph)),
    "node_data": Output(
        "write the digits of agreement as Model Explorer's node data for that graph", _of_model(node_data)
    ),
}

OF_CELLS: Mapping[str, Output] = {
    "json": Output("write the losses and their ranks as JSON", _published_json),
    "plot": Output("plot the losses: .png, .svg or .pdf", _plot_published, _PICTURES),
}


def job_summary(reports: "Sequence[Report]") -> None:
    """Append to a CI job's summary, where there is one; if it cannot be written, say so and no more."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(markdown(reports) + "\n")
        except OSError as error:
            print(f"warning: GITHUB_STEP_SUMMARY, {path}, cannot be written: {error.strerror}", file=sys.stderr)


def annotate(reports: "Sequence[Report]", stream: TextIO) -> None:
    """Print annotations where a job of GitHub Actions reads them."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for report in reports:
            for line in annotations(report):
                print(line, file=stream)


STDOUT = Path("-")
"""Stands for standard output."""


def _printed() -> Iterator[Path]:
    """Yield a file of which the content is printed when all has gone well."""
    with tempfile.TemporaryDirectory(prefix="netparity-") as folder:
        partial = Path(folder) / "output"
        partial.touch()
        yield partial
        sys.stdout.write(partial.read_text(encoding="utf-8"))
        sys.stdout.flush()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield a file to write to that becomes `path` only when all has gone well.

    A path that is not a regular file, such as /dev/stdout or a named pipe, is not replaced but written to at the end.
    A symbolic link stays too: the file that it leads to is replaced.

    Raises:
        InputError: If the file cannot be written; where that can be known, before any work is done.

    """
    if path == STDOUT:
        yield from _printed()
        return
    stream, target = _is_stream(path), Path(os.path.realpath(path))
    with written(path):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if stream and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        folder = None if stream else target.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with written(path):
            if stream:
                sys.stdout.flush()  # which may be the same
                with path.open("ab") as file:
                    file.write(partial.read_bytes())
            else:
                umask = os.umask(0)
                os.umask(umask)
                partial.chmod(0o666 & ~umask)  # mkstemp's files are their owner's alone
                partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Return whether a path exists and is not a regular file, so that it must not be replaced."""
    if path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",)):
        return True  # /dev/stdout may lead to a regular file, and is the stream all the same
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Tell that a file cannot be written, if that is what happens."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
