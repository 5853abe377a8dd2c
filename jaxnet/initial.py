"""Data and weights of the notebook's own distributions, drawn by JAX: no other framework is needed.

>>> import jax, jaxnet
>>> jaxnet.adam.train(jaxnet.initial.torch_linear(jax.random.key(0)), steps=5).losses.shape
(5,)
"""

from typing import NamedTuple

import jax


class Problem(NamedTuple):
    """A pytree of what to fit and the weights to start from: `jaxnet.Problem` gives the shapes."""

    x: jax.Array
    y: jax.Array
    w1: jax.Array
    b1: jax.Array | None
    w2: jax.Array
    b2: jax.Array | None


def _data(key: jax.Array, shape: tuple[int, int, int, int]) -> tuple[jax.Array, jax.Array]:
    N, D_in, _, D_out = shape
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (N, D_in)), jax.random.normal(key_y, (N, D_out))


def standard_normal(key: jax.Array, shape: tuple[int, int, int, int] = (64, 1000, 100, 10)) -> Problem:
    """Standard normal data and weights, no biases: cells 1 to 3. `shape` is `(N, D_in, H, D_out)`."""
    key_data, key_w1, key_w2 = jax.random.split(key, 3)
    x, y = _data(key_data, shape)
    _, D_in, H, D_out = shape
    return Problem(x, y, jax.random.normal(key_w1, (D_in, H)), None, jax.random.normal(key_w2, (H, D_out)), None)


def torch_linear(key: jax.Array, shape: tuple[int, int, int, int] = (64, 1000, 100, 10)) -> Problem:
    """Standard normal data, and the weights of `torch.nn.Linear`: cells 4 and 5. `shape` is `(N, D_in, H, D_out)`.

    Weights and biases are uniform between ±1/√fan_in: see the documentation of `torch.nn.Linear`.
    """
    key_data, *keys = jax.random.split(key, 5)
    x, y = _data(key_data, shape)
    _, D_in, H, D_out = shape

    def uniform(key: jax.Array, size: tuple[int, ...], fan_in: int) -> jax.Array:
        return jax.random.uniform(key, size, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    return Problem(
        x,
        y,
        uniform(keys[0], (D_in, H), D_in),
        uniform(keys[1], (H,), D_in),
        uniform(keys[2], (H, D_out), H),
        uniform(keys[3], (D_out,), H),
    )
