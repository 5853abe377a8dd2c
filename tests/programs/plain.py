"""Steps in plain Python: they look at numbers, and count by themselves."""

import copy
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from flax.training.train_state import TrainState
from torch.nn import functional

from programs.averages import mse
from programs.common import FlaxNet, Pair, TorchNet, clip_as_torch, drawn


def spikes(fault: str = "") -> Pair:
    """A step that is skipped where the loss is far above the average of those before, which it keeps in Python."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        before: list[float] = []

        def step(state: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            if not before or loss.item() < 1.05 * sum(before) / len(before):
                optimizer.step()
            before.append(loss.item())
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        before: list[float] = []
        most = 1.5 if fault == "never skipped" else 1.05

        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch["x"]), batch["y"]))(state["model"])
            if not before or loss < most * sum(before) / len(before):
                state["optimizer"].update(state["model"], gradients)
            before.append(float(loss))
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


class Critic(nn.Module):
    """What `TorchNet` is, in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(jnp.tanh(nn.Dense(8)(x)))


class TargetState(TrainState):
    """Parameters, and a copy of them that follows."""

    target_params: Any


def twins(fault: str = "") -> Pair:
    """Two equal models with targets, each a `TrainState`, one of them trained at every second step."""

    def original() -> Any:
        first, second = TorchNet(), TorchNet()
        first_target, second_target = copy.deepcopy(first), copy.deepcopy(second)
        for_first, for_second = (torch.optim.Adam(model.parameters(), 1e-2) for model in (first, second))
        count = 0

        def step(state: Any, batch: Any) -> Any:
            nonlocal count
            count += 1
            with torch.no_grad():
                wanted = batch["y"] + 0.5 * second_target(batch["x"])
            loss = functional.mse_loss(first(batch["x"]), wanted)
            for_first.zero_grad()
            loss.backward()
            for_first.step()
            if count % 2 == 0:
                other = functional.mse_loss(second(batch["x"]), first(batch["x"]).detach())
                for_second.zero_grad()
                other.backward()
                for_second.step()
                for target, model in ((first_target, first), (second_target, second)):
                    for old, new in zip(target.parameters(), model.parameters(), strict=True):
                        old.data.copy_(0.1 * new.data + 0.9 * old.data)
            return {"loss": loss}

        models = {"first": first, "second": second, "first_target": first_target, "second_target": second_target}
        return {**models, "for_first": for_first, "for_second": for_second}, step

    def port() -> Any:
        model: Any = Critic()
        model.apply = jax.jit(model.apply)
        params = Critic().init(jax.random.key(0), jnp.zeros((1, 5)))
        made = {"apply_fn": model.apply, "params": params, "target_params": params, "tx": optax.adam(1e-2)}
        count = 0

        def trained(state: Any, batch: Any, wanted: jax.Array) -> Any:
            loss, gradients = jax.value_and_grad(lambda p: mse(model.apply(p, batch["x"]), wanted))(state.params)
            return state.apply_gradients(grads=gradients), loss

        def follow(state: Any) -> Any:
            return state.replace(target_params=optax.incremental_update(state.params, state.target_params, 0.1))

        def step(state: Any, batch: Any) -> Any:
            nonlocal count
            count += 1
            target = state["second"].params if fault == "no target" else state["second"].target_params
            first, loss = trained(state["first"], batch, batch["y"] + 0.5 * model.apply(target, batch["x"]))
            second = state["second"]
            if count % 2 == 0 or fault == "every step":
                second, _ = trained(second, batch, model.apply(first.params, batch["x"]))
                first, second = follow(first), follow(second)
            return {"first": first, "second": second}, {"loss": loss}

        return {"first": TargetState.create(**made), "second": TargetState.create(**made)}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def clipped_in_chain(fault: str = "") -> Pair:
    """Clipping in torch's loop and in optax's chain; examples shuffled by NumPy and by a key."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)

        def step(state: Any, batch: Any) -> Any:
            order = np.arange(len(batch["x"]))
            np.random.shuffle(order)  # noqa: NPY002 - as scripts do
            x, y = batch["x"][order[:6]], batch["y"][order[:6]]
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        bound = 0.2 if fault == "bound" else 0.3
        clip = optax.stateless(lambda updates, params: clip_as_torch(updates, bound))
        if fault == "no 1e-6":
            clip = optax.clip_by_global_norm(bound)
        tx = optax.chain(clip, optax.adam(2e-2 if fault == "rate" else 1e-2))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            key, now = jax.random.split(state["key"])
            order = jax.random.permutation(now, len(batch["x"]))[:6]
            x, y = batch["x"][order], batch["y"][order]
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(x), y))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return {**state, "key": key}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "key": jax.random.key(0)}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def epochs(fault: str = "") -> Pair:
    """Two updates in a step, as of two epochs: clipping in torch's loop and in optax's chain."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)

        def step(state: Any, batch: Any) -> Any:
            for name in ("x", "x2"):
                loss = functional.mse_loss(model(batch[name]), batch["y"])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
                optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        clip = optax.stateless(lambda updates, params: clip_as_torch(updates, 0.3))
        optimizer = nnx.Optimizer(model, optax.chain(clip, optax.adam(1e-2)), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            for name in ("x", "x2"):
                x, y = batch[name], jnp.sin(batch["y"]) if fault == "second target" and name == "x2" else batch["y"]
                loss, gradients = nnx.value_and_grad(lambda m, x=x, y=y: mse(m(x), y))(state["model"])
                state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), x2=(5,), y=(3,)))
