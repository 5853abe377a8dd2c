"""Edits of how a step clips its gradients by their norm: what JAX programs do instead of `clip_grad_norm_`."""

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from compare.diagnosis.optimizers.gradients import AS_TORCH, CHANGED, EPSILON
from compare.diagnosis.steps.edit import ALL, Edit
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.fix import Code, source

if TYPE_CHECKING:
    import torch

_OPTAX = "https://optax.readthedocs.io/en/latest/api/transformations.html#optax.clip_by_global_norm"

EXACT = "clipping without 1e-6"
"""What a port does that clips by `optax.clip_by_global_norm`."""

Clip = Callable[["Sequence[torch.Tensor]", float], None]
"""Clips gradients in place, given the largest norm."""


def left_out(code: Code | None = None) -> Edit:
    """Return the edit of a step that does not change its gradients between the backward pass and the optimizer.

    `code` does on the JAX side what torch does, if it is known.
    """
    return Edit(
        name="clipping" if code else CHANGED,
        explanation="torch's step changes the gradients between the backward pass and the optimizer, and the JAX "
        "step gives its optimizer the gradients as they are computed",
        fix=code.words if code else AS_TORCH,
        code=code,
        during=_as_accumulated,
        agrees=1,
        source=_OPTAX,
    )


def edits(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Edit]:
    """Yield other ways to clip, where torch clips by the 2-norm, and that of not to clip.

    Args:
        args: What `clip_grad_norm_` is given behind the parameters.
        kwargs: What it is given by name.

    """
    most, order = _norm(args, kwargs)
    norm = "optax.tree.norm(gradients)"
    if order != 2.0:
        each = f"jnp.linalg.norm(leaf.ravel(), {_order(order)})"
        norm = f"jnp.linalg.norm(jnp.array([{each} for leaf in jax.tree.leaves(gradients)]), {_order(order)})"
    as_torch = _as_torch(most, norm)
    yield left_out(Code(around=as_torch, words=f"gradients = {as_torch}"))
    if order != 2.0:
        return
    for name, says, clip in (
        (EXACT, "divides by the norm alone, as optax.clip_by_global_norm does", _exact),
        ("clipping of each tensor", "clips each tensor by its own norm", _of_each),
        ("clipping by value", f"clips each element to {most:g}, as optax.clip does", _by_value),
    ):
        yield Edit(
            name=name,
            explanation=f"torch clips the norm of all gradients to {most:g} and divides by the norm + 1e-6, and the "
            f"JAX step {says}",
            fix=f"gradients = {as_torch}",
            agrees=1,
            during=functools.partial(_clipped, clip=clip, most=most),
            source=_OPTAX,
        )


def others(numbers: Collection[float], own: float) -> list[float]:
    """List the sizes of numbers that are not zero, and not a setting's own but for float64's rounding."""
    return [each for each in sorted({abs(number) for number in numbers}) if each and not math.isclose(each, own)]


def to_other_norms(args: Sequence[Any], kwargs: dict[str, Any], numbers: Collection[float]) -> Iterator[Edit]:
    """Yield the edits of a step that clips to another norm, one for each number that the port's program contains.

    `args` and `kwargs` are those of `edits`. The port divides by the norm as optax does, or as torch does.
    """
    most, order = _norm(args, kwargs)
    if order != 2.0:
        return
    for number in others(numbers, most):
        for clip, also in ((_exact, " and divides by the norm without 1e-6"), (_like_torch, "")):
            yield Edit(
                name="clipping",
                explanation=f"torch clips the norm of all gradients to {most:g}, and the JAX step clips it to "
                f"{number:g}{also}",
                fix=f"gradients = {_as_torch(most)}",
                agrees=ALL,
                during=functools.partial(_clipped, clip=clip, most=number),
                source=_OPTAX,
            )


def _norm(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, float]:
    """Read the largest norm, and of which order it is."""
    given = dict(zip(("max_norm", "norm_type"), args, strict=False)) | kwargs
    return float(given["max_norm"]), float(given.get("norm_type", 2.0))


def _as_torch(most: float, norm: str = "optax.tree.norm(gradients)") -> str:
    return f"optax.tree.scale(jnp.minimum(1.0, {source(most)} / ({norm} + 1e-6)), gradients)"


def _order(order: float) -> str:
    return "jnp.inf" if order == float("inf") else source(order)


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


def _like_torch(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    import torch

    factor = most / (torch.nn.utils.get_total_norm(gradients) + EPSILON)
    for gradient in gradients:
        gradient.mul_(factor.clamp(max=1.0))


def _of_each(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    for gradient in gradients:
        _exact([gradient], most)


def _by_value(gradients: "Sequence[torch.Tensor]", most: float) -> None:
    for gradient in gradients:
        gradient.clamp_(-most, most)


@contextlib.contextmanager
def _as_accumulated(run: TorchProgramRun) -> Iterator[None]:
    """Give optimizers the gradients as the backward pass left them, whatever was done to them since."""
    latest: dict[Any, Any] = {}

    def keep(parameter: Any) -> None:
        latest[parameter] = parameter.grad.detach().clone()

    def restore(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in latest and parameter.grad is not None:
                    parameter.grad.copy_(latest.pop(parameter))

    with contextlib.ExitStack() as stack:
        for optimizer in run.optimizers.values():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    stack.callback(parameter.register_post_accumulate_grad_hook(keep).remove)
            stack.callback(optimizer.register_step_pre_hook(restore).remove)
        yield
