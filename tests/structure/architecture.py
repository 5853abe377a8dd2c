"""What an architecture of this package is, and how one is checked with faults."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import compare


class Architecture(NamedTuple):
    """A model written twice. The port takes the names of the faults that it is to have."""

    name: str
    original: Callable[[], torch.nn.Module]
    port: Callable[[frozenset[str]], Any]
    inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    faults: dict[str, tuple[str, ...]]
    """By name: words of which a right cause has one."""
    two: tuple[tuple[str, str], ...] = ()
    """Faults that lie in one window, to be planted together."""
    target: Callable[[np.random.Generator], Any] | None = None
    """What the loss takes; without it, the forward pass alone is compared."""
    loss: Callable[..., Any] | None = None
    jax_loss: Callable[[frozenset[str]], Callable[..., Any]] | None = None


def _moved(model: torch.nn.Module) -> torch.nn.Module:
    """Move what is initialised to zeros and ones: a bias of zero hides what is done to it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _channels_last(inputs: tuple[Any, ...], target: Any) -> tuple[Any, Any]:
    return tuple(np.moveaxis(x, 1, -1) if x.ndim == 4 else x for x in inputs), target


def check(architecture: Architecture, faults: frozenset[str], steps: int = 1) -> compare.Report:
    """Compare the two, the port with faults."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    target = architecture.target or (lambda rng: None)
    batches = [(architecture.inputs(rng), target(rng)) for _ in range(2)]
    jax_loss = architecture.jax_loss and architecture.jax_loss(faults)
    images = any(x.ndim == 4 for x in batches[0][0])
    return compare.check(
        compare.Torch(_moved(architecture.original()), architecture.loss),
        compare.Flax(architecture.port(faults), jax_loss, batch=_channels_last if images else None),
        batches,
        steps=steps,
        name="+".join((architecture.name, *sorted(faults))),
    )


def linear(*sizes: int, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(*sizes, use_bias=bias, rngs=nnx.Rngs(0))


def norm(size: int) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, epsilon=1e-5, rngs=nnx.Rngs(0))


def conv(inputs: int, outputs: int, size: int, **settings: Any) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), **{"padding": size // 2, **settings}, rngs=nnx.Rngs(0))


def gelu(x: Any) -> Any:
    return nnx.gelu(x, approximate=False)


def mean_squared(output: Any, target: Any) -> Any:
    return jnp.mean((output - target) ** 2)


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    """Give inputs that are drawn."""
    return lambda rng: tuple(rng.normal(size=shape) for shape in shapes)
