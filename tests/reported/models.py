"""Reports about layers, tables, masks, losses, initial values and precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import compare
from reported.common import FlaxMLP, Report, TorchMLP, mse, normal


class TorchTime(torch.nn.Module):
    """The embedding of a diffusion model's time step."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.size = size
        self.linear_1, self.linear_2 = torch.nn.Linear(size, 7), torch.nn.Linear(7, 3)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = self.size // 2
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(half) / half)
        angles = t[:, None] * frequencies[None]
        embedded = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self.linear_2(torch.nn.functional.silu(self.linear_1(embedded)))


class FlaxTime(nnx.Module):
    def __init__(self, *, wrong: bool, size: int = 12) -> None:
        self.size, self.wrong = size, wrong
        self.linear_1, self.linear_2 = nnx.Linear(size, 7, rngs=nnx.Rngs(0)), nnx.Linear(7, 3, rngs=nnx.Rngs(1))

    def __call__(self, t: jax.Array) -> jax.Array:
        half = self.size // 2
        frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(half) / half)
        angles = t[:, None] * frequencies[None]
        parts = [jnp.sin(angles), jnp.cos(angles)]
        embedded = jnp.concatenate(parts if self.wrong else parts[::-1], axis=-1)
        return self.linear_2(nnx.silu(self.linear_1(embedded)))


def flipped(*, wrong: bool) -> Any:
    """Sines and cosines of the time embedding change places."""
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 1000, 5).astype(np.float32), rng.normal(size=(5, 3))) for _ in range(2)]
    original = compare.Torch(TorchTime(), mse, lambda params: torch.optim.SGD(params, 0.1))
    return original, compare.Flax(FlaxTime(wrong=wrong), mse, optax.sgd(0.1)), batches


class TorchLogits(torch.nn.Module):
    """A language model's head, whose bias is a buffer."""

    final_logits_bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 6)
        self.register_buffer("final_logits_bias", torch.zeros(1, 11))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.body(self.embed(tokens)))
        return h @ self.embed.weight.T + self.final_logits_bias


class FlaxLogits(nnx.Module):
    def __init__(self, *, wrong: bool) -> None:
        self.embed, self.body = nnx.Embed(11, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 6, rngs=nnx.Rngs(1))
        self.final_logits_bias = nnx.Param(jnp.zeros((1, 11)))
        self.wrong = wrong

    def __call__(self, tokens: jax.Array) -> jax.Array:
        h = jnp.tanh(self.body(self.embed(tokens)))
        bias = self.final_logits_bias[...]
        return h @ self.embed.embedding[...].T + (bias if self.wrong else jax.lax.stop_gradient(bias))


def trained_buffer(*, wrong: bool) -> Any:
    """What is a buffer in torch is a parameter of the port, and is trained."""
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 11, (3, 4)), rng.integers(0, 11, (3, 4))) for _ in range(2)]

    def torch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    original = compare.Torch(TorchLogits(), torch_loss, lambda params: torch.optim.Adam(params, 1e-2))
    return original, compare.Flax(FlaxLogits(wrong=wrong), loss, optax.adam(1e-2)), batches


class TorchSpeech(torch.nn.Module):
    """Features by a convolution, an attention over them that leaves out padding, and an adapter that halves them."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.features = torch.nn.Conv1d(3, size, 3, stride=2)
        self.attention = torch.nn.MultiheadAttention(size, 2, batch_first=True)
        self.adapter = torch.nn.Conv1d(size, size, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.gelu(self.features(x.transpose(1, 2))).transpose(1, 2)
        lengths = (lengths - 3) // 2 + 1
        padding = torch.arange(h.shape[1])[None] >= lengths[:, None]
        h = h + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        return self.adapter(h.transpose(1, 2)).transpose(1, 2)


class FlaxSpeech(nnx.Module):
    def __init__(self, *, wrong: bool, size: int = 8) -> None:
        rngs = nnx.Rngs(0)
        self.features = nnx.Conv(3, size, (3,), strides=2, padding="VALID", rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, size, decode=False, rngs=rngs)
        self.adapter = nnx.Conv(size, size, (3,), strides=2, padding=1, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        h = nnx.gelu(self.features(x), approximate=False)
        lengths = (lengths - 3) // 2 + 1
        if self.wrong:
            lengths = (lengths - 1) // 2 + 1
        mask = jnp.arange(h.shape[1])[None] < lengths[:, None]
        h = h + self.attention(h, mask=mask[:, None, None, :])
        return self.adapter(h)


def adapter_mask(*, wrong: bool) -> Any:
    """The lengths of the attention's mask are those behind a layer that comes after the attention."""
    rng = np.random.default_rng(0)
    batches = [
        ((rng.normal(size=(3, 17, 3)), np.array(n)), rng.normal(size=(3, 4, 8))) for n in ([17, 11, 7], [9, 17, 13])
    ]
    original = compare.Torch(TorchSpeech(), mse, lambda params: torch.optim.SGD(params, 0.1))
    return original, compare.Flax(FlaxSpeech(wrong=wrong), mse, optax.sgd(0.1)), batches


class TorchTagger(torch.nn.Module):
    """A bidirectional LSTM over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(10, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = torch.nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        inside = (torch.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return torch.where(inside, self.head(h), 0.0)


class FlaxTagger(nnx.Module):
    def __init__(self, *, wrong: bool) -> None:
        rngs = nnx.Rngs(0)

        def rnn(*, reverse: bool) -> nnx.RNN:
            cell = nnx.OptimizedLSTMCell(4, 5, rngs=rngs)
            return nnx.RNN(cell, reverse=reverse, keep_order=reverse)

        self.rnn = nnx.Bidirectional(rnn(reverse=False), rnn(reverse=True), rngs=rngs)
        self.head = nnx.Linear(10, 2, rngs=rngs)
        self.wrong = wrong

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        h: Any = self.rnn(x) if self.wrong else self.rnn(x, seq_lengths=lengths)
        inside = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return jnp.where(inside, self.head(h), 0.0)


def padded_backwards(*, wrong: bool) -> Any:
    """The backward direction starts in the padding."""
    rng = np.random.default_rng(0)
    batches = [((rng.normal(size=(3, 6, 4)), np.array(n)), rng.normal(size=(3, 6, 2))) for n in ([6, 4, 2], [3, 6, 5])]
    return compare.Torch(TorchTagger(), mse), compare.Flax(FlaxTagger(wrong=wrong), mse), batches


class TorchScale(torch.nn.Module):
    """A norm whose scale is kept as its distance from 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(0.1 * torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + self.scale)


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = torch.nn.Linear(5, 8), TorchScale(8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.norm(self.up(x))))


class FlaxScale(nnx.Module):
    def __init__(self, size: int, *, wrong: bool) -> None:
        self.scale = nnx.Param(jnp.zeros(size))
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return h * (self.scale[...] if self.wrong else 1 + self.scale[...])


class FlaxBlock(nnx.Module):
    def __init__(self, *, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm = FlaxScale(8, wrong=wrong)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.norm(self.up(x))))


def offset_scale(*, wrong: bool) -> Any:
    """A norm's scale is kept as its distance from 1 on one side."""
    original = compare.Torch(TorchBlock(), mse, lambda params: torch.optim.SGD(params, 0.1))
    return original, compare.Flax(FlaxBlock(wrong=wrong), mse, optax.sgd(0.1)), normal((7, 5), (7, 3))


def bootstrap(*, wrong: bool) -> Any:
    """The value behind the last step of a rollout is left out of the advantages."""

    def torch_loss(values: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        known, running = values.detach()[..., 0], torch.zeros(values.shape[1])
        advantages: list[torch.Tensor] = []
        for t in reversed(range(rewards.shape[0])):
            delta = rewards[t] + 0.99 * known[t + 1] - known[t]
            running = delta + 0.99 * 0.95 * running
            advantages.insert(0, running)
        returns = torch.stack(advantages) + known[:-1]
        return ((values[:-1, :, 0] - returns) ** 2).mean()

    def loss(values: jax.Array, rewards: jax.Array) -> jax.Array:
        known = jax.lax.stop_gradient(values)[..., 0]
        if wrong:
            known = known.at[-1].set(0.0)

        def body(running: jax.Array, item: Any) -> Any:
            reward, value, following = item
            running = reward + 0.99 * following - value + 0.99 * 0.95 * running
            return running, running

        start = jnp.zeros(values.shape[1])
        _, advantages = jax.lax.scan(body, start, (rewards, known[:-1], known[1:]), reverse=True)
        return jnp.mean((values[:-1, :, 0] - advantages - known[:-1]) ** 2)

    original = compare.Torch(TorchMLP(6, 10, 1), torch_loss, lambda params: torch.optim.Adam(params, 1e-3))
    return original, compare.Flax(FlaxMLP(6, 10, 1), loss, optax.adam(1e-3)), normal((5, 4, 6), (4, 4))


def half_weights(*, wrong: bool) -> Any:
    """The weights are kept in half precision: the same program, which rounds more."""
    original = compare.Torch(TorchMLP(), mse, lambda params: torch.optim.SGD(params, 0.05))
    port = FlaxMLP(dtype=jnp.bfloat16 if wrong else jnp.float32)
    return original, compare.Flax(port, mse, optax.sgd(0.05)), normal((9, 6), (9, 2))


class TorchResidual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False), torch.nn.GroupNorm(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class FlaxResidual(nnx.Module):
    def __init__(self, *, wrong: bool) -> None:
        rngs, zeros = nnx.Rngs(0), nnx.initializers.zeros
        self.conv = nnx.Conv(3, 3, (3, 3), padding=0 if wrong else 1, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(3, 1, epsilon=1e-5, use_fast_variance=False, scale_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv(x)
        margin = (x.shape[1] - h.shape[1]) // 2
        x = x[:, margin : x.shape[1] - margin, margin : x.shape[2] - margin]
        return nnx.relu(x + self.norm(h))


def zero_scale(*, wrong: bool) -> Any:
    """The last norm of a block starts at zero on one side, which no check of the program may mind; padding it must."""

    def nhwc(x: Any, y: Any) -> Any:
        return np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)

    def pooled(output: Any, target: Any) -> Any:
        return output.mean() * target.mean()

    original = compare.Torch(TorchResidual(), pooled, lambda params: torch.optim.SGD(params, 0.1))
    port = compare.Flax(FlaxResidual(wrong=wrong), pooled, optax.sgd(0.1), batch=nhwc)
    return original, port, normal((2, 3, 6, 6), (2, 3, 6, 6))


MODELS = (
    Report(
        "flipped", "huggingface/diffusers#1149", flipped, "forward", words="order|parts", right=("match", "precision")
    ),
    Report(
        "trained buffer",
        "huggingface/transformers#16345",
        trained_buffer,
        "parameters",
        "final_logits_bias",
        "trained on the JAX side alone",
    ),
    Report("adapter mask", "huggingface/transformers#16725", adapter_mask, "forward", "attention", "other numbers"),
    Report("padded backwards", "google/flax#2170", padded_backwards, "forward"),
    Report(
        "offset scale", "mlcommons/algorithmic-efficiency#135", offset_scale, "forward", "norm", "norm.scale|constant 1"
    ),
    Report("bootstrap", "bmazoure/ppo_jax#2", bootstrap, "loss", words="leaves out"),
    Report("half weights", "huggingface/transformers#16762", half_weights, "", "", "bfloat16", wrong="precision"),
    Report("zero scale", "mlcommons/algorithmic-efficiency#231", zero_scale, "forward", "conv", "padding"),
)
