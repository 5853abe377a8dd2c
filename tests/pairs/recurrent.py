"""Language models over characters: an LSTM and a GRU.

PyTorch's cells have two biases for each gate, whose sum is what counts; most others have one. Each of the two gets the
same gradient and makes the same step, so their sum moves twice as fast as one bias would. A right port either has both
biases, or takes twice the step for the one (`twice_the_step`), which is the same for every optimizer without weight
decay whose step for a number depends on that number's gradients alone.

Where a gate's biases are not added to one another there are two on either side: a GRU's new state is
`tanh(W x + b + r * (U h + c))`. `nnx.GRUCell` leaves `c` out, so `GRUCell` here puts it in.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import torch
from flax import linen, nnx
from torch.nn import functional

import compare

from .data import Pair, text

EMBEDDING, HIDDEN = 8, 16


class TorchLanguageModel(torch.nn.Module):
    def __init__(self, characters: int, cell: type[torch.nn.LSTM | torch.nn.GRU]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(characters, EMBEDDING)
        self.recurrent = cell(EMBEDDING, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, characters)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embed(characters))[0])


class GRUCell(nnx.GRUCell):
    """With both biases of each gate, as torch's."""

    def __init__(self, inputs: int, hidden: int, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, hidden, rngs=rngs)
        self.dense_h = nnx.Linear(hidden, 3 * hidden, rngs=rngs)


class LanguageModel(nnx.Module):
    def __init__(self, characters: int, cell: Any, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(characters, EMBEDDING, rngs=rngs)
        self.recurrent = nnx.RNN(cell(EMBEDDING, HIDDEN, rngs=rngs))
        self.head = nnx.Linear(HIDDEN, characters, rngs=rngs)

    def __call__(self, characters: jax.Array) -> jax.Array:
        return self.head(self.recurrent(self.embed(characters)))


class LinenLanguageModel(linen.Module):
    characters: int
    cell: Any

    @linen.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        x = linen.Embed(self.characters, EMBEDDING, name="embed")(characters)
        x = linen.RNN(self.cell(HIDDEN, name="cell"), name="recurrent")(x)
        return linen.Dense(self.characters, name="head")(x)


class EquinoxLanguageModel(eqx.Module):
    embed: eqx.nn.Embedding
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, characters: int, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(characters, EMBEDDING, key=keys[0])
        self.cell = eqx.nn.LSTMCell(EMBEDDING, HIDDEN, key=keys[1])
        self.head = eqx.nn.Linear(HIDDEN, characters, key=keys[2])

    def __call__(self, characters: jax.Array) -> jax.Array:
        def one(sentence: jax.Array) -> jax.Array:
            x = jax.vmap(self.embed)(sentence)

            def step(carry: tuple[jax.Array, jax.Array], x: jax.Array) -> Any:
                carry = self.cell(x, carry)
                return carry, carry[0]

            start = jnp.zeros(HIDDEN, x.dtype)
            return jax.vmap(self.head)(jax.lax.scan(step, (start, start), x)[1])

        return jax.vmap(one)(characters)


def twice_the_step(optimizer: optax.GradientTransformation, *names: str) -> optax.GradientTransformation:
    """Double the steps of those parameters whose path ends in one of `names`."""

    def doubled(params: Any) -> Any:
        def name(path: Any) -> str:
            return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")

        return jax.tree_util.tree_map_with_path(lambda path, _: name(path).endswith(names), params)

    return optax.chain(optimizer, optax.masked(optax.scale(2.0), doubled))


def _torch_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def _loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def _pair(
    cell: type[torch.nn.LSTM | torch.nn.GRU],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    jax_side: Callable[[int], compare.Flax | compare.Jax],
) -> Pair:
    batches, characters = text()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TorchLanguageModel(characters, cell)
    return compare.Torch(model, loss=_torch_loss, optimizer=optimizer), jax_side(characters), batches


def _linen(characters: int, cell: Any) -> tuple[linen.Module, Any]:
    model = LinenLanguageModel(characters, cell)
    return model, model.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))


def lstm_in_nnx() -> Pair:
    """Build the pair with Adam, and one bias that takes twice the step."""
    return _pair(
        torch.nn.LSTM,
        lambda params: torch.optim.Adam(params, 1e-2),
        lambda characters: compare.Flax(
            LanguageModel(characters, nnx.OptimizedLSTMCell, nnx.Rngs(1)),
            loss=_loss,
            optimizer=twice_the_step(optax.adam(1e-2), "dense_h/bias"),
        ),
    )


def lstm_in_nnx_with_one_step() -> Pair:
    """Build the pair with Adam, and one bias that takes the usual step: after one update, another model."""
    return _pair(
        torch.nn.LSTM,
        lambda params: torch.optim.Adam(params, 1e-2),
        lambda characters: compare.Flax(
            LanguageModel(characters, nnx.OptimizedLSTMCell, nnx.Rngs(1)), loss=_loss, optimizer=optax.adam(1e-2)
        ),
    )


def lstm_in_linen() -> Pair:
    """Build the pair with momentum."""
    return _pair(
        torch.nn.LSTM,
        lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
        lambda characters: compare.Flax(
            _linen(characters, linen.OptimizedLSTMCell),
            loss=_loss,
            optimizer=twice_the_step(optax.sgd(0.1, momentum=0.9), "hi/bias", "hf/bias", "hg/bias", "ho/bias"),
        ),
    )


def lstm_in_equinox() -> Pair:
    """Build the pair with RMSprop."""

    def jax_side(characters: int) -> compare.Jax:
        params, rest = eqx.partition(EquinoxLanguageModel(characters, jax.random.key(1)), eqx.is_array)
        return compare.Jax(
            lambda params, characters: eqx.combine(params, rest)(characters),
            params,
            loss=_loss,
            optimizer=twice_the_step(optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False), "cell/bias"),
        )

    return _pair(torch.nn.LSTM, lambda params: torch.optim.RMSprop(params, 1e-3), jax_side)


def gru_in_nnx() -> Pair:
    """Build the pair with AdamW, and both biases: weight decay allows no doubled step."""
    return _pair(
        torch.nn.GRU,
        lambda params: torch.optim.AdamW(params, 1e-2, weight_decay=0.1),
        lambda characters: compare.Flax(
            LanguageModel(characters, GRUCell, nnx.Rngs(1)),
            loss=_loss,
            optimizer=optax.adamw(1e-2, weight_decay=0.1),
        ),
    )


def gru_in_linen() -> Pair:
    """Build the pair with Adam, and one bias for two gates, which takes twice the step."""
    return _pair(
        torch.nn.GRU,
        lambda params: torch.optim.Adam(params, 1e-2),
        lambda characters: compare.Flax(
            _linen(characters, linen.GRUCell),
            loss=_loss,
            optimizer=twice_the_step(optax.adam(1e-2), "ir/bias", "iz/bias"),
        ),
    )
