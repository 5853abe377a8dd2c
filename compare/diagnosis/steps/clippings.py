"""Edits of how a step clips its gradients by their norm: what JAX programs do in the place of `clip_grad_norm_`."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from compare.diagnosis.steps.edit import Edit
from compare.torch_side.program_run import TorchProgramRun

if TYPE_CHECKING:
    import torch

_OPTAX = "https://optax.readthedocs.io/en/latest/api/transformations.html#optax.clip_by_global_norm"

Clip = Callable[["Sequence[torch.Tensor]", float], None]
"""Clips gradients in place, given the largest norm."""


def edits(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Edit]:
    """Give other ways to clip, where torch clips by the 2-norm.

    Args:
        args: What `clip_grad_norm_` is given behind the parameters.
        kwargs: What it is given by name.

    """
    given = dict(zip(("max_norm", "norm_type"), args, strict=False)) | kwargs
    if float(given.get("norm_type", 2.0)) != 2.0:
        return
    most = float(given["max_norm"])
    as_torch = (
        f"gradients = optax.tree.scale(jnp.minimum(1.0, {most:g} / (optax.tree.norm(gradients) + 1e-6)), gradients)"
    )
    for name, says, clip in (
        ("clipping without 1e-6", "divides by the norm alone, as optax.clip_by_global_norm does", _exact),
        ("clipping of each tensor", "clips each tensor by its own norm", _of_each),
        ("clipping by value", f"clips each element to {most:g}, as optax.clip does", _by_value),
    ):
        yield Edit(
            name=name,
            explanation=f"torch clips the norm of all gradients to {most:g} and divides by the norm + 1e-6, and the "
            f"JAX step {says}",
            fix=as_torch,
            agrees=1,
            during=functools.partial(_clipped, clip=clip, most=most),
            source=_OPTAX,
        )


@contextlib.contextmanager
def _clipped(_: TorchProgramRun, clip: Clip, most: float) -> Iterator[None]:
    import torch

    def clipped(parameters: Any, *_: Any, **__: Any) -> Any:
        tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        gradients = [each.grad for each in tensors if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        clip(gradients, most)
        return norm

    with mock.patch.object(torch.nn.utils, "clip_grad_norm_", clipped):
        yield


def _exact(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    import torch

    norm = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients if norm > most else ():
        gradient.mul_(most / norm)


def _of_each(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    for gradient in gradients:
        _exact([gradient], most)


def _by_value(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    for gradient in gradients:
        gradient.clamp_(-most, most)
