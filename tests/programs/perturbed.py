"""Steps with weights that are moved before the gradients are computed, that are not trained, or that are counted."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.averages import mse
from programs.common import FlaxNet, Pair, TorchNet, drawn


def sharpness(fault: str = "") -> Pair:
    """Sharpness-aware minimization: gradients at weights that are moved along the gradient by a fixed distance."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        weights: list[Any] = list(model.parameters())

        def step(state: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                norm = torch.stack([each.grad.norm() for each in weights]).norm()
                moves = [each.grad * (0.05 / (norm + 1e-12)) for each in weights]
                for each, move in zip(weights, moves, strict=True):
                    each.add_(move)
            optimizer.zero_grad()
            functional.mse_loss(model(batch["x"]), batch["y"]).backward()
            with torch.no_grad():
                for each, move in zip(weights, moves, strict=True):
                    each.sub_(move)
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        radius = 0.02 if fault == "radius" else -0.05 if fault == "descends" else 0.05

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])

            def loss_of(params: Any) -> Any:
                return mse(nnx.merge(graph, params)(batch["x"]), batch["y"])

            loss, gradients = jax.value_and_grad(loss_of)(params)
            norm = 1.0 if fault == "not normalized" else optax.tree.norm(gradients) + 1e-12
            moved = jax.tree.map(lambda weight, each: weight + radius * each / norm, params, gradients)
            if fault != "one pass":
                gradients = jax.grad(loss_of)(moved)
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def frozen_part(fault: str = "") -> Pair:
    """A model of which the last layer alone is trained."""

    def original() -> Any:
        model = TorchNet()
        model.fc1.requires_grad_(requires_grad=False)
        optimizer = torch.optim.AdamW(model.fc2.parameters(), 1e-2)

        def step(state: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        trained = optax.adamw(1e-2, weight_decay=1e-2)
        left = optax.add_decayed_weights(-1e-3) if fault == "decays" else optax.set_to_zero()
        rules = {"fc1": trained if fault == "not frozen" else left, "fc2": trained}
        labels = lambda params: jax.tree.map_with_path(lambda path, _: path[0].key, params)  # noqa: E731
        optimizer = nnx.Optimizer(model, optax.multi_transform(rules, labels), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def memory(fault: str = "") -> Pair:
    """A loss that compares an output with those of the last steps, which a pointer writes into a ring."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        state = {"model": model, "optimizer": optimizer, "ring": torch.zeros(4, 3), "pointer": torch.tensor([0])}

        def step(state: Any, batch: Any) -> Any:
            output = model(batch["x"])
            loss = functional.mse_loss(output, batch["y"]) + (output[:, None] - state["ring"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                state["ring"][int(state["pointer"])] = output.mean(0)
                state["pointer"][0] = (state["pointer"][0] + 1) % 4
            return {"loss": loss}

        return state, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        ring, pointer = jnp.zeros((4, 3)), jnp.zeros(1, int)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(model: Any) -> Any:
                output = model(batch["x"])
                return mse(output, batch["y"]) + jnp.mean((output[:, None] - state["ring"]) ** 2), output

            (loss, output), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["model"])
            state["optimizer"].update(state["model"], gradients)
            ring = state["ring"].at[state["pointer"][0]].set(output.mean(0))
            pointer = state["pointer"] if fault == "pointer kept" else (state["pointer"] + 1) % 4
            return {**state, "ring": ring, "pointer": pointer}, {"loss": loss}

        return {"model": model, "optimizer": optimizer, "ring": ring, "pointer": pointer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))
