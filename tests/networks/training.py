"""Both halves of losses and optimizers, and the two sides of a comparison."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import compare

from .layers import FlaxNetwork, Network, alter
from .specification import VOCABULARY, Optimizer, Specification
from .unknown import LOSSES as UNKNOWN

LOSSES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "mean square": (functional.mse_loss, lambda o, t: jnp.mean((o - t) ** 2)),
    "sum of squares": (lambda o, t: ((o - t) ** 2).sum(), lambda o, t: jnp.sum((o - t) ** 2)),
    "absolute": (functional.l1_loss, lambda o, t: jnp.mean(jnp.abs(o - t))),
    "huber": (functional.huber_loss, lambda o, t: jnp.mean(optax.huber_loss(o, t))),
    "binary": (
        functional.binary_cross_entropy_with_logits,
        lambda o, t: jnp.mean(optax.sigmoid_binary_cross_entropy(o, t)),
    ),
    "cross entropy": (
        lambda o, t: functional.cross_entropy(o.flatten(0, -2), t.flatten()),
        lambda o, t: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(o, t)),
    ),
}


BOTH = LOSSES | UNKNOWN
"""Those of programs, and those of faults."""


def _sgd(settings: Optimizer) -> optax.GradientTransformation:
    return optax.sgd(settings.learning_rate, momentum=settings.momentum or None, nesterov=settings.nesterov)


def _adagrad(settings: Optimizer) -> optax.GradientTransformation:
    """torch's: eps is added to the root, and the sum starts at 0. `optax.adagrad` has it inside the root."""

    def update(gradients: Any, total: Any, params: Any = None) -> Any:
        total = jax.tree.map(lambda g, t: t + g**2, gradients, total)
        step = jax.tree.map(
            lambda g, t: -settings.learning_rate * g / (jnp.sqrt(t) + settings.epsilon), gradients, total
        )
        return step, total

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


class Trainer(NamedTuple):
    """How an optimizer is built on both sides, and what may be drawn for it."""

    torch: Callable[[Any, Optimizer], torch.optim.Optimizer]
    flax: Callable[[Optimizer], optax.GradientTransformation]
    rates: tuple[float, ...] = (1e-3, 1e-2)
    momentum: bool = False
    centered: bool = False


OPTIMIZERS = {
    "sgd": Trainer(
        lambda params, s: torch.optim.SGD(
            params, s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov
        ),
        _sgd,
        (1e-4, 1e-3, 1e-2, 1e-1),
        momentum=True,
    ),
    "adam": Trainer(
        lambda params, s: torch.optim.Adam(params, s.learning_rate, eps=s.epsilon, weight_decay=s.weight_decay),
        lambda s: optax.adam(s.learning_rate, eps=s.epsilon),
    ),
    "adamw": Trainer(
        lambda params, s: torch.optim.AdamW(params, s.learning_rate, eps=s.epsilon, weight_decay=s.weight_decay),
        lambda s: optax.adamw(s.learning_rate, eps=s.epsilon, weight_decay=s.weight_decay),
    ),
    "rmsprop": Trainer(
        lambda params, s: torch.optim.RMSprop(
            params,
            s.learning_rate,
            eps=s.epsilon,
            weight_decay=s.weight_decay,
            momentum=s.momentum,
            centered=s.centered,
        ),
        lambda s: optax.rmsprop(
            s.learning_rate, 0.99, s.epsilon, eps_in_sqrt=False, centered=s.centered, momentum=s.momentum or None
        ),
        momentum=True,
        centered=True,
    ),
    "adamax": Trainer(
        lambda params, s: torch.optim.Adamax(params, s.learning_rate, eps=s.epsilon, weight_decay=s.weight_decay),
        lambda s: optax.adamax(s.learning_rate, eps=s.epsilon),
    ),
    "adadelta": Trainer(
        lambda params, s: torch.optim.Adadelta(params, s.learning_rate, eps=1e-6, weight_decay=s.weight_decay),
        lambda s: optax.adadelta(s.learning_rate, eps=1e-6),
        (1e-1, 1.0),
    ),
    "adagrad": Trainer(
        lambda params, s: torch.optim.Adagrad(params, s.learning_rate, eps=s.epsilon, weight_decay=s.weight_decay),
        _adagrad,
    ),
}


def torch_model(specification: Specification) -> nn.Module:
    """Build the torch model, in its mode, with its initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(specification.seed)
        model = Network(specification, specification.layers)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                noise = torch.randn(tensor.shape) * 0.3
                if name.endswith("running_mean") and not specification.training:
                    tensor.add_(noise)
                elif name.endswith("running_var") and not specification.training:
                    tensor.mul_(noise.exp())
            for param in model.parameters():
                noise = torch.randn_like(param) * 0.3
                if param.dim() > 1:
                    param.mul_(specification.scale)
                elif specification.jitter:
                    param.add_(noise)
            for name, param in model.named_parameters():
                if name.startswith(f"layer{specification.zeroed}."):
                    param.zero_()
    alter(model, specification.layers)
    return model.train(specification.training)


def torch_side(specification: Specification) -> compare.Torch:
    """Build the torch side."""
    settings = specification.optimizer
    return compare.Torch(
        torch_model(specification),
        BOTH[specification.loss][0],
        lambda params: OPTIMIZERS[settings.kind].torch(params, settings),
    )


def flax_side(specification: Specification) -> compare.Flax:
    """Build its port."""
    settings = specification.optimizer
    optimizer = OPTIMIZERS[settings.kind].flax(settings)
    if settings.weight_decay and settings.kind != "adamw":
        optimizer = optax.chain(optax.add_decayed_weights(settings.weight_decay), optimizer)
    model = FlaxNetwork(specification.layers, nnx.Rngs(specification.seed))
    channels = any(layer.kind == "flatten" for layer in specification.layers)
    return compare.Flax(
        model,
        BOTH[specification.loss][1],
        optimizer,
        batch=(lambda inputs, target: (np.moveaxis(inputs, 1, -1), target)) if channels else None,
    )


def batches(specification: Specification) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the data."""
    rng = np.random.default_rng(specification.seed)
    first, last = specification.layers[0], specification.layers[-1]
    outputs = (specification.batch, *last.shape[:-1], last.features)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        shape = (specification.batch, *first.shape)
        if first.kind == "embedding":
            inputs = rng.integers(0, VOCABULARY, shape, np.int32)
        else:
            inputs = rng.standard_normal(shape, np.float32)
        if specification.loss == "cross entropy":
            return inputs, rng.integers(0, last.features, outputs[:-1]).astype(np.int64)
        if specification.loss == "binary":
            return inputs, rng.random(outputs, np.float32)
        return inputs, rng.standard_normal(outputs, np.float32)

    return [batch() for _ in range(min(specification.steps, 3))]


def check(specification: Specification, port: Specification) -> compare.Report:
    """Compare the torch program with the port of another, or of the same."""
    return compare.check(
        torch_side(specification), flax_side(port), batches(specification), steps=specification.steps, device="cpu"
    )


def overflows(report: compare.Report) -> bool:
    """Tell whether float32 is too small for one side: XLA's softmax of huge numbers is NaN, see docs/precision.md."""
    return report.divergence is not None and report.divergence.opinion.startswith("in float32 the JAX side alone")
