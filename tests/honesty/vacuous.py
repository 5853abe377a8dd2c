"""Pairs in which nothing decides, and faults that nothing given exercises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare

from .bases import NET, Base, TorchNet, mse
from .foreign import wrapped


def no_weights(base: Base) -> dict[str, Any]:
    """No weight is paired: weights= leaves all of them out."""
    zero = wrapped(base, lambda x: x * 0)

    class Zero(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 0

    sides = {"torch": base.original(trained=False, model=Zero()), "jax": base.port(zero, trained=False)}
    return {**sides, "weights": {".*": None}}


def constant_output(base: Base) -> dict[str, Any]:
    """Both models give a constant, whatever they compute."""

    class Constant(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 0 + 1

    constant = wrapped(base, lambda x: jnp.ones_like(x))
    return {"torch": base.original(trained=False, model=Constant()), "jax": base.port(constant, trained=False)}


def no_gradient(base: Base) -> dict[str, Any]:
    """The loss does not depend on the weights."""

    def loss(output: Any, target: Any) -> Any:
        return (output * 0).sum()

    return {"torch": base.original(loss=loss), "jax": base.port(loss=loss)}


def not_a_number(base: Base) -> dict[str, Any]:
    """NaN on both sides."""

    class Nan(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) * float("nan")

    nan = wrapped(base, lambda x: x * jnp.nan)
    return {"torch": base.original(trained=False, model=Nan()), "jax": base.port(nan, trained=False)}


def infinite(base: Base) -> dict[str, Any]:
    """Infinity on both sides."""

    class Infinite(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x).abs() * float("inf")

    inf = wrapped(base, lambda x: jnp.full_like(x, jnp.inf))
    return {"torch": base.original(trained=False, model=Infinite()), "jax": base.port(inf, trained=False)}


def one_step(base: Base) -> dict[str, Any]:
    """One step, which shows no momentum."""
    return {
        "torch": base.original(optimizer=lambda params: torch.optim.SGD(params, 0.1, momentum=0.9)),
        "jax": base.port(optimizer=optax.sgd(0.1)),
        "steps": 1,
    }


def _stepped(params: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(params, 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)

    def step(*_: Any) -> None:
        schedule.step()

    optimizer.register_step_post_hook(step)
    return optimizer


def schedule(base: Base) -> dict[str, Any]:
    """The schedule is left out; as many steps as batches do not reach it."""
    return {"torch": base.original(optimizer=_stepped), "jax": base.port(optimizer=optax.sgd(0.1))}


def schedule_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    rates = optax.exponential_decay(0.1, 4, 0.1, staircase=True)
    return {"torch": base.original(optimizer=_stepped), "jax": base.port(optimizer=optax.sgd(rates))}


def schedule_not_reached(base: Base) -> dict[str, Any]:
    """The same, with fewer steps than the schedule needs."""
    return {**schedule(base), "steps": 3}


def no_rate(base: Base) -> dict[str, Any]:
    """A learning rate of 0, and any optimizer."""
    return {
        "torch": base.original(optimizer=lambda params: torch.optim.SGD(params, 0.0)),
        "jax": base.port(optimizer=optax.sgd(0.0)),
    }


def evaluation(base: Base) -> dict[str, Any]:
    """A dropout that the port lacks, in evaluation mode."""

    class Dropping(base.torch_model):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    return {"torch": base.original(trained=False, model=Dropping().eval()), "jax": base.port(trained=False)}


def one_example(base: Base) -> dict[str, Any]:
    """A batch of one, for which a sum is a mean."""

    def summed(output: Any, target: Any) -> Any:
        return base.loss(output, target) * output.shape[0]

    return {"jax": base.port(loss=summed), "batches": [(x[:1], y[:1]) for x, y in base.batches()]}


def same_size(base: Base) -> dict[str, Any]:
    """A factor of the batch's size, right for this size alone."""
    size = len(base.batches()[0][0])

    def summed(output: Any, target: Any) -> Any:
        return base.loss(output, target) * (output.shape[0] / size)

    return {"jax": base.port(loss=summed)}


class TorchGated(TorchNet):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> Any:
        return x[:, :3] + self.gate * super().forward(x)


def gated(activation: Any, kernel: bool = False) -> dict[str, Any]:
    """Give a branch behind a gate that starts at zero."""

    class Gated(NET.flax_model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gate = nnx.Param(jnp.zeros(3))

        def __call__(self, x: Any) -> Any:
            h = activation(self.norm(self.fc1(x)))
            return x[:, :3] + self.gate[...] * self.fc2(h)

    return {"torch": NET.original(trained=False, model=TorchGated()), "jax": NET.port(Gated(), trained=False)}


def zero_gate(base: Base) -> dict[str, Any]:
    """Another activation behind a gate that starts at zero."""
    return gated(jax.nn.relu)


def open_gate(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return gated(jnp.tanh)


def zero_inputs(base: Base) -> dict[str, Any]:
    """Another activation on inputs that are zero."""

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(6, 3, bias=False)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.tanh(self.fc(x))

    return {"torch": compare.Torch(Odd()), "jax": _odd(jax.nn.relu), "batches": [(np.zeros((4, 6)), None)]}


def _odd(activation: Any) -> compare.Flax:
    class Odd(nnx.Module):
        def __init__(self) -> None:
            self.fc = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return activation(self.fc(x))

    return compare.Flax(Odd())


def zero_inputs_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return {**zero_inputs(base), "jax": _odd(jnp.tanh)}


def norm_scale(base: Base) -> dict[str, Any]:
    """The scale of a fresh norm, which is one, is left out."""

    class Plain(NET.flax_model):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            h = self.fc1(x)
            h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
            return self.fc2(jnp.tanh(h + self.norm.bias[...]))

    return {"torch": NET.original(trained=False), "jax": NET.port(Plain(), trained=False)}


def ignored_labels(base: Base) -> dict[str, Any]:
    """Torch ignores a label that no batch has."""
    return {
        "torch": base.original(loss=torch.nn.CrossEntropyLoss(ignore_index=2)),
        "batches": [(x, y % 2) for x, y in base.batches()],
    }


def ignored_in_a_function(base: Base) -> dict[str, Any]:
    """The same, where the loss is a function."""

    def loss(output: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(output, target, ignore_index=2)

    return {"torch": base.original(loss=loss), "batches": [(x, y % 2) for x, y in base.batches()]}


def _masked(output: Any, target: Any) -> Any:
    return ((output - target[0]) ** 2 * target[1]).sum() / target[1].sum()


def full_mask(base: Base) -> dict[str, Any]:
    """A mask in the target that is full, and that the port ignores."""
    batches = [(x, (y, np.ones_like(y))) for x, y in NET.batches()]
    ignoring = NET.port(loss=lambda output, target: mse(output, target[0]))
    return {"torch": NET.original(loss=_masked), "jax": ignoring, "batches": batches}


def full_mask_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return {**full_mask(base), "jax": NET.port(loss=_masked)}


def clipping(base: Base) -> dict[str, Any]:
    """Clipping that is never reached, and that the port lacks."""

    def clipped(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        optimizer = torch.optim.SGD(params, 0.1)

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(params, 1e3)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return {"torch": base.original(optimizer=clipped), "jax": base.port(optimizer=optax.sgd(0.1))}


def clipping_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(0.1))
    return {**clipping(base), "jax": base.port(optimizer=optimizer)}
