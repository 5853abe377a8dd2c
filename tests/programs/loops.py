"""What torch's loops have besides: closures, gradient scalers, hooks on parameters, `torch.compile`; and pmap."""

from typing import Any

import jax
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.averages import mse
from programs.common import FlaxNet, Pair, TorchNet, drawn


def _port(tx: Any, change: Any = lambda gradients: gradients) -> Any:
    """Make the plain step of nnx."""

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], change(gradients))
            return state, {"loss": loss}

        return {"model": model, "optimizer": nnx.Optimizer(model, tx, wrt=nnx.Param)}, step

    return port


def closure(fault: str = "") -> Pair:
    """An optimizer that is given a closure."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)

        def step(state: Any, batch: Any) -> Any:
            def again() -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.mse_loss(model(batch["x"]), batch["y"])
                loss.backward()
                return loss

            return {"loss": optimizer.step(again)}

        return {"model": model, "optimizer": optimizer}, step

    tx = optax.adam(1e-2, b2=0.99 if fault == "second moment" else 0.999)
    return Pair(original, _port(tx), drawn(x=(5,), y=(3,)))


def scaler(fault: str = "") -> Pair:
    """A gradient scaler, a hook on a parameter, and a compiled model; the port has nothing of the scaler."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        model.fc1.weight.register_hook(lambda gradient: 0.5 * gradient)
        compiled = torch.compile(model, backend="eager")

        def step(state: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            loss = functional.mse_loss(compiled(batch["x"]), batch["y"])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer, "scaler": scaler}, step

    def halved(gradients: Any) -> Any:
        if fault == "no hook":
            return gradients
        gradients["fc1"]["kernel"] = jax.tree.map(lambda leaf: 0.5 * leaf, gradients["fc1"]["kernel"])
        return gradients

    return Pair(original, _port(optax.sgd(0.1, momentum=0.9), halved), drawn(x=(5,), y=(3,)))


def pmapped(fault: str = "") -> Pair:
    """`jax.pmap` over two devices; the torch side has the whole batch on one."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)

        def step(state: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        graph, params = nnx.split(FlaxNet(nnx.Rngs(0)))
        tx = optax.adam(1e-2)

        def part(params: Any, x: jax.Array, y: jax.Array) -> Any:
            loss, gradients = jax.value_and_grad(lambda params: mse(nnx.merge(graph, params)(x), y))(params)
            average = jax.lax.psum if fault == "summed over devices" else jax.lax.pmean
            return jax.lax.pmean(loss, "data"), average(gradients, "data")

        mapped = jax.pmap(part, axis_name="data", in_axes=(None, 0, 0), out_axes=None, devices=jax.devices()[:2])

        def step(state: Any, batch: Any) -> Any:
            x, y = (batch[name].reshape(2, -1, *batch[name].shape[1:]) for name in ("x", "y"))
            loss, gradients = mapped(state["model"], x, y)
            updates, kept = tx.update(gradients, state["optimizer"])
            after = optax.apply_updates(state["model"], updates)
            return {"model": after, "optimizer": kept}, {"loss": loss, "gradients": {"model": gradients}}

        return {"model": params, "optimizer": tx.init(params)}, jax.jit(step)

    return Pair(original, port, drawn(x=(5,), y=(3,)))
