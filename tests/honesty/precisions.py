"""Ports that are right in one precision only, or whose own noise would excuse them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .bases import Base
from .foreign import wrapped


def _wide(value: Any) -> bool:
    return bool(value.dtype == jnp.float64)


def _scaled(in32: float, in64: float) -> Any:
    """Give an identity whose gradient is scaled, otherwise in each precision."""

    @jax.custom_vjp
    def identity(x: Any) -> Any:
        return x

    def backward(_: Any, gradient: Any) -> Any:
        return (gradient * (in64 if _wide(gradient) else in32),)

    identity.defvjp(lambda x: (x, None), backward)
    return identity


def _rated(base: Base, in32: float, in64: float) -> dict[str, Any]:
    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        updates, state = base.optimizer.update(gradients, state, params)
        return jax.tree.map(lambda each: each * (in64 if _wide(each) else in32), updates), state

    return {"jax": base.port(optimizer=optax.GradientTransformation(base.optimizer.init, update))}


def gradient(base: Base) -> dict[str, Any]:
    """A float32 gradient that is too large by half."""
    return {"jax": base.port(wrapped(base, _scaled(1.5, 1.0)))}


def small_gradient(base: Base) -> dict[str, Any]:
    """A float32 gradient that is too large by a hundredth."""
    return {"jax": base.port(wrapped(base, _scaled(1.01, 1.0)))}


def tiny_gradient(base: Base) -> dict[str, Any]:
    """A float32 gradient that is too large by a ten-thousandth."""
    return {"jax": base.port(wrapped(base, _scaled(1.0001, 1.0)))}


def tiny_rate(base: Base) -> dict[str, Any]:
    """A float32 learning rate that is too large by a ten-thousandth."""
    return _rated(base, 1.0001, 1.0)


def rate(base: Base) -> dict[str, Any]:
    """A float32 learning rate a hundred times too small."""
    return _rated(base, 0.01, 1.0)


def forward(base: Base) -> dict[str, Any]:
    """A float32 output that is off by a hundredth."""
    return {"jax": base.port(wrapped(base, lambda x: x if _wide(x) else x * 1.01), trained=False), **_forward(base)}


def _forward(base: Base) -> dict[str, Any]:
    return {"torch": base.original(trained=False)}


def both_rates(base: Base) -> dict[str, Any]:
    """A learning rate three times too large in float64, and negative in float32."""
    return _rated(base, -1.0, 3.0)


def both_outputs(base: Base) -> dict[str, Any]:
    """An output that is wrong in both precisions, otherwise in each."""
    return {"jax": base.port(wrapped(base, lambda x: x * (1.1 if _wide(x) else 2.0)), trained=False), **_forward(base)}


def noisy_output(base: Base) -> dict[str, Any]:
    """An output that amplifies its own rounding, in both precisions."""

    def noisy(x: Any) -> Any:
        return x * (1 + 0.1 * jnp.sin(x * (1e17 if _wide(x) else 1e9)))

    return {"jax": base.port(wrapped(base, noisy), trained=False), **_forward(base)}


def low_precision_gradient(base: Base) -> dict[str, Any]:
    """A float32 gradient that is too large by half, behind a cast to bfloat16 that has no effect."""
    scaled = _scaled(1.5, 1.0)

    def through(x: Any) -> Any:
        return scaled(x + 0 * x.astype(jnp.bfloat16).astype(x.dtype))

    return {"jax": base.port(wrapped(base, through))}
