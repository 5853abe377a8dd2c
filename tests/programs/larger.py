"""Steps of several parts: a GAN with batch norms, a language model's, and gradients of single examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional

from programs.common import FlaxNet, Pair, TorchNet, clip_as_torch, drawn


def dcgan(fault: str = "") -> Pair:
    """A GAN with batch norms in both models: the discriminator's statistics see the real and the generated batch."""

    def original() -> Any:
        generator, discriminator = TorchNet(4, 5, norm=True), TorchNet(5, 1, norm=True)
        for_g = torch.optim.Adam(generator.parameters(), 1e-2, betas=(0.5, 0.999))
        for_d = torch.optim.Adam(discriminator.parameters(), 1e-2, betas=(0.5, 0.999))

        def step(state: Any, batch: Any) -> Any:
            ones, zeros = torch.ones(len(batch["x"]), 1), torch.zeros(len(batch["x"]), 1)
            for_d.zero_grad()
            real = functional.binary_cross_entropy_with_logits(discriminator(batch["x"]), ones.to(batch["x"]))
            real.backward()
            fake = generator(batch["z"])
            made = functional.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros.to(batch["x"]))
            made.backward()
            for_d.step()
            for_g.zero_grad()
            fooled = functional.binary_cross_entropy_with_logits(discriminator(fake), ones.to(batch["x"]))
            fooled.backward()
            for_g.step()
            return {"loss": real + made, "generator_loss": fooled}

        models = {"generator": generator, "discriminator": discriminator}
        return {**models, "generator_optimizer": for_g, "discriminator_optimizer": for_d}, step

    def port() -> Any:
        generator, discriminator = FlaxNet(nnx.Rngs(0), 4, 5, norm=True), FlaxNet(nnx.Rngs(1), 5, 1, norm=True)
        if fault == "evaluation mode":
            generator.eval()
        for_g, for_d = (nnx.Optimizer(m, optax.adam(1e-2, b1=0.5), wrt=nnx.Param) for m in (generator, discriminator))

        def entropy(logits: jax.Array, label: float) -> jax.Array:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)))

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            generator, discriminator = state["generator"], state["discriminator"]

            def real_loss(d: FlaxNet) -> jax.Array:
                return entropy(d(batch["x"]), 1.0)

            def fake_loss(d: FlaxNet, fake: jax.Array) -> jax.Array:
                return entropy(d(fake), 0.0)

            def g_loss(g: FlaxNet, d: FlaxNet) -> jax.Array:
                return entropy(d(g(batch["z"])), 1.0)

            if fault == "second forward pass":
                generator(batch["z"])
            real, gradients = nnx.value_and_grad(real_loss)(discriminator)
            statistics = jax.tree.map(jnp.copy, nnx.state(generator, nnx.BatchStat))
            fake = generator(batch["z"])
            made, more = nnx.value_and_grad(fake_loss)(discriminator, fake)
            total = gradients if fault == "real alone" else jax.tree.map(jnp.add, gradients, more)
            state["discriminator_optimizer"].update(discriminator, total)
            # The generator runs a second time here, and torch's only once.
            nnx.update(generator, statistics)
            fooled, gradients = nnx.value_and_grad(g_loss)(generator, discriminator)
            if fault != "generator never updated":
                state["generator_optimizer"].update(generator, gradients)
            return state, {"loss": real + made, "generator_loss": fooled}

        models = {"generator": generator, "discriminator": discriminator}
        return {**models, "generator_optimizer": for_g, "discriminator_optimizer": for_d}, step

    return Pair(original, port, drawn(x=(5,), z=(4,)))


class Decoder(torch.nn.Module):
    """One block of attention over tokens, with its head tied to the embedding."""

    def __init__(self, tokens: int = 11, size: int = 8) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(tokens, size)
        self.norm = torch.nn.LayerNorm(size)
        self.qkv, self.proj = torch.nn.Linear(size, 3 * size), torch.nn.Linear(size, size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return functional.linear(x, self.embed.weight)


class FlaxDecoder(nnx.Module):
    """The same in Flax."""

    def __init__(self, rngs: nnx.Rngs, tokens: int = 11, size: int = 8) -> None:
        self.embed = nnx.Embed(tokens, size, rngs=rngs)
        self.norm = nnx.LayerNorm(size, epsilon=1e-5, rngs=rngs)
        self.qkv, self.proj = nnx.Linear(size, 3 * size, rngs=rngs), nnx.Linear(size, size, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        q, k, v = jnp.split(self.qkv(self.norm(x)), 3, axis=-1)
        weights = q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
        weights = jnp.where(jnp.tril(jnp.ones(weights.shape[-2:], bool)), weights, -jnp.inf)
        return self.embed.attend(x + self.proj(jax.nn.softmax(weights) @ v))


def decoder(fault: str = "") -> Pair:
    """A language model's step: decayed matrices, warm-up and cosine, accumulation and clipping."""
    peak, least, warm, last = 1e-2, 1e-3, 2, 5

    def original() -> Any:
        model = Decoder()
        groups = [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
        done = 0

        def rate(count: int) -> float:
            if count < warm:
                return peak * (count + 1) / (warm + 1)
            if count > last:
                return least
            return float(least + 0.5 * (1 + np.cos(np.pi * (count - warm) / (last - warm))) * (peak - least))

        def step(state: Any, batch: Any) -> Any:
            nonlocal done
            for group in optimizer.param_groups:
                group["lr"] = rate(done)
            total = torch.zeros(())
            for tokens in batch["tokens"]:
                logits = model(tokens[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / len(batch["tokens"])
                loss.backward()
                total = total + loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            return {"loss": total}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxDecoder(nnx.Rngs(0))
        floor = 0.0 if fault == "decays to zero" else least

        def rate(count: Any) -> Any:
            warmed = peak * (count + 1) / (warm + 1)
            share = jnp.minimum((count - warm) / (last - warm), 1.0)
            return jnp.where(count < warm, warmed, floor + 0.5 * (1 + jnp.cos(jnp.pi * share)) * (peak - floor))

        mask = None if fault == "decay for all" else lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
        b2 = 0.999 if fault == "second moment" else 0.95
        optimizer = nnx.Optimizer(model, optax.adamw(rate, b2=b2, weight_decay=0.1, mask=mask), wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])

            def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
                logits = nnx.merge(graph, params)(tokens[:, :-1])
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

            def body(total: Any, tokens: jax.Array) -> Any:
                loss, gradients = jax.value_and_grad(loss_of)(params, tokens)
                if fault == "each clipped":
                    gradients = clip_as_torch(gradients, 0.5)
                return jax.tree.map(jnp.add, total, gradients), loss

            total, losses = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), batch["tokens"])
            if fault != "summed":
                total = jax.tree.map(lambda leaf: leaf / len(batch["tokens"]), total)
            if fault == "optax's clipping":
                total, _ = optax.clip_by_global_norm(0.5).update(total, optax.EmptyState())
            elif fault not in ("each clipped", "no clipping"):
                total = clip_as_torch(total, 0.5)
            state["optimizer"].update(state["model"], total)
            return state, {"loss": jnp.mean(losses)}

        return {"model": model, "optimizer": optimizer}, step

    rng = np.random.default_rng(0)
    return Pair(original, port, [{"tokens": rng.integers(0, 11, (3, 4, 7))} for _ in range(3)])


def single_examples(fault: str = "") -> Pair:
    """Gradients of single examples, each clipped: a loop of `torch.autograd.grad`, and `jax.vmap` under remat."""

    def original() -> Any:
        model = TorchNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(state: Any, batch: Any) -> Any:
            parameters, losses = list(model.parameters()), []
            total = [torch.zeros_like(parameter) for parameter in parameters]
            for x, y in zip(batch["x"], batch["y"], strict=True):
                loss = functional.mse_loss(model(x), y)
                own = torch.autograd.grad(loss, parameters)
                norm = torch.stack([(each**2).sum() for each in own]).sum().sqrt()
                for kept, each in zip(total, own, strict=True):
                    kept += each * torch.clamp(0.5 / norm, max=1.0)
                losses.append(loss.detach())
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter.grad = gradient / len(batch["x"])
            optimizer.step()
            return {"loss": torch.stack(losses).mean()}

        return {"model": model, "optimizer": optimizer}, step

    def port() -> Any:
        model = FlaxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

        def clipped(gradients: Any) -> Any:
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
            return jax.tree.map(lambda leaf: leaf * jnp.minimum(0.5 / norm, 1.0), gradients)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])

            @jax.checkpoint
            def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
                return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

            def own(x: jax.Array, y: jax.Array) -> Any:
                loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
                return loss, gradients if fault == "mean clipped" else clipped(gradients)

            losses, gradients = jax.vmap(own)(batch["x"], batch["y"])
            reduce = jnp.sum if fault == "summed" else jnp.mean
            total = jax.tree.map(lambda leaf: reduce(leaf, axis=0), gradients)
            state["optimizer"].update(state["model"], clipped(total) if fault == "mean clipped" else total)
            return state, {"loss": jnp.mean(losses)}

        return {"model": model, "optimizer": optimizer}, step

    return Pair(original, port, drawn(x=(5,), y=(3,), size=5))
