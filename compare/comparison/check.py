"""Compare a PyTorch model, its loss and its optimizer with a JAX port: `compare.check`."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from compare.comparison.mapped_pair import Comparison
from compare.device import resolve, running
from compare.errors import InputError
from compare.jax_side.side import Flax, Jax
from compare.report.progress import Progress, Show, ignore
from compare.report.report import Report
from compare.step import batch as batching
from compare.torch_side.side import Torch


def check(
    torch: Torch,
    jax: Flax | Jax,
    batches: Any,
    *,
    steps: int | None = None,
    weights: Mapping[str, str | None] | None = None,
    device: str = "auto",
    name: str = "port",
    progress: Show = ignore,
) -> Report:
    """Compare a PyTorch training program with its port.

    Both sides get the same weights, the torch model's, and the same batches, and go through the same steps together,
    each in float32 and in float64. Everything that a step computes is weighed: what every module gives, loss,
    gradients, updates, optimizer state, parameters and buffers.

    Args:
        torch: The original.
        jax: The port.
        batches: `[(inputs, target), ...]` as NumPy arrays of any shape, in torch's layout, cycled until `steps`. Inputs
            may be an array, a tuple (positional) or a dict (keyword). Floating-point arrays, which must be finite, are
            cast to each precision; integers and booleans stay as they are. Without a loss, a target is not needed.
        steps: How many, at least 1; as many as there are batches if not given.
        weights: `{"torch name or regex": "flax/path"}`, for what the map does not find by itself; a path with ".T" at
            its end is a matrix to be transposed, and None is for what has no partner.
        device: "auto" (a GPU where both frameworks see one), "cpu" or "cuda".
        name: What to call the pair in the report.
        progress: Called with a `compare.Progress` before whatever is done next; `print` shows it.

    Returns:
        The report. A mismatch is in it, and raises nothing: `report.raise_on_mismatch()` does.

    Raises:
        InputError: For anything that cannot be compared: a parameter without a partner, shapes that do not fit, a
            batch that a side does not take, a loss that is not a scalar or not finite on both sides, a device that is
            not there. The message names the culprit on both sides, and what to do.

    """
    with prepared(Comparison, torch, jax, batches, steps, weights, device, progress) as (comparison, steps):
        return comparison.report(name, steps, progress)


C = TypeVar("C", bound="Comparison")


@contextlib.contextmanager
def prepared(
    kind: type[C],
    torch: Torch,
    jax: Flax | Jax,
    batches: Any,
    steps: int | None,
    weights: Mapping[str, str | None] | None,
    device: str,
    progress: Show,
) -> Iterator[tuple[C, int]]:
    """Check what the user gives, and map the weights: a comparison, and its steps, while both frameworks are set up."""
    _check_sides(torch, jax)
    given = batching.checked(batches, loss=torch.loss is not None)
    steps = len(given) if steps is None else steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps must be a positive whole number, not {steps!r}")
    if not isinstance(weights, Mapping | None):
        raise InputError(f"weights must be a dict of torch names or patterns and their partners, not {weights!r}")
    device = resolve(device)
    progress(Progress("mapping the weights"))
    with running(device, sum(parameter.numel() for parameter in torch.model.parameters())):
        yield kind(torch, jax, given, weights, device), steps


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
    if not any(True for _ in torch.model.parameters()):
        raise InputError("the torch model has no parameters: nothing would be compared")
