"""Traps in weights, buffers, data, precision and randomness."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn, optim
from torch.nn import functional

import compare

from .trap import WIDTH, Net, Pair, Port, Trap, built, images, on_images, on_optimizer, on_vectors, sgd, square, vectors

FLAX = "https://flax.readthedocs.io/en/latest/guides/converting_and_upgrading/convert_pytorch_to_flax.html"
DOCS = "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/"
Change = Any


def converted(change: Change) -> Pair:
    """A port that comes with torch's weights, converted by hand, one of them in some way of its own."""
    pair = on_optimizer(lambda p: optim.SGD(p, 0.1), optax.sgd(0.1))
    model: Any = pair.torch.model
    port = pair.jax.model
    for ours, theirs in ((model.front, port.front), (model.after, port.after)):
        theirs.kernel[...] = ours.weight.detach().numpy().T.copy()
        theirs.bias[...] = ours.bias.detach().numpy().copy()
    port.after.kernel[...] = change(np.array(port.after.kernel[...]))
    return pair


def converted_conv(change: Change) -> Pair:
    torch.manual_seed(0)
    model: Any = Net(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    rngs = nnx.Rngs(0)
    port: Any = Port(nnx.Conv(3, 4, (3, 3), rngs=rngs), jax.nn.relu, nnx.Conv(4, 4, (3, 3), rngs=rngs))
    for ours, theirs in ((model.front, port.front), (model.after, port.after)):
        theirs.kernel[...] = ours.weight.detach().numpy().transpose(2, 3, 1, 0).copy()
        theirs.bias[...] = ours.bias.detach().numpy().copy()
    port.after.kernel[...] = change(np.array(port.after.kernel[...]))
    return Pair(
        compare.Torch(model, square, sgd),
        compare.Flax(port, square, optax.sgd(0.1), batch=lambda x, t: (np.moveaxis(x, 1, -1), t)),
        images(),
    )


def weight(name: str, build: Any, change: Any, says: tuple[str, str], cause: str = "converted") -> Trap:
    return Trap(
        name=name,
        stage="weights",
        torch=says[0],
        jax=says[1],
        source=FLAX,
        build=build,
        wrong={"change": change},
        right={"change": lambda kernel: kernel},
        place=("parameters", "after.weight"),
        cause=cause,
        fix="copy_weights",
    )


def gates(order: tuple[int, ...]) -> Pair:
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front, self.lstm = nn.Linear(WIDTH, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(self.front(x).reshape(2, 3, WIDTH))[0].reshape(6, WIDTH)

    class Cell(nnx.Module):
        def __init__(self) -> None:
            self.front = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.weight_ih_l0 = nnx.Param(jnp.zeros((4 * WIDTH, WIDTH)))
            self.weight_hh_l0 = nnx.Param(jnp.zeros((4 * WIDTH, WIDTH)))
            self.bias_ih_l0, self.bias_hh_l0 = (nnx.Param(jnp.zeros(4 * WIDTH)) for _ in range(2))

        def __call__(self, x: Any) -> Any:
            xs = jnp.swapaxes(self.front(x).reshape(2, 3, WIDTH), 0, 1)

            def step(carry: Any, x: Any) -> Any:
                h, c = carry
                z = (
                    x @ self.weight_ih_l0[...].T
                    + self.bias_ih_l0[...]
                    + h @ self.weight_hh_l0[...].T
                    + self.bias_hh_l0[...]
                )
                parts = jnp.split(z, 4, -1)
                i, f, g, o = (parts[k] for k in order)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            zero = jnp.zeros((2, WIDTH), x.dtype)
            return jnp.swapaxes(jax.lax.scan(step, (zero, zero), xs)[1], 0, 1).reshape(6, WIDTH)

    return Pair(compare.Torch(Recurrent(), square, sgd), compare.Flax(Cell(), square, optax.sgd(0.1)), vectors())


WEIGHTS = [
    weight(
        "linear weight not transposed",
        converted,
        lambda k: k.T.copy(),
        ("weight is (out, in).", "kernel is (in, out)."),
    ),
    weight(
        "linear weight flipped",
        converted,
        lambda k: k[:, ::-1].copy(),
        ("The weight as stored.", "Reversed by a wrong stride."),
    ),
    weight(
        "blocks of a fused projection",
        converted,
        lambda k: np.concatenate([k[:, 4:], k[:, :4]], 1),
        ("Query, key and value stacked.", "In another order."),
    ),
    weight(
        "weight scaled",
        converted,
        lambda k: k / np.sqrt(np.float32(WIDTH)),
        ("The weight as stored.", "1/sqrt(d) folded in twice."),
    ),
    weight("sign of a weight", converted, lambda k: -k, ("The weight as stored.", "Negated.")),
    weight(
        "columns in another order",
        converted,
        lambda k: k[:, [1, 0, 2, 3, 4, 5, 7, 6]],
        ("(heads, head_dim).", "Merged in another order."),
    ),
    weight(
        "rotary weights permuted",
        converted,
        lambda k: k.reshape(WIDTH, 2, 4).swapaxes(1, 2).reshape(WIDTH, WIDTH),
        ("Halves.", "Interleaved."),
    ),
    weight(
        "convolution's axes",
        converted_conv,
        lambda k: k.swapaxes(2, 3).copy(),
        ("OIHW.", "HWIO, with in and out exchanged."),
    ),
    weight(
        "kernel transposed in space", converted_conv, lambda k: k.swapaxes(0, 1).copy(), ("H before W.", "W before H.")
    ),
    weight(
        "kernel flipped in space",
        converted_conv,
        lambda k: k[::-1, ::-1].copy(),
        ("A cross-correlation.", "A convolution."),
    ),
    weight(
        "weight shifted by one",
        converted,
        lambda k: np.roll(k, 1, 0),
        ("The weight as stored.", "Shifted by one row, as by a padding token."),
    ),
    weight("weight left as initialized", converted, lambda k: np.zeros_like(k), ("Trained.", "Zeros: not copied.")),
    Trap(
        name="LSTM gates in another order",
        stage="weights",
        torch="i, f, g, o.",
        jax="i, g, f, o, as in another framework.",
        source="https://github.com/google/flax/issues/3746",
        build=gates,
        wrong={"order": (0, 2, 1, 3)},
        right={"order": (0, 1, 2, 3)},
        place=("forward", "*"),
        cause="gate order",
        fix="i, f, g, o",
        more={
            "weights": {f"lstm.{name}": name for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")}
        },
    ),
    Trap(
        name="BatchNorm statistics forgotten",
        stage="weights",
        torch="running_mean and running_var are buffers.",
        jax="Left at 0 and 1.",
        source=FLAX,
        build=lambda kept: _statistics(kept),
        wrong={"kept": False},
        right={"kept": True},
        place=("parameters", "layer.running_*"),
        cause="converted",
        fix="copy_weights",
    ),
]


def _statistics(kept: bool) -> Pair:
    norm: Any = nn.BatchNorm1d(WIDTH)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    pair = on_vectors(norm, built(lambda rngs: nnx.BatchNorm(WIDTH, use_running_average=True, rngs=rngs)), train=False)
    model: Any = pair.torch.model
    port = pair.jax.model
    port.front.kernel[...] = model.front.weight.detach().numpy().T.copy()
    port.front.bias[...] = model.front.bias.detach().numpy().copy()
    if kept:
        port.layer.mean[...], port.layer.var[...] = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    return pair


class BatchNorm(nnx.BatchNorm):
    """With torch's unbiased running variance, or with other faults."""

    unbiased = True
    stale = False

    def __call__(self, x: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        mean, var = self.mean[...], self.var[...]
        y = super().__call__(x, **kwargs)
        if self.stale:
            self.mean[...], self.var[...] = mean, var
        elif self.unbiased:
            count = x.size // x.shape[-1]
            self.var[...] = self.momentum * var + (self.var[...] - self.momentum * var) * count / (count - 1)
        return y


def batch_norm(unbiased: bool = True, stale: bool = False, momentum: float = 0.9, **settings: Any) -> Pair:
    def make(rngs: nnx.Rngs) -> BatchNorm:
        norm = BatchNorm(WIDTH, momentum=momentum, **settings, rngs=rngs)
        norm.unbiased, norm.stale = unbiased, stale
        return norm

    return on_vectors(nn.BatchNorm1d(WIDTH), built(make))


BUFFERS = [
    Trap(
        name="BatchNorm momentum",
        stage="buffers",
        torch="momentum is the weight of the new value: 0.1.",
        jax="momentum is the weight of the old value: 0.99 by default.",
        source=f"{DOCS}normalization.html",
        build=batch_norm,
        wrong={"momentum": 0.99},
        right={"momentum": 0.9},
        place=("buffers", "layer.running_*"),
        cause="momentum",
        fix=r"momentum=0\.9",
    ),
    Trap(
        name="BatchNorm momentum taken over",
        stage="buffers",
        torch="momentum=0.1.",
        jax="momentum=0.1 is then the weight of the old value.",
        source=f"{DOCS}normalization.html",
        build=batch_norm,
        wrong={"momentum": 0.1},
        right={"momentum": 0.9},
        place=("buffers", "layer.running_*"),
        cause="momentum",
        fix=r"momentum=0\.9",
    ),
    Trap(
        name="biased running variance",
        stage="buffers",
        torch="Divided by n - 1.",
        jax="Divided by n.",
        source="https://github.com/pytorch/pytorch/issues/77427",
        build=batch_norm,
        wrong={"unbiased": False},
        right={"unbiased": True},
        place=("buffers", "layer.running_var"),
        cause="biased",
        fix="n - 1",
    ),
    Trap(
        name="statistics not written back",
        stage="buffers",
        torch="Updated in the forward pass.",
        jax="The new batch_stats are dropped.",
        source=f"{DOCS}normalization.html",
        build=batch_norm,
        wrong={"stale": True},
        right={"stale": False},
        place=("buffers", "layer.running_*"),
        cause="stale|momentum",
        fix="write the new",
    ),
    Trap(
        name="running average in training",
        stage="buffers",
        torch="train() normalizes by the batch.",
        jax="use_running_average=True.",
        source=f"{DOCS}normalization.html",
        build=lambda running: _mode(running),
        wrong={"running": True},
        right={"running": False},
        place=("forward", "layer"),
        cause="mode",
        fix="use_running_average",
    ),
]


def _mode(running: bool) -> Pair:
    class Norm(BatchNorm):
        def __call__(self, x: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            if running:
                return nnx.BatchNorm.__call__(self, x, use_running_average=True)
            return super().__call__(x, **kwargs)

    return on_vectors(nn.BatchNorm1d(WIDTH), built(lambda rngs: Norm(WIDTH, momentum=0.9, rngs=rngs)))


def data(change: Any) -> Pair:
    """A port whose batches are changed on the way."""
    pair = on_optimizer(lambda p: optim.SGD(p, 0.1), optax.sgd(0.1))
    port = pair.jax
    return Pair(
        pair.torch, compare.Flax(port.model, port.loss, port.optimizer, batch=lambda x, t: change(x, t)), pair.batches
    )


def image_data(change: Any) -> Pair:
    pair = on_images(torch.relu, jax.nn.relu, size=3)
    port = pair.jax
    return Pair(
        pair.torch, compare.Flax(port.model, port.loss, port.optimizer, batch=lambda x, t: (change(x), t)), pair.batches
    )


def batch(name: str, build: Any, wrong: Any, right: Any, says: tuple[str, str], place: tuple[str, str]) -> Trap:
    return Trap(
        name=name,
        stage="data",
        torch=says[0],
        jax=says[1],
        source="https://docs.jax.dev/en/latest/notebooks/Neural_Network_and_Data_Loading.html",
        build=build,
        wrong={"change": wrong},
        right={"change": right},
        place=place,
        cause="input|order of the targets|channels last",
        fix="batch",
    )


INPUT = ("forward", "*")
DATA = [
    batch(
        "NCHW into an NHWC model",
        image_data,
        lambda x: x,
        lambda x: np.moveaxis(x, 1, -1),
        ("NCHW.", "NHWC: silent where all sizes are equal."),
        INPUT,
    ),
    batch(
        "height and width exchanged",
        image_data,
        lambda x: np.moveaxis(x, 1, -1).swapaxes(1, 2),
        lambda x: np.moveaxis(x, 1, -1),
        ("H, W.", "W, H."),
        INPUT,
    ),
    batch(
        "RGB or BGR",
        image_data,
        lambda x: np.moveaxis(x[:, ::-1], 1, -1),
        lambda x: np.moveaxis(x, 1, -1),
        ("RGB.", "BGR."),
        INPUT,
    ),
    batch(
        "scaled by 255",
        data,
        lambda x, t: (x / np.float32(255), t),
        lambda x, t: (x, t),
        ("As they are.", "Divided by 255."),
        INPUT,
    ),
    batch(
        "another order of examples",
        data,
        lambda x, t: (x[::-1], t),
        lambda x, t: (x, t),
        ("In order.", "Reversed, without the targets."),
        INPUT,
    ),
    batch(
        "targets in another order",
        data,
        lambda x, t: (x, t[::-1]),
        lambda x, t: (x, t),
        ("In order.", "Reversed, without the inputs."),
        ("loss", "loss"),
    ),
    batch(
        "targets shifted by one",
        data,
        lambda x, t: (x, np.roll(t, 1, 0)),
        lambda x, t: (x, t),
        ("In order.", "Off by one."),
        ("loss", "loss"),
    ),
    batch(
        "last examples dropped",
        data,
        lambda x, t: (x[:-1], t[:-1]),
        lambda x, t: (x, t),
        ("All examples.", "The partial batch is dropped."),
        INPUT,
    ),
]


def precise(**settings: Any) -> Pair:
    return on_vectors(torch.tanh, built(lambda rngs: _Cast(**settings)))


class _Cast(nnx.Module):
    def __init__(self, dtype: Any = jnp.float32) -> None:
        self.dtype = dtype

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(x.astype(self.dtype)).astype(x.dtype)


def fast_variance(**settings: Any) -> Pair:
    return on_vectors(
        lambda x: functional.layer_norm(x + 1000, (WIDTH,)), built(lambda rngs: _Shifted(rngs, **settings))
    )


class _Shifted(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, **settings: Any) -> None:
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_bias=False, use_scale=False, rngs=rngs, **settings)

    def __call__(self, x: Any) -> Any:
        return self.norm(x + 1000)


def linear_dtype(dtype: Any) -> Pair:
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    model = Net(nn.Linear(WIDTH, WIDTH), torch.tanh, nn.Linear(WIDTH, WIDTH))
    port = Port(nnx.Linear(WIDTH, WIDTH, dtype=dtype, rngs=rngs), jnp.tanh, nnx.Linear(WIDTH, WIDTH, rngs=rngs))
    return Pair(compare.Torch(model, square, sgd), compare.Flax(port, square, optax.sgd(0.1)), vectors())


PRECISION = [
    Trap(
        name="a bfloat16 cast",
        stage="precision",
        torch="float32.",
        jax="astype(bfloat16).",
        source="https://docs.jax.dev/en/latest/jax.numpy.html",
        build=precise,
        wrong={"dtype": jnp.bfloat16},
        right={"dtype": jnp.float32},
        place=("forward", "*"),
        cause="bfloat16",
        fix="float32",
        verdict="precision",
    ),
    Trap(
        name="a float16 cast",
        stage="precision",
        torch="float32.",
        jax="astype(float16).",
        source="https://docs.jax.dev/en/latest/jax.numpy.html",
        build=precise,
        wrong={"dtype": jnp.float16},
        right={"dtype": jnp.float32},
        place=("forward", "*"),
        cause="float16",
        fix="float32",
        verdict="precision",
    ),
    Trap(
        name="a layer in bfloat16",
        stage="precision",
        torch="float32.",
        jax="nnx.Linear(dtype=bfloat16).",
        source=f"{DOCS}linear.html",
        build=linear_dtype,
        wrong={"dtype": jnp.bfloat16},
        right={"dtype": None},
        place=("forward", "*"),
        cause="bfloat16",
        fix="float32",
        verdict="precision",
    ),
    Trap(
        name="fast variance",
        stage="precision",
        torch="Two passes.",
        jax="E[x²] - E[x]² by default: cancellation at a large mean.",
        source=f"{DOCS}normalization.html",
        build=fast_variance,
        wrong={"use_fast_variance": True},
        right={"use_fast_variance": False},
        place=("forward", "*"),
        cause="variance",
        fix="use_fast_variance=False",
        verdict="precision",
    ),
]


def dropout(twice: bool = False, broadcast: tuple[int, ...] = ()) -> Pair:
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dropout = nnx.Dropout(0.5, broadcast_dims=broadcast, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = self.dropout(x)
            return self.dropout(y) if twice else y

    return on_vectors(nn.Dropout(0.5), built(Twice))


def noise(kind: Any, key: Any = None) -> Pair:
    """Add noise, with a key of its own for each step, or with one for all."""

    class Noisy(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.rngs = rngs

        def __call__(self, x: Any) -> Any:
            return x + 0.1 * kind(self.rngs.noise() if key is None else key, x.shape, x.dtype)

    return on_vectors(lambda x: x + 0.1 * torch.randn_like(x), built(Noisy))


RANDOM = [
    Trap(
        name="dropout applied twice",
        stage="randomness",
        torch="Once.",
        jax="Twice.",
        source=f"{DOCS}stochastic.html",
        build=dropout,
        wrong={"twice": True},
        right={"twice": False},
        place=("*", "*"),
        cause="",
        fix="",
        verdict="nondeterministic",
    ),
    Trap(
        name="dropout broadcast",
        stage="randomness",
        torch="An element at a time.",
        jax="broadcast_dims: a row at a time.",
        source=f"{DOCS}stochastic.html",
        build=dropout,
        wrong={"broadcast": (1,)},
        right={"broadcast": ()},
        place=("*", "*"),
        cause="",
        fix="",
        verdict="nondeterministic",
    ),
    Trap(
        name="uniform or normal noise",
        stage="randomness",
        torch="randn.",
        jax="uniform.",
        source="https://docs.jax.dev/en/latest/jax.random.html",
        build=noise,
        wrong={"kind": jax.random.uniform},
        right={"kind": jax.random.normal},
        place=("forward", "*"),
        cause="",
        fix="",
        verdict="nondeterministic",
    ),
    Trap(
        name="one random key for all steps",
        stage="randomness",
        torch="Every step draws new numbers.",
        jax="A key that is made once: every step draws the same.",
        source="https://docs.jax.dev/en/latest/random-numbers.html",
        build=functools.partial(noise, jax.random.normal),
        wrong={"key": jax.random.key(0)},
        right={"key": None},
        place=("forward", "draw 0, *"),
        cause="random key used twice",
        fix="jax.random.fold_in",
    ),
]


def zero_gradient(eps: float) -> Pair:
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    model = Net(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    norm = BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
    port = Port(nnx.Linear(WIDTH, WIDTH, rngs=rngs), norm, nnx.Linear(WIDTH, WIDTH, rngs=rngs))
    return Pair(
        compare.Torch(model, square, lambda p: optim.Adam(p, 1e-2)),
        compare.Flax(port, square, optax.adam(1e-2, eps=eps)),
        vectors(),
    )


OTHER = [
    Trap(
        name="a gradient that is zero in exact arithmetic",
        stage="optimizer",
        torch="A bias that feeds BatchNorm: rounding, which Adam turns into whole steps.",
        jax="The same, in other steps: not a bug.",
        source="https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html",
        build=zero_gradient,
        wrong={"eps": 1e-7},
        right={"eps": 1e-8},
        place=("update", "*"),
        cause="epsilon",
        fix="eps=1e-08",
    ),
]

TRAPS = [*WEIGHTS, *BUFFERS, *DATA, *PRECISION, *RANDOM, *OTHER]
