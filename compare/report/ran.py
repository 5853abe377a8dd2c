"""What ran, in words: one line, or all of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from compare.report.wording import counted

if TYPE_CHECKING:
    from compare.report.findings import Findings


def ran(report: "Findings", *, verbose: bool) -> Iterator[str]:
    """Say what a comparison ran, for a person to compare with what it should be; nothing where it is not known."""
    settings = report.settings
    if "mode" not in settings:
        return
    sides = {run.side: settings[run.side] for run in (report.torch, report.jax)}
    batches = counted(settings["batches_count"], "batch", "batches")
    optimizer = (
        f", torch optimizer {sides['torch']['optimizer'].partition(' ')[0]}" if sides["torch"]["optimizer"] else ""
    )
    hashes = ", ".join(f"{name} {side['source']}" for name, side in sides.items())
    yield f"ran: {counted(report.steps, 'step')} in {settings['mode']} mode on {batches}{optimizer}; source: {hashes}"
    if verbose:
        yield from _all(settings, sides)


def _all(settings: dict[str, Any], sides: dict[str, dict[str, Any]]) -> Iterator[str]:
    for batch in settings["batches"]:
        yield f"batch: {batch}"
    for name, side in sides.items():
        for what, value in side.items():
            if value is not None:
                yield f"{name} {what}: {value}"
    yield f"weights=: {settings['weights']}"
    yield f"device: {settings['device']}; matrix products in float32: {settings['float32_matmul_precision']}"
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    yield f"versions: {versions}, Python {settings['python']}"
