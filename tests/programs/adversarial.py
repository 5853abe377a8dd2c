"""Several optimizers in one step: a GAN, a gradient penalty, actor and critic with targets."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.common import FlaxNet, Pair, TorchNet, drawn


def gan(fault: str = "") -> Pair:
    """A discriminator's update, then a generator's through the new discriminator."""

    def original() -> Any:
        generator, discriminator = TorchNet(4, 5), TorchNet(5, 1)
        for_g = torch.optim.Adam(generator.parameters(), 1e-2, betas=(0.5, 0.999))
        for_d = torch.optim.Adam(discriminator.parameters(), 2e-2, betas=(0.5, 0.999))

        def step(state: Any, batch: Any) -> Any:
            fake = generator(batch["z"])
            for_d.zero_grad()
            real_loss = functional.softplus(-discriminator(batch["x"])).mean()
            d_loss = real_loss + functional.softplus(discriminator(fake.detach())).mean()
            d_loss.backward()
            for_d.step()
            for_g.zero_grad()
            g_loss = functional.softplus(-discriminator(fake)).mean()
            g_loss.backward()
            for_g.step()
            return {"loss": d_loss, "generator_loss": g_loss}

        models = {"generator": generator, "discriminator": discriminator}
        return {**models, "generator_optimizer": for_g, "discriminator_optimizer": for_d}, step

    def port() -> Any:
        generator, discriminator = FlaxNet(nnx.Rngs(0), 4, 5), FlaxNet(nnx.Rngs(1), 5, 1)
        for_g = nnx.Optimizer(generator, optax.adam(1e-2, b1=0.5), wrt=nnx.Param)
        for_d = nnx.Optimizer(discriminator, optax.adam(2e-2, b1=0.9 if fault == "momentum" else 0.5), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            generator, discriminator = state["generator"], state["discriminator"]
            label = 0.9 if fault == "smoothed" else 1.0
            fake = generator(batch["z"])

            def d_loss_of(d: FlaxNet) -> jax.Array:
                real = jnp.mean(label * jax.nn.softplus(-d(batch["x"])))
                return real + jnp.mean(jax.nn.softplus(d(jax.lax.stop_gradient(fake))))

            def g_loss_of(g: FlaxNet, d: FlaxNet) -> jax.Array:
                logits = d(g(batch["z"]))
                return -jnp.mean(jax.nn.softplus(logits)) if fault == "minimax" else jnp.mean(jax.nn.softplus(-logits))

            def generator_update() -> jax.Array:
                loss, gradients = nnx.value_and_grad(g_loss_of)(generator, discriminator)
                state["generator_optimizer"].update(generator, gradients)
                return loss

            g_loss = generator_update() if fault == "generator first" else 0.0
            d_loss, gradients = nnx.value_and_grad(d_loss_of)(discriminator)
            state["discriminator_optimizer"].update(discriminator, gradients)
            if fault != "generator first":
                g_loss = generator_update()
            return state, {"loss": d_loss, "generator_loss": g_loss}

        models = {"generator": generator, "discriminator": discriminator}
        return {**models, "generator_optimizer": for_g, "discriminator_optimizer": for_d}, step

    return Pair(original, port, drawn(x=(5,), z=(4,)))


def penalty(fault: str = "") -> Pair:
    """A critic with a gradient penalty: a gradient of a gradient."""

    def original() -> Any:
        critic = TorchNet(5, 1)
        optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-2)

        def step(state: Any, batch: Any) -> Any:
            between = batch["mix"] * batch["x"] + (1 - batch["mix"]) * batch["fake"]
            between.requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            gap = ((slope.norm(dim=1) - 1) ** 2).mean()
            loss = critic(batch["fake"]).mean() - critic(batch["x"]).mean() + 10 * gap
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss, "penalty": gap}

        return {"critic": critic, "optimizer": optimizer}, step

    def port() -> Any:
        critic = FlaxNet(nnx.Rngs(0), 5, 1)
        tx = optax.rmsprop(1e-2, decay=0.99, eps=1e-8, eps_in_sqrt=fault == "eps inside the root")
        optimizer = nnx.Optimizer(critic, tx, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            def loss_of(critic: FlaxNet) -> Any:
                between = batch["mix"] * batch["x"] + (1 - batch["mix"]) * batch["fake"]
                slope = jax.grad(lambda x: jnp.sum(critic(x)))(between)
                if fault == "penalty detached":
                    slope = jax.lax.stop_gradient(slope)
                norm = jnp.sqrt(jnp.sum(slope**2, axis=1))
                gap = jnp.mean(jnp.maximum(norm - 1, 0) ** 2 if fault == "one-sided" else (norm - 1) ** 2)
                weight = 1.0 if fault == "weight" else 10.0
                return jnp.mean(critic(batch["fake"])) - jnp.mean(critic(batch["x"])) + weight * gap, gap

            (loss, gap), gradients = nnx.value_and_grad(loss_of, has_aux=True)(state["critic"])
            state["optimizer"].update(state["critic"], gradients)
            return state, {"loss": loss, "penalty": gap}

        return {"critic": critic, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), fake=(5,), mix=(1,)))


def actor_critic(fault: str = "") -> Pair:
    """Two critics with targets, and an actor that is updated every second step, as in TD3."""

    def original() -> Any:
        actor, first, second = TorchNet(5, 2), TorchNet(7, 1), TorchNet(7, 1)
        targets = [copy.deepcopy(model) for model in (actor, first, second)]
        for_q = torch.optim.Adam([*first.parameters(), *second.parameters()], 1e-2)
        for_actor = torch.optim.Adam(actor.parameters(), 1e-2)
        steps = [0]

        def step(state: Any, batch: Any) -> Any:
            with torch.no_grad():
                following = torch.cat([batch["next"], targets[0](batch["next"]).clamp(-1, 1)], dim=1)
                least = torch.min(targets[1](following), targets[2](following))
                wanted = batch["reward"] + 0.99 * least
            now = torch.cat([batch["x"], batch["action"]], dim=1)
            loss = functional.mse_loss(first(now), wanted) + functional.mse_loss(second(now), wanted)
            for_q.zero_grad()
            loss.backward()
            for_q.step()
            if steps[0] % 2 == 0:
                actor_loss = -first(torch.cat([batch["x"], actor(batch["x"])], dim=1)).mean()
                for_actor.zero_grad()
                actor_loss.backward()
                for_actor.step()
                for target, model in zip(targets, (actor, first, second), strict=True):
                    for old, new in zip(target.parameters(), model.parameters(), strict=True):
                        old.data.copy_(0.1 * new.data + 0.9 * old.data)
            steps[0] += 1
            return {"loss": loss}

        names = ("actor", "first", "second")
        state = {**dict(zip(names, (actor, first, second), strict=True)), "q_optimizer": for_q}
        targets_by_name = {f"target_{name}": target for name, target in zip(names, targets, strict=True)}
        return {**state, **targets_by_name, "actor_optimizer": for_actor}, step

    def port() -> Any:
        rngs = nnx.Rngs(0)
        models = {"actor": FlaxNet(rngs, 5, 2), "first": FlaxNet(rngs, 7, 1), "second": FlaxNet(rngs, 7, 1)}
        targets = {f"target_{name}": nnx.clone(model) for name, model in models.items()}
        critics = nnx.Dict(first=models["first"], second=models["second"])
        for_q = nnx.Optimizer(critics, optax.adam(1e-2), wrt=nnx.Param)
        for_actor = nnx.Optimizer(models["actor"], optax.adam(1e-2), wrt=nnx.Param)
        tau = 0.2 if fault == "tau" else 0.1

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            following = jnp.concatenate([batch["next"], jnp.clip(state["target_actor"](batch["next"]), -1, 1)], axis=1)
            both = state["target_first"](following), state["target_second"](following)
            least = jnp.maximum(*both) if fault == "maximum" else jnp.minimum(*both)
            wanted = jax.lax.stop_gradient(batch["reward"] + 0.99 * least)
            now = jnp.concatenate([batch["x"], batch["action"]], axis=1)
            critics = nnx.Dict(first=state["first"], second=state["second"])

            def loss_of(critics: Any) -> jax.Array:
                return jnp.mean((critics.first(now) - wanted) ** 2) + jnp.mean((critics.second(now) - wanted) ** 2)

            loss, gradients = nnx.value_and_grad(loss_of)(critics)
            state["q_optimizer"].update(critics, gradients)

            def actor_loss(actor: FlaxNet) -> jax.Array:
                return -jnp.mean(state["first"](jnp.concatenate([batch["x"], actor(batch["x"])], axis=1)))

            def train_actor(state: Any) -> None:
                state["actor_optimizer"].update(state["actor"], nnx.grad(actor_loss)(state["actor"]))
                for name in models:
                    if fault == "critics' targets left" and name != "actor":
                        continue
                    old, new = (nnx.state(state[key], nnx.Param) for key in (f"target_{name}", name))
                    nnx.update(state[f"target_{name}"], jax.tree.map(lambda a, b: (1 - tau) * a + tau * b, old, new))

            if fault == "actor every step":
                train_actor(state)
            else:
                nnx.cond(state["count"] % 2 == 0, train_actor, lambda state: None, state)
            return {**state, "count": state["count"] + 1}, {"loss": loss}

        optimizers = {"q_optimizer": for_q, "actor_optimizer": for_actor}
        return {**models, **targets, **optimizers, "count": jnp.zeros((), jnp.int32)}, step

    return Pair(original, port, drawn(x=(5,), next=(5,), action=(2,), reward=(1,)))


def wasserstein(fault: str = "") -> Pair:
    """A critic with clamped weights, updated three times before the generator; of real examples there are more."""

    def original() -> Any:
        generator, critic = TorchNet(4, 5), TorchNet(5, 1)
        for_g = torch.optim.RMSprop(generator.parameters(), 1e-3)
        for_c = torch.optim.RMSprop(critic.parameters(), 1e-3)

        def step(state: Any, batch: Any) -> Any:
            for turn in range(3):
                # The gradient of the critic's last bias is zero but for rounding, which its optimizer divides by its
                # size: 5 times 1/5 minus 6 times 1/6.
                fake = generator(batch["z"][:5, turn]).detach()
                loss = critic(fake).mean() - critic(batch["x"]).mean()
                for_c.zero_grad()
                loss.backward()
                for_c.step()
                with torch.no_grad():
                    for weight in critic.parameters():
                        weight.clamp_(-0.3, 0.3)
            generator_loss = -critic(generator(batch["z"][:, 0])).mean()
            for_g.zero_grad()
            generator_loss.backward()
            for_g.step()
            return {"loss": loss, "generator_loss": generator_loss}

        return {"generator": generator, "critic": critic, "for_g": for_g, "for_c": for_c}, step

    def port() -> Any:
        generator, critic = FlaxNet(nnx.Rngs(0), 4, 5), FlaxNet(nnx.Rngs(1), 5, 1)
        tx = optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False)
        for_g, for_c = (nnx.Optimizer(model, tx, wrt=nnx.Param) for model in (generator, critic))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            generator, critic = state["generator"], state["critic"]
            for turn in range(2 if fault == "a turn too few" else 3):
                fake = generator(batch["z"][:5, turn])
                loss, gradients = nnx.value_and_grad(lambda c, fake=fake: jnp.mean(c(fake)) - jnp.mean(c(batch["x"])))(
                    critic
                )
                state["for_c"].update(critic, gradients)
                if fault != "not clamped":
                    clamped = jax.tree.map(lambda weight: jnp.clip(weight, -0.3, 0.3), nnx.state(critic, nnx.Param))
                    nnx.update(critic, clamped)
            generator_loss, gradients = nnx.value_and_grad(lambda g: -jnp.mean(critic(g(batch["z"][:, 0]))))(generator)
            state["for_g"].update(generator, gradients)
            return state, {"loss": loss, "generator_loss": generator_loss}

        return {"generator": generator, "critic": critic, "for_g": for_g, "for_c": for_c}, step

    return Pair(original, port, drawn(size=6, x=(5,), z=(3, 4)))
