"""Right ports with what is benign in them, drawn at random, and the same ports with one fault.

Each is a small language or diffusion model: a table of one of several kinds, which torch holds in float32 and the port
computes, or the other way about; layers that are frozen; dropout of rate 0 that draws; a mask of a large number.
`python -m benchmarks.right_ports` draws many.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen

import compare

LENGTH, WIDTH = 6, 8
HALF = WIDTH // 2
FAULT = 1e-4


class Drawn(NamedTuple):
    """One right port."""

    table: str
    """A key of `TABLES`."""
    ours: str
    """How torch has it: "buffer", "attribute" or "step"."""
    theirs: str
    """How the port has it: "float64", "float32" or "step"."""
    frozen: bool
    idle_draw: bool
    masked: bool
    seed: int


def sinusoids(xp: Any, dtype: Any) -> Any:
    angles = xp.arange(LENGTH, dtype=dtype)[:, None] * frequencies(xp, dtype)
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], 1)


def frequencies(xp: Any, dtype: Any) -> Any:
    return xp.exp(-math.log(10000.0) * xp.arange(HALF, dtype=dtype) / HALF)


def rotary(xp: Any, dtype: Any) -> Any:
    """Angles by a power, in halves, as Llama's."""
    angles = xp.arange(LENGTH, dtype=dtype)[:, None] * (1.0 / 500.0 ** (xp.arange(HALF, dtype=dtype) / HALF))
    return xp.concatenate([xp.cos(angles), xp.sin(angles)], 1)


def interleaved(xp: Any, dtype: Any) -> Any:
    """The same, one after another, as GPT-NeoX's first ones."""
    angles = xp.arange(LENGTH, dtype=dtype)[:, None] * (1.0 / 10000.0 ** (xp.arange(HALF, dtype=dtype) / HALF))
    return xp.stack([xp.cos(angles), xp.sin(angles)], -1).reshape(LENGTH, WIDTH)


def slopes(xp: Any, dtype: Any) -> Any:
    """ALiBi's, for as many heads as there are features."""
    return -(2.0 ** (-8.0 / 5 * xp.arange(1, WIDTH + 1, dtype=dtype))) * xp.arange(LENGTH, dtype=dtype)[:, None]


def noise_levels(xp: Any, dtype: Any) -> Any:
    """DDPM's, of as many steps as the table has numbers."""
    betas = xp.linspace(1e-4**0.5, 0.02**0.5, LENGTH * WIDTH, dtype=dtype) ** 2
    return (xp.cumprod(1 - betas, 0) ** 0.5).reshape(LENGTH, WIDTH)


def buckets(xp: Any, dtype: Any) -> Any:
    """Weights by the logarithm of a distance, as T5's buckets are."""
    distance = xp.arange(1, LENGTH + 1, dtype=dtype)[:, None] * xp.arange(1, WIDTH + 1, dtype=dtype)
    return xp.log(distance / 8) / math.log(128 / 8)


TABLES = {each.__name__: each for each in (sinusoids, rotary, interleaved, slopes, noise_levels, buckets)}


class Original(torch.nn.Module):
    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        torch.manual_seed(drawn.seed)
        self.drawn = drawn
        self.first, self.norm = torch.nn.Linear(WIDTH, WIDTH), torch.nn.LayerNorm(WIDTH)
        self.query, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3)
        table = TABLES[drawn.table](torch, torch.float32)
        if drawn.ours == "buffer":
            self.register_buffer("table", table, persistent=bool(drawn.seed % 2))
        elif drawn.ours == "attribute":
            self.table = table
        if drawn.frozen:
            self.first.requires_grad_(False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        drawn = self.drawn
        table = TABLES[drawn.table](torch, torch.float32) if drawn.ours == "step" else self.table
        x = self.norm(torch.nn.functional.silu(self.first(x)) + table)
        x = torch.nn.functional.dropout(x, 0.0, self.training)
        scores = self.query(x) @ (x * table).transpose(1, 2)
        if drawn.masked:
            scores = scores + (1 - mask)[:, None] * -1e9
        return self.out(torch.softmax(scores, -1) @ x)


class Port(linen.Module):
    drawn: Drawn
    in_table: float = 0.0
    elsewhere: float = 0.0

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
        drawn, make = self.drawn, TABLES[self.drawn.table]
        if drawn.theirs == "step":
            table = make(jnp, jnp.float32)
        else:
            exact = make(np, np.float64)
            table = jnp.asarray(exact if drawn.theirs == "float64" else exact.astype(np.float32))
        table = table * (1 + self.in_table)
        x = linen.silu(linen.Dense(WIDTH, name="first")(x)) + table
        x = linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        if drawn.idle_draw and train:
            x = jnp.where(jax.random.bernoulli(self.make_rng("dropout"), 1.0, x.shape), x, 0.0)
        scores = linen.Dense(WIDTH, name="query")(x) @ (x * table).swapaxes(1, 2) * (1 + self.elsewhere)
        if drawn.masked:
            scores = jnp.where(mask[:, None] > 0, scores, -1e9)
        return linen.Dense(3, name="out")(jax.nn.softmax(scores, -1) @ x)


def draw(seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    table, ours = rng.choice(list(TABLES)), rng.choice(["buffer", "attribute", "step"])
    theirs = rng.choice(["float64", "float32", "step"])
    frozen, idle, masked = (bool(each) for each in rng.integers(0, 2, 3))
    return Drawn(str(table), str(ours), str(theirs), frozen, idle, masked, seed)


def check(drawn: Drawn, in_table: float = 0.0, elsewhere: float = 0.0) -> compare.Report:
    """Compare a right port, or one whose table or scores are off by a share."""
    rng = np.random.default_rng(drawn.seed)
    batches = []
    for _ in range(2):
        mask = (rng.random((3, LENGTH)) > 0.3).astype(np.float32)
        mask[:, 0] = 1  # no row is hidden altogether: its gradient would differ
        batches.append(((rng.normal(size=(3, LENGTH, WIDTH)), mask), rng.normal(size=(3, LENGTH, 3))))
    port = Port(drawn, in_table, elsewhere)
    variables = port.init(jax.random.key(0), *(jnp.asarray(each, jnp.float32) for each in batches[0][0]))
    labels = {name: "frozen" if drawn.frozen and name == "first" else "trained" for name in variables["params"]}
    optimizer = optax.multi_transform(
        {"trained": optax.adamw(1e-3, weight_decay=0.01), "frozen": optax.set_to_zero()}, labels
    )
    return compare.check(
        compare.Torch(
            Original(drawn),
            torch.nn.MSELoss(),
            lambda params: torch.optim.AdamW([each for each in params if each.requires_grad], 1e-3, weight_decay=0.01),
        ),
        compare.Flax((port, variables), lambda output, target: jnp.mean((output - target) ** 2), optimizer),
        batches,
        device="cpu",
        name=str(drawn),
    )
