"""Ports that leave the program: torch computes for them."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.experimental import io_callback

from .bases import Base


def called(function: Callable[..., Any], like: Any, *args: Any) -> Any:
    """Call a function of NumPy arrays from within a JAX program."""
    return jax.pure_callback(function, jax.ShapeDtypeStruct(like.shape, like.dtype), *args)


def _by_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., np.ndarray]:
    return lambda *args: function(*(torch.tensor(np.asarray(each)) for each in args)).detach().numpy()


@jax.custom_vjp
def torch_identity(x: Any) -> Any:
    """Give what is given, by torch, with the right gradient."""
    return called(_by_torch(lambda value: value * 1), x, x)


torch_identity.defvjp(lambda x: (torch_identity(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def torch_backward(x: Any) -> Any:
    """Give what is given; torch computes the gradient."""
    return x


torch_backward.defvjp(
    lambda x: (x, None), lambda _, gradient: (called(_by_torch(lambda g: g * 1), gradient, gradient),)
)


def wrapped(base: Base, around: Callable[[Any], Any]) -> Any:
    """Give the right port with something around its output."""

    class Wrapped(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, *args: Any) -> Any:
            return around(base.flax_model.__call__(self, *args))

    return Wrapped()


def activation(base: Base) -> dict[str, Any]:
    """One operation of the model is torch's."""
    return {"jax": base.port(wrapped(base, torch_identity))}


def backward(base: Base) -> dict[str, Any]:
    """The backward pass goes through torch."""
    return {"jax": base.port(wrapped(base, torch_backward))}


def ordered(base: Base) -> dict[str, Any]:
    """An io_callback in the forward pass."""
    through = wrapped(base, lambda x: io_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    return {"torch": base.original(trained=False), "jax": base.port(through, trained=False)}


def in_a_scan(base: Base) -> dict[str, Any]:
    """A callback within a loop within the program."""

    def loop(x: Any) -> Any:
        return jax.lax.scan(lambda carry, _: (torch_identity(carry), None), x, None, 2)[0]

    return {"torch": base.original(trained=False), "jax": base.port(wrapped(base, jax.jit(loop)), trained=False)}


def whole_model(base: Base) -> dict[str, Any]:
    """The port is the torch model."""
    original = base.original(trained=False)

    class Hollow(base.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            def run(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
                model = copy.deepcopy(original.model).to(torch.float64)
                given = torch.tensor(np.asarray(x))
                given = given.double() if given.is_floating_point() else given.long()
                return model(given).detach().numpy().astype(kernel.dtype)

            like = jax.ShapeDtypeStruct((x.shape[0], 3), jax.tree.leaves(nnx.state(self, nnx.Param))[0].dtype)
            return jax.pure_callback(run, like, x, jax.tree.leaves(nnx.state(self, nnx.Param))[0])

    return {"torch": original, "jax": base.port(Hollow(), trained=False)}


def loss(base: Base) -> dict[str, Any]:
    """The loss is torch's in its value."""
    return {"jax": base.port(loss=lambda output, target: torch_identity(base.loss(output, target)))}


def optimizer(base: Base) -> dict[str, Any]:
    """torch.optim within an optax transformation."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = base.optimizer.update(updates, state, params)
        return jax.tree.map(lambda each: called(_by_torch(lambda value: value * 1), each, each), updates), state

    return {"jax": base.port(optimizer=optax.GradientTransformation(base.optimizer.init, update))}


def shown(base: Base) -> dict[str, Any]:
    """The honest twin: a debug callback gives nothing back."""

    def look(x: Any) -> Any:
        jax.debug.callback(lambda value: None, jnp.sum(x))
        return x

    return {"jax": base.port(wrapped(base, look))}
