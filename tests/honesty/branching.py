"""Ports that are right under the conditions of a check, and wrong later, for other sizes or for other data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from .bases import Base
from .foreign import wrapped


def not_traced(base: Base) -> dict[str, Any]:
    """Right where it is traced, wrong where it is run as it is."""
    return {"jax": base.port(wrapped(base, lambda x: x if isinstance(x, jax.core.Tracer) else x * 1.1))}


def without_gradient(base: Base) -> dict[str, Any]:
    """Right where it is differentiated, wrong where it is not."""

    def looked_at(x: Any) -> Any:
        return x if type(x).__name__ in ("JVPTracer", "LinearizeTracer") else x * 1.1

    return {"jax": base.port(wrapped(base, looked_at))}


def late(base: Base) -> dict[str, Any]:
    """The model counts its calls, and doubles its output from the twentieth on."""

    class Counting(base.flax_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.count = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x: Any) -> Any:
            self.count[...] = self.count[...] + 1
            y = base.flax_model.__call__(self, x)
            return jax.lax.cond(self.count[...] > 20, lambda y: 2 * y, lambda y: y, y)

    return {"jax": base.port(Counting())}


def late_by_choice(base: Base) -> dict[str, Any]:
    """The same with jnp.where."""

    class Counting(base.flax_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.count = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x: Any) -> Any:
            self.count[...] = self.count[...] + 1
            y = base.flax_model.__call__(self, x)
            return jnp.where(self.count[...] > 20, 2 * y, y)

    return {"jax": base.port(Counting())}


def _counted(base: Base, factor: Callable[[Any], Any]) -> Any:
    """Give the right optimizer with its updates scaled by their number."""

    def init(params: Any) -> Any:
        return {"own": base.optimizer.init(params), "calls": jnp.zeros((), jnp.int32)}

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        updates, own = base.optimizer.update(gradients, state["own"], params)
        updates = jax.tree.map(lambda each: (each * factor(state["calls"])).astype(each.dtype), updates)
        return updates, {"own": own, "calls": state["calls"] + 1}

    return optax.GradientTransformation(init, update)


def late_update(base: Base) -> dict[str, Any]:
    """The optimizer counts its calls, and triples its updates from the tenth on."""
    return {"jax": base.port(optimizer=_counted(base, lambda calls: jnp.where(calls >= 10, 3.0, 1.0)))}


def every_seventh_update(base: Base) -> dict[str, Any]:
    """The optimizer leaves out each seventh update."""
    return {"jax": base.port(optimizer=_counted(base, lambda calls: jnp.where(calls % 7 == 6, 0.0, 1.0)))}


def late_rate(base: Base) -> dict[str, Any]:
    """A schedule of optax's that torch does not have."""
    rates = optax.piecewise_constant_schedule(1.0, {12: 0.1})
    return {"jax": base.port(optimizer=optax.chain(base.optimizer, optax.scale_by_schedule(rates)))}


def data_branch(base: Base) -> dict[str, Any]:
    """Another computation for inputs that no batch has."""

    class Branching(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            y = base.flax_model.__call__(self, x)
            return jax.lax.cond(jnp.mean(x) > 50, lambda y: 2 * y, lambda y: y, y)

    return {"jax": base.port(Branching())}


def large_batches(base: Base) -> dict[str, Any]:
    """Another computation for batches of more than 64 examples."""
    return {"jax": base.port(wrapped(base, lambda x: x if x.shape[0] <= 64 else 2 * x))}


def backward_size(base: Base) -> dict[str, Any]:
    """A backward pass with the batch's size written into it, and a right forward pass."""
    size = len(base.batches()[0][0])

    @jax.custom_vjp
    def identity(x: Any) -> Any:
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: (gradient * (gradient.shape[0] / size),))
    return {"jax": base.port(wrapped(base, identity))}


def length(base: Base) -> dict[str, Any]:
    """A mean over the second axis with its length written into it."""

    class Fixed(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            return self.fc2((x + nnx.silu(self.fc1(x))).sum(1) / 5)

    return {"jax": base.port(Fixed())}
