"""Optimizers that are given another gradient: clipped, scaled or of other sign."""

import numpy as np

from compare.diagnosis.optimizers.optax_names import TRANSFORMATIONS
from compare.diagnosis.optimizers.update import BOUND, GRADIENT, Updates
from compare.numerics.fitting import fitted
from compare.step.observation import to_numpy
from compare.verdict.divergence import Cause


def other_gradient(updates: Updates) -> Cause | None:
    """Find out whether the JAX side's optimizer sees the gradient scaled: clipped, averaged, or not."""
    apart, factor = fitted(1.0, lambda value: updates({GRADIENT: value}), updates.target, updates.apart)
    if apart > 1 or not factor:  # an optimizer that steps by no gradient at all clips nothing
        return None
    name, says, fix, source = gradient_told(updates, factor)
    return Cause(name, f"{name}: {says}. With that on the torch side the difference falls to rounding", fix, source)


def clipped_by_value(updates: Updates) -> Cause | None:
    """Find out whether the JAX side clips each element of the gradient, and not the gradient's norm."""
    gradients = [gradient for gradient in updates.gradients.values() if gradient is not None]
    if not gradients:
        return None
    elements = np.concatenate([np.abs(to_numpy(gradient)).ravel() for gradient in gradients])
    start = float(np.median(elements))  # some are above it, and some below
    apart, bound = fitted(start, lambda value: updates({BOUND: value}), updates.target, updates.apart)
    if apart > 1 or not bound:
        return None
    updates({})
    size, clipped, largest = updates.size, updates.stepped_on, updates.largest
    jax_does = f"clips each of its elements to ±{bound:g}" if bound < elements.max() else "does not clip it"
    if clipped >= size * (1 - 1e-9):
        torch_does, fix = "does not clip the gradient", "leave out optax.clip"
    elif abs(np.linalg.norm(np.minimum(elements, largest)) / clipped - 1) < 1e-9:
        torch_does, fix = (
            f"clips each element of the gradient to ±{largest:g}",
            f"optax.chain(optax.clip({largest:g}), ...)",
        )
    else:
        most = clipped * (size + 1e-6) / size  # clip_grad_norm_ scales by max_norm / (norm + 1e-6)
        torch_does, fix = (
            f"clips the gradient's norm to {clipped:g}",
            f"optax.chain(optax.clip_by_global_norm({most:g}), ...)",
        )
    return Cause(
        "clipping",
        f"clipping: torch {torch_does}, and the JAX side {jax_does}. With that on the torch side the "
        "difference falls to rounding",
        fix,
        TRANSFORMATIONS,
    )


def gradient_told(updates: Updates, factor: float) -> tuple[str, str, str, str]:
    """Tell what it is that scales the gradient: the cause's name, what each side does, the fix and the source."""
    updates({})
    size = updates.size
    clipped = updates.stepped_on
    if abs(factor * size / (size + 1e-6) - 1) < 1e-3 * 1e-6 / size:
        return (
            "clipping",
            f"torch clips by max_norm / (norm + 1e-6) and the JAX side by max_norm / norm, at a norm of {size:g}",
            "scale by max_norm / (norm + 1e-6): optax.clip_by_global_norm has no epsilon",
            "https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html",
        )
    if clipped < size * (1 - 1e-9):
        return (
            "clipping",
            f"the gradient's norm is {size:g}; torch clips it to {clipped:g}, and the JAX side "
            + ("not at all" if abs(factor * clipped / size - 1) < 1e-6 else f"to {factor * clipped:g}"),
            # clip_grad_norm_ scales by max_norm / (norm + 1e-6)
            f"optax.chain(optax.clip_by_global_norm({clipped * (size + 1e-6) / size:g}), ...)",
            TRANSFORMATIONS,
        )
    says = f"the JAX side's optimizer sees torch's gradient times {factor:g}"
    if factor < 1 and updates.kind != "SGD":
        says += f", of norm {factor * size:g} where torch's is {size:g}"
        return "clipping", says, "clip on both sides, or on neither", TRANSFORMATIONS
    return "gradient scale", says, "scale the gradient as torch does, before the optimizer sees it", TRANSFORMATIONS
