"""Averages of weights, schedules, clipping, accumulation: one model with nnx."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx

from programs.common import FlaxNet, Pair, TorchNet, clip_as_torch, drawn


def mse(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((output - target) ** 2)


def ema(fault: str = "") -> Pair:
    """An exponential average of weights and, by copying, of buffers, with AdamW, clipping and a schedule."""

    def original() -> Any:
        model = TorchNet(norm=True)
        average = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)

        def step(state: Any, batch: Any) -> Any:
            loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                for old, new in zip(average.parameters(), model.parameters(), strict=True):
                    old.lerp_(new, 0.1)
                for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
                    kept.copy_(buffer)
            return {"loss": loss}

        return {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0), norm=True)
        every = 3 if fault == "schedule every three steps" else 2
        rate = optax.exponential_decay(1e-2, every, 0.5, staircase=True)
        if fault == "schedule one step ahead":
            late = rate
            rate = lambda count: late(count + 1)  # noqa: E731
        optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=0.1), wrt=nnx.Param)
        decay = 0.99 if fault == "decay" else 0.9

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            model, average = state["model"], state["average"]

            def averaged(old: Any, new: Any) -> Any:
                return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

            def update_average() -> None:
                nnx.update(average, averaged(nnx.state(average, nnx.Param), nnx.state(model, nnx.Param)))

            if fault == "average before the update":
                update_average()
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch["x"]), batch["y"]))(model)
            if fault != "no clipping":
                gradients = clip_as_torch(gradients, 0.5)
            state["optimizer"].update(model, gradients)
            if fault != "average before the update":
                update_average()
            if fault != "buffers not averaged":
                nnx.update(average, nnx.state(model, nnx.BatchStat))
            return state, {"loss": loss}

        return {"model": model, "average": nnx.clone(model), "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def accumulation(fault: str = "") -> Pair:
    """Gradients of micro-batches, averaged, in a loop on the torch side and in a scan on the JAX side."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(state: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            total = torch.zeros(())
            for x, y in zip(batch["x"], batch["y"], strict=True):
                loss = torch.nn.functional.mse_loss(model(x), y) / len(batch["x"])
                loss.backward()
                total = total + loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            return {"loss": total}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])

            def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
                return mse(nnx.merge(graph, params)(x), y)

            def body(total: Any, item: Any) -> Any:
                loss, gradients = jax.value_and_grad(loss_of)(params, *item)
                if fault == "each clipped":
                    gradients = clip_as_torch(gradients, 0.3)
                if fault == "last only":
                    return gradients, loss
                return jax.tree.map(jnp.add, total, gradients), loss

            start = jax.tree.map(jnp.zeros_like, params)
            total, losses = jax.lax.scan(body, start, (batch["x"], batch["y"]))
            if fault not in ("summed", "last only"):
                total = jax.tree.map(lambda leaf: leaf / len(batch["x"]), total)
            if fault != "each clipped":
                total = clip_as_torch(total, 0.3)
            state["optimizer"].update(state["model"], total)
            return state, {"loss": jnp.mean(losses)}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(6, 5), y=(6, 3), size=4))


def warm_up(fault: str = "") -> Pair:
    """A schedule that is stepped once an epoch of three steps, beside one parameter group without decay."""

    def original() -> Any:
        model = TorchNet()
        decayed = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=2e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        seen = [0]

        def step(state: Any, batch: Any) -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            loss.backward()
            optimizer.step()
            seen[0] += 1
            if seen[0] % 3 == 0:
                schedule.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer, "schedule": schedule}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        every = 1 if fault == "per step" else 3
        rate = optax.exponential_decay(2e-2, every, 0.5, staircase=True)
        mask = None if fault == "no mask" else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
        optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=0.2, mask=mask), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            loss, gradients = nnx.value_and_grad(lambda m: mse(m(batch["x"]), batch["y"]))(state["model"])
            state["optimizer"].update(state["model"], gradients)
            if fault == "two updates":
                state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def temperature(fault: str = "") -> Pair:
    """A learned temperature: a bare tensor of the state with an optimizer of its own."""

    def original() -> Any:
        model, log_alpha = TorchNet(), torch.zeros((), requires_grad=True)
        actor, alpha = torch.optim.Adam(model.parameters(), 1e-2), torch.optim.Adam([log_alpha], 3e-2)

        def step(state: Any, batch: Any) -> Any:
            entropy = (model(batch["x"]) ** 2).mean()
            loss = (log_alpha.exp().detach() * entropy) + torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            actor.zero_grad()
            loss.backward()
            actor.step()
            alpha_loss = -(log_alpha.exp() * (entropy.detach() - 0.3)).mean()
            alpha.zero_grad()
            alpha_loss.backward()
            alpha.step()
            return {"loss": loss, "alpha": log_alpha.exp()}

        return {"actor": model, "log_alpha": log_alpha, "actor_optimizer": actor, "alpha_optimizer": alpha}, step

    def port() -> Any:
        model, log_alpha = FlaxNet(nnx.Rngs(0)), jnp.zeros(())
        actor = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        tx = optax.adam(3e-2)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            alpha = jnp.exp(state["log_alpha"])

            def loss_of(m: FlaxNet) -> Any:
                entropy = jnp.mean(m(batch["x"]) ** 2)
                return alpha * entropy + mse(m(batch["x"]), batch["y"]), entropy

            (loss, entropy), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["actor"])
            state["actor_optimizer"].update(state["actor"], gradients)
            target = 0.2 if fault == "target entropy" else 0.3

            def alpha_loss(log_alpha: jax.Array) -> jax.Array:
                scale = log_alpha if fault == "not exponentiated" else jnp.exp(log_alpha)
                return -jnp.mean(scale * (entropy - target))

            gradient = jax.grad(alpha_loss)(state["log_alpha"])
            updates, kept = tx.update(gradient, state["alpha_state"])
            new = state["log_alpha"] if fault == "never updated" else optax.apply_updates(state["log_alpha"], updates)
            after = {**state, "log_alpha": new, "alpha_state": kept}
            return after, {"loss": loss, "alpha": jnp.exp(new), "gradients": {"log_alpha": gradient}}

        state = {"actor": model, "log_alpha": log_alpha, "actor_optimizer": actor, "alpha_state": tx.init(log_alpha)}
        return state, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))
