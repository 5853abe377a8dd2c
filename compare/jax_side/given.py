"""Puts given values in place of those that a step of the JAX side computes, and keeps its derivatives."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from compare.step.observation import Port


class Given(NamedTuple):
    """What a step is given. It still shows what it computed itself at these places."""

    ports: Mapping[Port, np.ndarray]
    """What modules take and give, each of a shape that broadcasts to what the JAX side has there."""
    gradients: Mapping[str, np.ndarray]
    """What the optimizer takes, for each parameter."""
    used: Collection[Port] | None = None
    """Those of `ports` that are given now; None is for all. Another choice of them compiles nothing."""
    own: Collection[str] = ()
    """The parameters for which the optimizer takes the gradient that is computed, and none of `gradients`."""

    @property
    def chosen(self) -> np.ndarray:
        """Whether each port is given, in sorted order, of shape `(ports,)`."""
        return np.array([self.used is None or port in self.used for port in sorted(self.ports)], bool)


def by_port(ports: Mapping[Port, Any], chosen: Any) -> dict[Port, tuple[Any, Any]]:
    """Return each port's value, and whether it is chosen, as a traced step has them."""
    return {port: (ports[port], chosen[number]) for number, port in enumerate(sorted(ports))}


def merged(computed: Any, given: Any, known: Any) -> Any:
    """Return a pytree of gradients: each is the given one where it is known, and else what was computed."""
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(computed)
    chosen = (
        jnp.where(known[n], ours, own) for n, (own, ours) in enumerate(zip(leaves, jax.tree.leaves(given), strict=True))
    )
    return jax.tree.unflatten(structure, chosen)


def exchanged(computed: Any, value: Any, chosen: Any) -> Any:
    """Return `value` where it is `chosen`, and else what was computed.

    The derivative is always that of what was computed: the gradients of parameters before this place then differ only
    by what is different after it.
    """
    import jax.numpy as jnp

    value = jnp.broadcast_to(jnp.asarray(value).astype(computed.dtype), computed.shape)
    if not jnp.issubdtype(computed.dtype, jnp.inexact):
        return jnp.where(chosen, value, computed)
    return _exchange()(computed, value, chosen)


@functools.cache
def _exchange() -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    # The value of `value`, with the derivative of `computed`: d exchange = d computed. A plain jnp.where
    # would cut the gradient off where the given value is used, and every parameter before that place
    # would get a gradient of zero.
    @jax.custom_jvp
    def exchange(computed: Any, value: Any, chosen: Any) -> Any:
        return jnp.where(chosen, value, computed)

    @exchange.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return exchange(*primals), tangents[0]

    return exchange
