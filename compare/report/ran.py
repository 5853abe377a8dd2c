"""Describes what ran, in one line or in full."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from compare.report.wording import counted

if TYPE_CHECKING:
    from compare.report.findings import Findings


def ran(report: "Findings", *, verbose: bool) -> Iterator[str]:
    """Describe what a comparison ran, so that a person can check it; nothing if it is unknown."""
    settings = report.settings
    if "mode" not in settings:
        return
    sides = {run.side: settings[run.side] for run in (report.torch, report.jax)}
    batches = counted(settings["batches_count"], "batch", "batches")
    torch = sides["torch"]
    # A program has optimizers by name, a model has at most one.
    optimizers = list(torch.get("optimizers", {}).values()) or [*filter(None, [torch.get("optimizer")])]
    named = ", ".join(text.partition(" ")[0] for text in optimizers)
    optimizer = f", torch optimizer{'s' * (len(optimizers) > 1)} {named}" if named else ""
    mode = "of the user's program" if settings["mode"] == "program" else f"in {settings['mode']} mode"
    hashes = "; source: " + ", ".join(f"{name} {side['source']}" for name, side in sides.items())
    yield f"ran: {counted(report.steps, 'step')} {mode} on {batches}{optimizer}{hashes if report.ok or verbose else ''}"
    if verbose:
        yield from _all(settings, sides)


def _all(settings: dict[str, Any], sides: dict[str, dict[str, Any]]) -> Iterator[str]:
    for batch in settings["batches"]:
        yield f"batch: {batch}"
    for name, side in sides.items():
        for what, value in side.items():
            for each in [f"{key}: {text}" for key, text in value.items()] if isinstance(value, dict) else [value]:
                if each is not None:
                    yield f"{name} {what}: {each}"
    yield f"weights={settings['weights']}"
    yield f"device: {settings['device']}; matrix products in float32: {settings['float32_matmul_precision']}"
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    yield f"versions: {versions}, Python {settings['python']}"
