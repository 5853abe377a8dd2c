"""Hypotheses about the gradient that an optimizer is given: clipped, scaled, or as the loss gives it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.diagnosis.optimizers.calls import Call, Code, written
from compare.diagnosis.optimizers.evidence import Evidence, OptimizerStep
from compare.diagnosis.optimizers.hypothesis import Hypothesis, Numbers
from compare.diagnosis.optimizers.names import TRANSFORMATIONS
from compare.diagnosis.optimizers.told import Told, with_distinct_digits
from compare.diagnosis.optimizers.trial import Trial
from compare.numerics.distance import norm
from compare.step.observation import to_numpy

if TYPE_CHECKING:
    import torch

GRADIENT_SCALE = "gradient scale"
"""The name of the hypothesis that plain SGD cannot distinguish from another learning rate."""

CHANGED = "changed gradients"
"""The name of the cause where torch's step changes its gradients otherwise than by clipping all of them at once."""

AS_TORCH = "do to the gradients on the JAX side what torch does before its optimizer gets them"

EPSILON = 1e-6
"""What `clip_grad_norm_` adds to the norm that it divides by; `optax.clip_by_global_norm` adds nothing."""

_CLIP_GRAD_NORM = "https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html"


class Clipping(NamedTuple):
    """How torch clips the gradient: to a largest norm, or to a largest size of each element; or not at all."""

    norm: float | None = None
    value: float | None = None
    other: bool = False
    """Whether the user's code changes the gradient in another way, as by clipping each tensor by its own norm."""

    @property
    def says(self) -> str:
        """What torch does, as a clause."""
        if self.norm is not None:
            return f"torch clips the gradient's norm to {self.norm:g}"
        if self.value is not None:
            return f"torch clips each element of the gradient to ±{self.value:g}"
        if self.other:
            return "torch's step changes the gradient between the backward pass and the optimizer"
        return "torch does not clip the gradient"

    def told(self, jax_does: str, source: str = TRANSFORMATIONS) -> Told:
        """Tell what both sides do, with what does torch's in optax."""
        before, fix = None, ""
        if self.norm is not None:
            before = clip_like_torch(self.norm)
            fix = f"optax.clip_by_global_norm({written(self.norm)}) divides by the norm without 1e-6"
        elif self.value is not None:
            before = Call("optax.clip", (self.value,))
        elif self.other:
            fix = AS_TORCH
        else:
            fix = "leave the clipping out in optax, or clip in torch as well"
        name = CHANGED if self.other else "clipping"
        return Told(name, f"{self.says}, and the JAX side {jax_does}", before=before, fix=fix, source=source)


def clip_like_torch(norm: float) -> Call:
    """Write a transformation that divides by the norm + 1e-6, as `clip_grad_norm_` does."""
    factor = f"jnp.minimum(1.0, {written(norm)} / (optax.tree.norm(updates) + 1e-6))"
    return Call("optax.stateless", (Code(f"lambda updates, params: optax.tree.scale({factor}, updates)"),))


def size(gradients: Any) -> float:
    """The norm of all gradients together."""
    return float(np.sqrt(sum(float((_dense(g) ** 2).sum()) for g in gradients.values() if g is not None)))


def _dense(gradient: Any) -> Any:
    """Return a gradient as a dense tensor: an embedding may have a sparse one."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def clipping_of(evidence: Evidence) -> Clipping:
    """See how the user's hooks clip, from the gradients before and after them."""
    for step in evidence.steps:
        before, after_ = size(step.gradients), size(step.given)
        if not before or not _changes(step):
            continue
        given = {name: None if g is None else _dense(g) for name, g in step.given.items()}
        pairs = [(g, given[n]) for n, g in step.gradients.items() if g is not None]
        # clip_grad_norm_ multiplies every gradient by one factor, max_norm / (norm + 1e-6). The norm after it
        # is max_norm times norm / (norm + 1e-6), from which max_norm follows.
        if all(b is not None and bool(((b * (before / after_) - a).abs() <= 1e-9 * before).all()) for a, b in pairs):
            return Clipping(norm=_short(after_ * (before + EPSILON) / before))
        # clip_grad_value_ cuts elements off at one bound, which is then the largest that is left.
        bound = max(float(b.abs().max()) for _, b in pairs if b is not None)
        if all(b is not None and bool((a.clamp(-bound, bound) - b).abs().max() <= 1e-12 * bound) for a, b in pairs):
            return Clipping(value=_short(bound))
    return Clipping(other=any(map(_changes, evidence.steps)))


def _changes(step: OptimizerStep) -> bool:
    """Return whether the user's code changes the gradients before the optimizer gets them."""
    changes = {
        name: _dense(given) - _dense(before)
        for name, before in step.gradients.items()
        if before is not None and (given := step.given[name]) is not None
    }
    return size(changes) > 1e-9 * size(step.gradients)


def _short(value: float) -> float:
    """Round to as few digits as give the same to 1e-9: people write short numbers."""
    return next(short for d in range(17) if abs((short := float(f"{value:.{d}e}")) / value - 1) <= 1e-9)


def _times(step: OptimizerStep, factor: "Callable[[float], float]") -> "dict[str, torch.Tensor | None]":
    by = factor(size(step.gradients))
    return {name: None if g is None else g * by for name, g in step.gradients.items()}


def _limited(norm: float, epsilon: float) -> Callable[[float], float]:
    return lambda length: min(1.0, norm / (length + epsilon)) if length + epsilon > 0 else 1.0


def other_gradients(evidence: Evidence) -> Iterator[Hypothesis]:
    """Yield what the JAX side's optimizer may be given in the place of torch's gradient."""
    torch = clipping_of(evidence)
    lengths = [size(step.gradients) for step in evidence.differing]
    if any(map(_changes, evidence.steps)):
        yield _unclipped(torch)
    if torch.norm is not None:
        yield _without_epsilon(torch, torch.norm)
    # Half of the smallest norm, so that the trial clips at every step that differs and the fit has a
    # slope to follow.
    start = min(lengths, default=0.0) / 2
    if start:
        yield _by_norm(torch, start, 0.0)
        yield _by_norm(torch, start, EPSILON)
    elements = [
        np.abs(to_numpy(g)).ravel() for step in evidence.differing[:1] for g in step.gradients.values() if g is not None
    ]
    # At the median, half of the elements are clipped: the residual depends on the bound.
    if elements and (median := float(np.median(np.concatenate(elements)))):
        yield _by_value(torch, median)
    yield _scaled()


def _unclipped(torch: Clipping) -> Hypothesis:
    def change(trial: Trial, _: Numbers) -> None:
        trial.gradients = dict(trial.step.gradients)

    def tell(evidence: Evidence, _: Numbers) -> Told:
        step = next(filter(_changes, evidence.steps))
        ours, theirs = with_distinct_digits(size(step.given), size(step.gradients))
        if torch.other:
            return torch.told(
                f"gives its optimizer the gradient as it is computed: at step {step.number} its norm is {theirs}, and "
                f"{ours} in torch"
            )
        return torch.told(
            f"does not clip it: at step {step.number} its norm is {theirs}, and {ours} after torch's clipping"
        )

    return Hypothesis("unclipped", change, tell, place="gradient")


def _without_epsilon(torch: Clipping, norm: float) -> Hypothesis:
    def change(trial: Trial, _: Numbers) -> None:
        trial.gradients = _times(trial.step, _limited(norm, 0.0))

    def tell(_: Evidence, __: Numbers) -> Told:
        says = f"torch clips by {norm:g} / (norm + 1e-6), and the JAX side by {norm:g} / norm"
        return replace(torch.told("", _CLIP_GRAD_NORM), says=says)

    return Hypothesis("clipping's epsilon", change, tell, place="gradient")


def _by_norm(torch: Clipping, start: float, epsilon: float) -> Hypothesis:
    def change(trial: Trial, values: Numbers) -> None:
        trial.gradients = _times(trial.step, _limited(values[0], epsilon))

    def tell(evidence: Evidence, values: Numbers) -> Told:
        return torch.told(f"clips its norm to {values[0]:g}")

    return Hypothesis("clipping by norm", change, tell, (start,), place="gradient")


def _by_value(torch: Clipping, start: float) -> Hypothesis:
    def change(trial: Trial, values: Numbers) -> None:
        bound = abs(values[0])
        trial.gradients = {n: None if g is None else g.clamp(-bound, bound) for n, g in trial.step.gradients.items()}

    def tell(evidence: Evidence, values: Numbers) -> Told:
        return torch.told(f"clips each of its elements to ±{values[0]:g}")

    return Hypothesis("clipping by value", change, tell, (start,), place="gradient")


def _scaled() -> Hypothesis:
    def change(trial: Trial, values: Numbers) -> None:
        trial.gradients = {n: None if g is None else g * values[0] for n, g in trial.step.given.items()}

    def tell(evidence: Evidence, values: Numbers) -> Told:
        says = f"the JAX side's optimizer gets torch's gradient times {values[0]:g}"
        if _nearly_invariant(evidence, values[0]):
            # With m / (sqrt(v) + epsilon), gradients of another size and another epsilon give the same steps.
            both = f"{says}, or has torch's epsilon divided by {values[0]:g}: these steps differ in nothing else"
            by = f"{'multiply' if values[0] > 1 else 'divide'} its eps by {max(values[0], 1 / values[0]):g}"
            return Told("epsilon or gradient scale", both, fix=f"{by}, or scale the gradient", source=TRANSFORMATIONS)
        return Told(
            GRADIENT_SCALE,
            f"{says}, at every step",
            before=Call("optax.scale", (_short(1 / values[0]),)),
            source=TRANSFORMATIONS,
        )

    return Hypothesis(GRADIENT_SCALE, change, tell, (1.0,), place="gradient")


def _nearly_invariant(evidence: Evidence, scale: float) -> bool:
    """Tell whether an optimizer makes nearly the same step of gradients of another size, as Adam does."""
    updates = [each for step in evidence.differing for each in step.results if not each.is_state]
    apart = max((norm(each.jax - each.torch) / (norm(each.torch) or 1.0) for each in updates), default=1.0)
    # A step that is proportional to the p-th power of the gradient changes by about p · log(scale), relatively, for a
    # scale near 1. For plain SGD p is 1, and for Adam nearly 0.
    return scale > 0 and apart < INVARIANT * abs(np.log(scale))


INVARIANT = 0.05
"""The largest relative change of a step, for each factor of e in the gradient, that counts as nearly none."""
