"""nanoGPT's training loop, `train.py`, against a port to nnx and optax: decay groups, warm-up, accumulation, clipping.

`git clone https://github.com/karpathy/nanoGPT`, then `python -m benchmarks.wild.nanogpt path/to/nanoGPT`. No line of
the model, of `configure_optimizers`, of `get_lr` or of the loop is changed. Sizes are small, `get_batch` gives the
micro-batches of the step, and `torch.compile` is off.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import compare
from benchmarks.wild.script import Script

SMALL: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 4,
    "gradient_accumulation_steps": 3,
    "warmup_iters": 2,
    "lr_decay_iters": 6,
    "learning_rate": 1e-2,
    "min_lr": 1e-3,
    "grad_clip": 0.5,
}
"""Settings that are others than the script's."""

TOKENS = 65


def original(root: Path) -> Any:
    """Make the torch side."""
    train, model = Script(root / "train.py"), Script(root / "model.py")
    made = [
        train.part("model_args = dict(", "if init_from"),
        train.part("gptconf = ", "elif init_from"),
        train.part("scaler = ", "# optimizer"),
        train.part("optimizer = ", "if init_from"),
    ]
    body = [
        train.part("# determine and set the learning rate", "# evaluate the loss"),
        train.part("for micro_step", "# timing and logging"),
        train.part("iter_num += 1", "local_iter_num"),
    ]

    def build() -> Any:
        names = train.definitions()  # the globals of its functions
        quiet = {"print": lambda *_: None}
        made_of = model.definitions()
        made_of |= quiet  # the globals of the model's functions
        names |= {name: value for name, value in made_of.items() if name not in names}
        exec(train.part("out_dir = ", "config_keys"), names)
        names |= {**SMALL, "device": "cpu", "device_type": "cpu", "dtype": "float32", "ddp": False, "iter_num": 0}
        names |= {"ctx": contextlib.nullcontext(), **quiet}
        exec(made[0], names)
        names["model_args"]["vocab_size"] = TOKENS
        for part in made[1:]:
            exec(part, names)

        def step(state: Any, batch: Any) -> Any:
            parts = list(zip(batch["x"], batch["y"], strict=True))
            rest = iter([*parts[1:], parts[-1]])  # the loop fetches one more, for the step after
            names["X"], names["Y"] = parts[0]
            names["get_batch"] = lambda _: next(rest)
            for part in body:
                exec(part, names)
            return {"loss": names["loss"]}

        return {"model": names["model"], "optimizer": names["optimizer"]}, step

    return build


class Attention(nnx.Module):
    """Causal attention of several heads."""

    def __init__(self, size: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.c_attn = nnx.Linear(size, 3 * size, use_bias=False, rngs=rngs)
        self.c_proj = nnx.Linear(size, size, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.split(self.c_attn(x), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        return self.c_proj(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))


class Block(nnx.Module):
    """Attention and two linear layers, each behind a norm."""

    def __init__(self, size: int, heads: int, rngs: nnx.Rngs) -> None:
        self.ln_1, self.ln_2 = (nnx.LayerNorm(size, epsilon=1e-5, use_bias=False, rngs=rngs) for _ in range(2))
        self.attn = Attention(size, heads, rngs)
        self.c_fc = nnx.Linear(size, 4 * size, use_bias=False, rngs=rngs)
        self.c_proj = nnx.Linear(4 * size, size, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(jax.nn.gelu(self.c_fc(self.ln_2(x)), approximate=False))


class GPT(nnx.Module):
    """The model, its head tied to the embedding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        size, heads = SMALL["n_embd"], SMALL["n_head"]
        self.wte = nnx.Embed(TOKENS, size, rngs=rngs)
        self.wpe = nnx.Embed(SMALL["block_size"], size, rngs=rngs)
        self.h = nnx.List([Block(size, heads, rngs) for _ in range(SMALL["n_layer"])])
        self.ln_f = nnx.LayerNorm(size, epsilon=1e-5, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


def rate(count: Any) -> Any:
    """Give what `get_lr` does."""
    warm, last = SMALL["warmup_iters"], SMALL["lr_decay_iters"]
    peak, least = SMALL["learning_rate"], SMALL["min_lr"]
    share = jnp.clip((count - warm) / (last - warm), 0, 1)
    decayed = least + 0.5 * (1 + jnp.cos(jnp.pi * share)) * (peak - least)
    return jnp.where(count < warm, peak * (count + 1) / (warm + 1), decayed)


def clipped(gradients: Any) -> Any:
    """Clip as torch does, with its 1e-6, which `optax.clip_by_global_norm` has not."""
    return optax.tree.scale(jnp.minimum(1.0, SMALL["grad_clip"] / (optax.tree.norm(gradients) + 1e-6)), gradients)


def port(clip: Any = clipped) -> Any:
    """Make the JAX side."""

    def build() -> Any:
        model = GPT(nnx.Rngs(0))
        tx = optax.adamw(
            rate, b2=0.95, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
        )
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(state: Any, batch: Any) -> Any:
            graph, params = nnx.split(state["model"])
            count = len(batch["x"])

            def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
                losses = optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y)
                return jnp.mean(losses) / count

            def body(total: Any, part: Any) -> Any:
                loss, gradients = jax.value_and_grad(loss_of)(params, *part)
                return jax.tree.map(jnp.add, total, gradients), loss

            start = jax.tree.map(jnp.zeros_like, params)
            total, losses = jax.lax.scan(body, start, (batch["x"], batch["y"]))
            state["optimizer"].update(state["model"], clip(total))
            return state, {"loss": losses[-1]}

        return {"model": model, "optimizer": optimizer}, step

    return build


def batches(count: int = 3) -> list[dict[str, Any]]:
    """Draw tokens, and those that follow them."""
    rng = np.random.default_rng(0)
    shape = (SMALL["gradient_accumulation_steps"], SMALL["batch_size"], SMALL["block_size"] + 1)
    drawn = [rng.integers(0, TOKENS, shape) for _ in range(count)]
    return [{"x": tokens[..., :-1], "y": tokens[..., 1:]} for tokens in drawn]


if __name__ == "__main__":
    ours = compare.TorchProgram(original(Path(sys.argv[1])))
    optaxs = optax.clip_by_global_norm(SMALL["grad_clip"])
    for name, clip in (
        ("nanogpt", clipped),
        ("optax's clipping", lambda tree: optaxs.update(tree, optax.EmptyState())[0]),
    ):
        report = compare.check(ours, compare.JaxProgram(port(clip)), batches(), steps=8, name=name)
        sys.stdout.write(f"{report}\n")
