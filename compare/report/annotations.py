"""Annotations that GitHub Actions shows at the lines of a pull request: one for each finding."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compare.report.findings import Findings


def annotations(report: "Findings") -> Iterator[str]:
    """Yield a workflow command a finding, at the line of the JAX side: `::error file=my_port.py,line=27::...`."""
    for group in report.groups:
        at = group.line("jax") or group.line("torch")
        place = ""
        if at is not None:
            file, line = os.path.relpath(at.source.file).replace(os.sep, "/"), at.source.line
            place = f"file={_escaped(file)},line={line},"
        says = group.explanation or group.headline
        message = f"{says}\nfix: {group.fix}" if group.fix else says
        yield f"::error {place}title={_escaped(group.title)}::{_escaped(message, of_property=False)}"


def _escaped(text: str, *, of_property: bool = True) -> str:
    """Escape what ends a workflow command, or one of its properties."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text
