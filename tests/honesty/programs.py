"""Programs, whole training steps, that are dishonest, broken or vacuous, and their honest twins."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare

from .bases import NET, Base, FlaxNet, TorchNet, mse
from .foreign import torch_backward
from .precisions import _scaled, _wide


def _batches(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": x, "y": y} for x, y in NET.batches()][:count]


def _original(
    optimizer: Callable[[Any], Any] = lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
    loss: Callable[[Any, Any], Any] = torch.nn.functional.mse_loss,
    average: bool = False,
) -> compare.TorchProgram:
    def build() -> Any:
        torch.manual_seed(0)
        model = TorchNet()
        of_model = optimizer(model.parameters())
        mean = copy.deepcopy(model) if average else None

        def step(state: Any, batch: Any) -> Any:
            value = loss(model(batch["x"]), batch["y"])
            of_model.zero_grad()
            value.backward()
            of_model.step()
            for old, new in zip(mean.parameters() if mean else (), model.parameters(), strict=False):
                old.data.mul_(0.9).add_(0.1 * new.data)
            return {"loss": value}

        return {"model": model, "optimizer": of_model, **({"mean": mean} if mean else {})}, step

    return compare.TorchProgram(build)


def _port(
    optimizer: Any = None,
    loss: Callable[[Any, Any, Any], Any] = lambda output, batch, count: mse(output, batch["y"]),
    batch: Any = None,
    gradient: Callable[[Any], Any] = lambda gradients: gradients,
    jitted: bool = True,
    python_counter: bool = False,
) -> compare.JaxProgram:
    def build() -> Any:
        model = FlaxNet()
        state = {
            "model": model,
            "optimizer": nnx.Optimizer(model, optimizer or optax.sgd(0.1, momentum=0.9), wrt=nnx.Param),
            "count": nnx.Variable(jnp.zeros((), jnp.int32)),
        }
        calls: list[int] = []

        def step(state: Any, batch: Any) -> Any:
            calls.append(1)
            count = len(calls) if python_counter else state["count"][...]

            def loss_of(model: Any) -> Any:
                return loss(model(batch["x"]), batch, count)

            value, gradients = nnx.value_and_grad(loss_of)(state["model"])
            state["optimizer"].update(state["model"], gradient(gradients))
            state["count"][...] = state["count"][...] + 1
            return state, {"loss": value}

        return state, nnx.jit(step) if jitted else step

    return compare.JaxProgram(build, batch=batch) if batch else compare.JaxProgram(build)


def _made(torch_side: Any = None, jax_side: Any = None, **more: Any) -> dict[str, Any]:
    return {"torch": torch_side or _original(), "jax": jax_side or _port(), "batches": _batches(), **more}


def right(base: Base) -> dict[str, Any]:
    """The honest twin of most."""
    return _made()


def narrow_gradient(base: Base) -> dict[str, Any]:
    """A gradient that is too large by half in float32."""
    return _made(jax_side=_port(gradient=lambda g: jax.tree.map(lambda each: each * (1.0 if _wide(each) else 1.5), g)))


def narrow_loss(base: Base) -> dict[str, Any]:
    """A loss whose backward pass is wrong in float32."""
    scaled = _scaled(1.5, 1.0)
    return _made(jax_side=_port(loss=lambda output, batch, count: mse(scaled(output), batch["y"])))


def late(base: Base) -> dict[str, Any]:
    """Another loss from the eleventh step on."""

    def loss(output: Any, batch: Any, count: Any) -> Any:
        return jax.lax.cond(count > 10, lambda x: 2 * x, lambda x: x, mse(output, batch["y"]))

    return _made(jax_side=_port(loss=loss))


def late_in_python(base: Base) -> dict[str, Any]:
    """The same in a step in plain Python that counts by itself."""

    def loss(output: Any, batch: Any, count: Any) -> Any:
        return mse(output, batch["y"]) * (2 if count > 10 else 1)

    return _made(jax_side=_port(loss=loss, jitted=False, python_counter=True))


def late_in_python_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    return _made(jax_side=_port(jitted=False, python_counter=True))


def same_size(base: Base) -> dict[str, Any]:
    """A loss with the batch's size written into it."""

    def loss(output: Any, batch: Any, count: Any) -> Any:
        return ((output - batch["y"]) ** 2).sum() / 15

    return _made(jax_side=_port(loss=loss))


def no_rate(base: Base) -> dict[str, Any]:
    """A learning rate of 0, and other optimizers."""
    return _made(_original(lambda params: torch.optim.SGD(params, 0.0)), _port(optax.sgd(0.0)))


def callback(base: Base) -> dict[str, Any]:
    """The loss goes through torch."""

    def loss(output: Any, batch: Any, count: Any) -> Any:
        return mse(torch_backward(output), batch["y"])

    return _made(jax_side=_port(loss=loss))


def own_targets(base: Base) -> dict[str, Any]:
    """The targets come from a closure."""
    target = np.asarray(_batches()[0]["y"])
    made = _made(jax_side=_port(loss=lambda output, batch, count: mse(output, target.astype(output.dtype))))
    return {**made, "batches": _batches(1)}


def not_a_number(base: Base) -> dict[str, Any]:
    """NaN on both sides."""
    return _made(
        _original(loss=lambda output, target: (output - target).mean() * float("nan")),
        _port(loss=lambda output, batch, count: jnp.mean(output) * jnp.nan),
    )


def constant_loss(base: Base) -> dict[str, Any]:
    """A loss that depends on nothing."""
    return _made(
        _original(loss=lambda output, target: (output * 0).sum()),
        _port(loss=lambda output, batch, count: jnp.sum(output * 0)),
    )


def late_rate(base: Base) -> dict[str, Any]:
    """A schedule that torch does not have."""
    rates = optax.piecewise_constant_schedule(0.1, {15: 0.1})
    return _made(jax_side=_port(optax.sgd(rates, momentum=0.9)))


def unread_average(base: Base) -> dict[str, Any]:
    """An average of the weights that the port does not have, and that nothing reads."""
    return _made(_original(average=True))


def clipping(base: Base) -> dict[str, Any]:
    """Clipping in torch's step that is never reached, and that the port lacks."""

    def clipped(params: Any) -> Any:
        params = list(params)
        optimizer = torch.optim.SGD(params, 0.1, momentum=0.9)

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(params, 1e3)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return _made(_original(clipped))


def clipping_twin(base: Base) -> dict[str, Any]:
    """The honest twin."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(0.1, momentum=0.9))
    return {**clipping(base), "jax": _port(optimizer)}


def noisy(base: Base) -> dict[str, Any]:
    """The honest program with a callback that only looks."""

    def loss(output: Any, batch: Any, count: Any) -> Any:
        jax.debug.callback(lambda value: None, jnp.sum(output))
        return mse(output, batch["y"])

    return _made(jax_side=_port(loss=loss))
