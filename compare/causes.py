"""Why two sides differ: each cause is proved by removing it and watching the difference go."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.problem import Problem
from compare.report import Cause
from compare.verdict import FACTOR, Quantity

if TYPE_CHECKING:
    import optax


def accurate_adam(learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> "optax.GradientTransformation":
    """`optax.adam`, but for 1 - b**t, which it takes accurately in float32 as -expm1(t log b)."""
    import jax
    import jax.numpy as jnp
    import optax

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = state.count + 1
        correction1, correction2 = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        updates = jax.tree.map(lambda m, v: m / correction1 / (jnp.sqrt(v / correction2) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    init = optax.scale_by_adam(b1, b2, eps).init
    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def bias_correction(loss: Quantity, losses64: np.ndarray, problem: Problem, learning_rate: float) -> list[Cause]:
    """Find out whether `optax.adam`'s float32 bias correction is why the JAX side rounds more than torch.

    Args:
        loss: How far apart the losses are.
        losses64: The JAX side's float64 losses, of shape `(steps,)`.
        problem: What was trained on.
        learning_rate: Adam's.

    Returns:
        The cause, with its size, or nothing where it is not the cause.
    """
    import jaxnet

    run = jaxnet.adam.train(problem, len(losses64), optimizer=accurate_adam(learning_rate))
    accurate = np.abs(np.asarray(run.losses, np.float64) - losses64) / np.abs(losses64)
    without = Quantity(loss.stage, loss.torch, loss.jax, loss.error64, loss.error_torch, list(accurate), loss.cancellation)
    if max(without.imbalance) > FACTOR:
        return []
    worst = int(np.argmax(loss.imbalance))
    jax, torch = loss.error_jax[worst], loss.error_torch[worst]
    return [
        Cause(
            "float32 bias correction",
            f"optax.adam computes 1 - b2**t in float32: at step {worst} that puts its loss {jax:.1e} off, and "
            f"torch's is {torch:.1e} off. With 1 - b2**t accurate, optax's is {accurate[worst]:.1e} off. "
            "In float64 both sides agree: this is rounding, not a bug.",
            "None is needed. See docs/precision.md.",
        )
    ]
