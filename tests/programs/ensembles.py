"""Programs of other libraries, and of several devices."""

import copy
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.averages import mse
from programs.common import FlaxNet, Pair, TorchNet, drawn


def equinox_step(fault: str = "") -> Pair:
    """An Equinox module, updated by optax within `eqx.filter_jit`, with a target that is copied every third step."""

    def original() -> Any:
        model = TorchNet()
        target = copy.deepcopy(model)
        optimizer = torch.optim.Adamax(model.parameters(), 1e-2)
        steps = [0]

        def step(state: Any, batch: Any) -> Any:
            with torch.no_grad():
                wanted = target(batch["x"]) + batch["y"]
            loss = functional.smooth_l1_loss(model(batch["x"]), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps[0] += 1
            if steps[0] % 3 == 0:
                target.load_state_dict(model.state_dict())
            return {"loss": loss}

        return {"model": model, "target": target, "optimizer": optimizer}, step

    class Net(eqx.Module):
        fc1: eqx.nn.Linear
        fc2: eqx.nn.Linear

        def __init__(self) -> None:
            self.fc1, self.fc2 = (eqx.nn.Linear(*size, key=jax.random.key(0)) for size in ((5, 8), (8, 3)))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.fc2(jnp.tanh(self.fc1(x)))

    def port() -> Any:
        model, tx = Net(), optax.adamax(1e-2)
        every = 2 if fault == "copied too often" else 3

        @eqx.filter_jit
        def step(state: Any, batch: Any) -> Any:
            wanted = jax.vmap(state["target"])(batch["x"]) + batch["y"]

            def loss_of(model: Net) -> jax.Array:
                delta = 0.5 if fault == "huber delta" else 1.0
                return jnp.mean(optax.huber_loss(jax.vmap(model)(batch["x"]), wanted, delta=delta))

            loss, gradients = eqx.filter_value_and_grad(loss_of)(state["model"])
            updates, kept = tx.update(gradients, state["optimizer"])
            model = eqx.apply_updates(state["model"], updates)
            count = state["count"] + 1
            target = jax.tree.map(lambda new, old: jnp.where(count % every == 0, new, old), model, state["target"])
            if fault == "target follows":
                target = model
            after = {"model": model, "target": target, "optimizer": kept, "count": count}
            return after, {"loss": loss, "gradients": {"model": gradients}}

        state = {"model": model, "target": Net(), "optimizer": tx.init(model), "count": jnp.zeros((), jnp.int32)}
        return state, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def haiku_state(fault: str = "") -> Pair:
    """Haiku's `transform_with_state`: a running mean of the inputs that the next batch reads."""

    class Centred(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 3)
            self.mean: torch.Tensor
            self.register_buffer("mean", torch.zeros(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output = self.linear(x - self.mean)
            self.mean = 0.8 * self.mean + 0.2 * x.detach().mean(0)
            return output

    def original() -> Any:
        model = Centred()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

        def step(state: Any, batch: Any) -> Any:
            loss = functional.mse_loss(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        keep = 0.9 if fault == "momentum of the mean" else 0.8

        def forward(x: jax.Array) -> jax.Array:
            mean = hk.get_state("mean", (5,), init=jnp.zeros)
            output = hk.Linear(3, name="linear")(x - mean)
            hk.set_state("mean", mean if fault == "state not set" else keep * mean + (1 - keep) * x.mean(0))
            return output

        model: Any = hk.without_apply_rng(hk.transform_with_state(forward))
        params, kept = model.init(jax.random.key(0), jnp.zeros((1, 5)))
        tx = optax.sgd(0.1, momentum=0.9, nesterov=fault != "no nesterov")

        @jax.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(params: Any) -> Any:
                output, after = model.apply(params, state["state"], batch["x"])
                return mse(output, batch["y"]), after

            (loss, after), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
            updates, optimizer = tx.update(gradients, state["optimizer"])
            params = optax.apply_updates(state["params"], updates)
            shown = {"loss": loss, "gradients": {"params": gradients}}
            return {"params": params, "state": after, "optimizer": optimizer}, shown

        return {"params": params, "state": kept, "optimizer": tx.init(params)}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))


def queue(fault: str = "") -> Pair:
    """A momentum encoder with a queue of its outputs, as in MoCo: a bare tensor of the state."""

    def original() -> Any:
        online = TorchNet(5, 4)
        slow = copy.deepcopy(online)
        optimizer = torch.optim.SGD(online.parameters(), lr=0.2)

        def step(state: Any, batch: Any) -> Any:
            with torch.no_grad():
                for old, new in zip(slow.parameters(), online.parameters(), strict=True):
                    old.mul_(0.9).add_(new, alpha=0.1)
                keys = functional.normalize(slow(batch["x2"]), dim=1)
            queries = functional.normalize(online(batch["x"]), dim=1)
            logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ state["queue"].T], dim=1) / 0.2
            loss = functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["queue"] = torch.cat([keys, state["queue"]])[:18]
            return {"loss": loss}

        start = functional.normalize(torch.linspace(-1, 1, 72).reshape(18, 4), dim=1)
        return {"online": online, "slow": slow, "queue": start, "optimizer": optimizer}, step

    def port() -> Any:
        online = FlaxNet(nnx.Rngs(0), 5, 4)
        optimizer = nnx.Optimizer(online, optax.sgd(0.2), wrt=nnx.Param)

        def normalized(x: jax.Array) -> jax.Array:
            return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            online, slow = state["online"], state["slow"]

            def follow() -> None:
                old, new = nnx.state(slow, nnx.Param), nnx.state(online, nnx.Param)
                nnx.update(slow, jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new))

            if fault != "followed afterwards":
                follow()
            keys = jax.lax.stop_gradient(normalized(slow(batch["x2"])))

            def loss_of(online: FlaxNet) -> jax.Array:
                queries = normalized(online(batch["x"]))
                others = queries @ state["queue"].T
                logits = jnp.concatenate([jnp.sum(queries * keys, axis=1, keepdims=True), others], axis=1) / 0.2
                return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

            loss, gradients = nnx.value_and_grad(loss_of)(online)
            state["optimizer"].update(online, gradients)
            if fault == "followed afterwards":
                follow()
            both = [state["queue"], keys] if fault == "queue's other end" else [keys, state["queue"]]
            new = state["queue"] if fault == "queue kept" else jnp.concatenate(both)[:18]
            return {**state, "queue": new}, {"loss": loss}

        start = {"online": online, "slow": nnx.clone(online), "queue": jnp.zeros((18, 4))}
        return {**start, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), x2=(5,)))


def varying(params: Any) -> Any:
    """Give each device parameters of its own, in JAX 0.8 by the older name."""
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(params, ("data",), to="varying")
    return lax.pvary(params, ("data",))


def devices(fault: str = "", *, check_vma: bool = True) -> Pair:
    """Gradients averaged over two devices by `shard_map`; the torch side has the whole batch on one."""

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
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        spec = jax.sharding.PartitionSpec

        def part(params: Any, graph: Any, x: jax.Array, y: jax.Array) -> Any:
            if check_vma:
                params = varying(params)
            loss, gradients = jax.value_and_grad(lambda params: mse(nnx.merge(graph, params)(x), y))(params)
            average = jax.lax.psum if fault == "summed over devices" else jax.lax.pmean
            return jax.lax.pmean(loss, "data"), average(gradients, "data")

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])
            mapped = jax.shard_map(
                lambda params, x, y: part(params, graph, x, y),
                mesh=mesh,
                in_specs=(spec(), spec("data"), spec("data")),
                out_specs=(spec(), spec()),
                check_vma=check_vma,
            )
            loss, gradients = mapped(params, batch["x"], batch["y"])
            state["optimizer"].update(state["model"], gradients)
            return state, {"loss": loss}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,)))
