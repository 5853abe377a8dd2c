"""Traps in what layers and functions compute."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .trap import WIDTH, Pair, Trap, built, on_images, on_vectors

TORCH = "https://docs.pytorch.org/docs/stable/generated/"
FLAX = "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/"
JAX = "https://docs.jax.dev/en/latest/_autosummary/"
LAYER = ("forward", "layer")
BETWEEN = ("forward", "between front and *")


class Dropping(nnx.Module):
    """Dropout by hand, whose kept values are scaled or not."""

    def __init__(self, rngs: nnx.Rngs, scaled: bool) -> None:
        self.rngs, self.scaled = rngs, scaled

    def __call__(self, x: Any) -> Any:
        kept = jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape)
        return jnp.where(kept, x / 0.5 if self.scaled else x, 0)


def norm(torch_layer: Any, flax_layer: Any, **fixed: Any) -> Any:
    def build(**settings: Any) -> Pair:
        return on_vectors(torch_layer, built(lambda rngs: flax_layer(WIDTH, **fixed, **settings, rngs=rngs)))

    return build


def function(ours: Any, theirs: Any, **options: Any) -> Any:
    """Build a pair from two functions; the JAX side's takes the settings."""

    def build(**settings: Any) -> Pair:
        return on_vectors(ours, functools.partial(theirs, **settings), **options)

    return build


def image(ours: Any, theirs: Any, **options: Any) -> Any:
    def build(**settings: Any) -> Pair:
        return on_images(ours, functools.partial(theirs, **settings), **options)

    return build


def conv(**ours: Any) -> Any:
    def build(**settings: Any) -> Pair:
        torch.manual_seed(1)
        layer = nn.Conv2d(4, 4, 3, **ours)
        return on_images(
            layer, built(lambda rngs: nnx.Conv(4, 4, (3, 3), strides=ours.get("stride", 1), **settings, rngs=rngs))
        )

    return build


def activation(name: str, ours: Any, theirs: Any, wrong: Any, does: str, fix: str, *, whole: bool = True) -> Trap:
    return Trap(
        name=name,
        stage="forward",
        torch="torch's definition of the function.",
        jax=does,
        source=f"{JAX}jax.nn.{name.split()[0].strip(',').lower()}.html",
        build=lambda function: on_vectors(ours, function, batches=None),
        wrong={"function": wrong},
        right={"function": theirs},
        place=BETWEEN,
        cause="activation|slope|alpha|beta|constant",
        fix=fix,
        whole=whole,
    )


def attention(*, wrong: bool = False, **settings: Any) -> Pair:
    del wrong

    def ours(x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(2, 3, 2, 4).transpose(1, 2)
        return (
            functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(6, 8)
        )

    def theirs(x: jax.Array) -> jax.Array:
        heads = x.reshape(2, 3, 2, 4)
        options = {"is_causal": True} | settings
        return jax.nn.dot_product_attention(heads, heads, heads, **options).reshape(6, 8)

    return on_vectors(ours, theirs)


def embedding(scale: float = 1.0, zeroed: bool = False) -> Pair:
    import optax

    import compare

    from .trap import Net, Port, sgd, square

    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    rng = np.random.default_rng(0)
    model = Net(nn.Embedding(5, WIDTH), nn.Linear(WIDTH, 3))
    table = nnx.Embed(5, WIDTH, rngs=rngs)

    class Table(nnx.Module):
        def __init__(self) -> None:
            self.embedding = table

        def __call__(self, tokens: Any) -> Any:
            return self.embedding(tokens) * scale * ((tokens != 0)[..., None] if zeroed else 1.0)

    return Pair(
        compare.Torch(model, square, sgd),
        compare.Flax(Port(Table(), nnx.Linear(WIDTH, 3, rngs=rngs)), square, optax.sgd(0.1)),
        [(rng.integers(0, 5, (4, 6), np.int32), rng.standard_normal((4, 6, 3), np.float32)) for _ in range(2)],
    )


def _interpolated(x: Any, size: int = 14) -> Any:
    return functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def _resized(x: Any, size: int = 14, **settings: Any) -> Any:
    return jax.image.resize(x, (x.shape[0], size, size, x.shape[3]), "bilinear", **settings)


def _corners(x: Any, aligned: bool = False) -> Any:
    n, m = x.shape[1], 14
    if not aligned:
        return _resized(x)
    at = jnp.linspace(0, n - 1, m)
    low = jnp.clip(jnp.floor(at).astype(int), 0, n - 2)
    part = at - low

    def along(y: Any, axis: int) -> Any:
        shape = [1] * y.ndim
        shape[axis] = m
        weight = part.reshape(shape)
        return jnp.take(y, low, axis) * (1 - weight) + jnp.take(y, low + 1, axis) * weight

    return along(along(x, 1), 2)


class _Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def _masked(mask_value: bool) -> Any:
    mask = torch.tensor([[False, True, True], [False, False, True], [False, True, False]])

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.reshape(2, 3, WIDTH)
            return self.attention(y, y, y, attn_mask=mask, need_weights=False)[0].reshape(6, WIDTH)

    class Attended(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = x.reshape(2, 3, WIDTH)
            where = jnp.array(mask.numpy())
            return self.attention(y, mask=where == mask_value).reshape(6, WIDTH)

    return on_vectors(Attend(), built(Attended))


def _median(x: Any, lower: bool = True) -> Any:
    if lower:
        return jnp.sort(x, 1)[:, (x.shape[1] - 1) // 2][:, None] * jnp.ones(WIDTH)
    return jnp.median(x, 1, keepdims=True) * jnp.ones(WIDTH)


def _normalized(x: Any, epsilon: float = 1e-12) -> Any:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), epsilon)


def _softmax(x: Any, axis: int = -1) -> Any:
    return jax.nn.softmax(x.reshape(2, 3, WIDTH), axis).reshape(6, WIDTH)


TRAPS = [
    Trap(
        name="LayerNorm epsilon",
        stage="forward",
        torch="eps is 1e-5.",
        jax="nnx.LayerNorm's epsilon is 1e-6.",
        source=f"{FLAX}normalization.html",
        build=norm(nn.LayerNorm(WIDTH), nnx.LayerNorm),
        wrong={},
        right={"epsilon": 1e-5},
        place=LAYER,
        cause="epsilon",
        fix="epsilon=1e-05",
    ),
    Trap(
        name="GroupNorm epsilon",
        stage="forward",
        torch="eps is 1e-5.",
        jax="nnx.GroupNorm's epsilon is 1e-6.",
        source=f"{FLAX}normalization.html",
        build=norm(nn.GroupNorm(2, WIDTH), nnx.GroupNorm, num_groups=2),
        wrong={},
        right={"epsilon": 1e-5},
        place=LAYER,
        cause="epsilon",
        fix="epsilon=1e-05",
    ),
    Trap(
        name="RMSNorm epsilon",
        stage="forward",
        torch="eps is an argument.",
        jax="nnx.RMSNorm's epsilon is 1e-6.",
        source=f"{TORCH}torch.nn.RMSNorm.html",
        build=norm(nn.RMSNorm(WIDTH, eps=1e-5), nnx.RMSNorm),
        wrong={},
        right={"epsilon": 1e-5},
        place=LAYER,
        cause="epsilon",
        fix="epsilon=1e-05",
    ),
    Trap(
        name="BatchNorm epsilon",
        stage="forward",
        torch="eps as given, 1e-3 in ports of TensorFlow.",
        jax="nnx.BatchNorm's epsilon is 1e-5.",
        source=f"{FLAX}normalization.html",
        build=lambda **s: on_vectors(
            nn.BatchNorm1d(WIDTH, eps=1e-3),
            built(lambda r: nnx.BatchNorm(WIDTH, use_running_average=True, **s, rngs=r)),
            train=False,
        ),
        wrong={},
        right={"epsilon": 1e-3},
        place=LAYER,
        cause="epsilon",
        fix=r"epsilon=0\.001",
    ),
    Trap(
        name="GroupNorm groups or group size",
        stage="forward",
        torch="num_groups is the number of groups.",
        jax="num_groups, or group_size: the channels of one.",
        source=f"{FLAX}normalization.html",
        build=norm(nn.GroupNorm(2, WIDTH), nnx.GroupNorm, epsilon=1e-5),
        wrong={"num_groups": 4},
        right={"num_groups": 2},
        place=LAYER,
        cause="groups",
        fix="num_groups=2",
    ),
    Trap(
        name="LayerNorm without bias",
        stage="forward",
        torch="It has weight and bias.",
        jax="use_bias=False leaves the bias out.",
        source=f"{FLAX}normalization.html",
        build=norm(nn.LayerNorm(WIDTH), nnx.LayerNorm, epsilon=1e-5),
        wrong={"use_bias": False},
        right={"use_bias": True},
        place=("error", "layer.bias"),
        cause="",
        fix="",
        verdict="error",
    ),
    activation(
        "GELU approximation",
        functional.gelu,
        functools.partial(jax.nn.gelu, approximate=False),
        jax.nn.gelu,
        "jax.nn.gelu is the tanh approximation by default.",
        "approximate=False",
    ),
    activation(
        "GELU, the other way",
        nn.GELU(approximate="tanh"),
        jax.nn.gelu,
        functools.partial(jax.nn.gelu, approximate=False),
        "The exact GELU, but the model was trained with the approximation.",
        "approximate=True",
    ),
    activation(
        "GELU by sigmoid",
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * jax.nn.sigmoid(1.702 * x),
        lambda x: x * jax.nn.sigmoid(1.7 * x),
        "another constant in the sigmoid.",
        "1.702",
        whole=False,
    ),
    activation("silu or relu", functional.silu, jax.nn.silu, jax.nn.relu, "another function.", r"jax\.nn\.silu"),
    activation(
        "leaky_relu slope",
        lambda x: functional.leaky_relu(x, 0.2),
        lambda x: jax.nn.leaky_relu(x, 0.2),
        jax.nn.leaky_relu,
        "jax.nn.leaky_relu's slope is 0.01.",
        "negative_slope=0.2",
    ),
    activation(
        "elu alpha",
        lambda x: functional.elu(x, 0.5),
        lambda x: jax.nn.elu(x, 0.5),
        jax.nn.elu,
        "jax.nn.elu's alpha is 1.",
        r"alpha=0\.5",
    ),
    activation(
        "softplus beta",
        lambda x: functional.softplus(x, beta=2),
        lambda x: jax.nn.softplus(2 * x) / 2,
        jax.nn.softplus,
        "jax.nn.softplus has no beta.",
        r"softplus\(2 \* x\) / 2",
    ),
    activation(
        "relu6 or relu",
        lambda x: functional.relu6(8 * x),
        lambda x: jax.nn.relu6(8 * x),
        lambda x: jax.nn.relu(8 * x),
        "no bound.",
        "relu6",
        whole=False,
    ),
    activation("hard_tanh or tanh", functional.hardtanh, jax.nn.hard_tanh, jnp.tanh, "the smooth one.", "hard_tanh"),
    activation("tanh left out", torch.tanh, jnp.tanh, lambda x: x, "no activation at all.", "tanh"),
    activation("silu or gelu", functional.silu, jax.nn.silu, jax.nn.gelu, "another function.", "silu"),
    activation("elu or selu", functional.elu, jax.nn.elu, jax.nn.selu, "another function.", r"jax\.nn\.elu"),
    activation("mish or silu", functional.mish, jax.nn.mish, jax.nn.silu, "another function.", "mish"),
    Trap(
        name="softmax over another axis",
        stage="forward",
        torch="dim is an argument.",
        jax="jax.nn.softmax's axis is -1 by default.",
        source=f"{JAX}jax.nn.softmax.html",
        build=function(lambda x: x.reshape(2, 3, WIDTH).softmax(1).reshape(6, WIDTH), _softmax),
        wrong={},
        right={"axis": 1},
        place=BETWEEN,
        cause="axis",
        fix="axis=1",
    ),
    Trap(
        name="attention scaled twice",
        stage="forward",
        torch="Scores are divided by sqrt(head_dim), once.",
        jax="Scaled by hand as well.",
        source=f"{TORCH}torch.nn.functional.scaled_dot_product_attention.html",
        build=attention,
        wrong={"scale": 0.25},
        right={"scale": 0.5},
        place=BETWEEN,
        cause="scale",
        fix=r"0\.5",
    ),
    Trap(
        name="attention not scaled",
        stage="forward",
        torch="Scores are divided by sqrt(head_dim).",
        jax="A plain product.",
        source=f"{TORCH}torch.nn.functional.scaled_dot_product_attention.html",
        build=attention,
        wrong={"scale": 1.0},
        right={"scale": 0.5},
        place=BETWEEN,
        cause="scale",
        fix=r"0\.5",
    ),
    Trap(
        name="causal mask forgotten",
        stage="forward",
        torch="is_causal=True.",
        jax="No mask.",
        source=f"{JAX}jax.nn.dot_product_attention.html",
        build=attention,
        wrong={"is_causal": False},
        right={"is_causal": True},
        place=BETWEEN,
        cause="causal",
        fix="is_causal=True",
    ),
    Trap(
        name="attention mask inverted",
        stage="forward",
        torch="In nn.MultiheadAttention, True is masked out.",
        jax="In Flax, True takes part.",
        source=f"{TORCH}torch.nn.MultiheadAttention.html",
        build=_masked,
        wrong={"mask_value": True},
        right={"mask_value": False},
        place=("forward", "layer*"),
        cause="mask",
        fix="True where it may attend",
    ),
    Trap(
        name="convolution padding",
        stage="forward",
        torch="padding is 0 by default.",
        jax='nnx.Conv pads "SAME" by default.',
        source="https://github.com/google/flax/issues/963",
        build=lambda **s: conv(padding=1, stride=2)(**s) if s else conv(padding=1, stride=2)(),
        wrong={"padding": "VALID"},
        right={"padding": 1},
        place=("forward", "layer"),
        cause="padding",
        fix="padding",
    ),
    Trap(
        name='"SAME" with stride 2',
        stage="forward",
        torch="padding=1 pads both ends.",
        jax='"SAME" pads 6 pixels at the end alone.',
        source="https://github.com/google/flax/issues/963",
        build=lambda **s: _even(**s),
        wrong={"padding": "SAME"},
        right={"padding": 1},
        place=LAYER,
        cause="padding",
        fix="padding",
    ),
    Trap(
        name="bias of a convolution left out",
        stage="forward",
        torch="bias=True.",
        jax="use_bias=False.",
        source=f"{FLAX}linear.html",
        build=conv(padding=1),
        wrong={"padding": 1, "use_bias": False},
        right={"padding": 1, "use_bias": True},
        place=("error", "layer.bias"),
        cause="",
        fix="",
        verdict="error",
    ),
    Trap(
        name="max pool padded with zeros",
        stage="forward",
        torch="Pads with minus infinity.",
        jax="jnp.pad pads with zeros.",
        source=f"{TORCH}torch.nn.MaxPool2d.html",
        build=image(lambda x: functional.max_pool2d(x - 2, 3, 1, 1), lambda x, zeros: _max_pool(x - 2, zeros)),
        wrong={"zeros": True},
        right={"zeros": False},
        place=BETWEEN,
        cause="padding value",
        fix="padding",
    ),
    Trap(
        name="average pool counts padding",
        stage="forward",
        torch="count_include_pad=True.",
        jax="count_include_pad=False leaves padding out.",
        source=f"{FLAX}linear.html",
        build=image(
            lambda x: functional.avg_pool2d(x, 3, 2, 1),
            lambda x, **s: nnx.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), **s),
        ),
        wrong={"count_include_pad": False},
        right={"count_include_pad": True},
        place=BETWEEN,
        cause="padding counted",
        fix="count_include_pad=True",
    ),
    Trap(
        name="variance by n or n minus one",
        stage="forward",
        torch="torch.var divides by n - 1.",
        jax="jnp.var divides by n.",
        source=f"{JAX}jax.numpy.var.html",
        build=function(lambda x: x / x.var(1, keepdim=True), lambda x, **s: x / jnp.var(x, 1, keepdims=True, **s)),
        wrong={},
        right={"ddof": 1},
        place=BETWEEN,
        cause="variance",
        fix="ddof=1",
    ),
    Trap(
        name="standard deviation by n or n minus one",
        stage="forward",
        torch="torch.std divides by n - 1.",
        jax="jnp.std divides by n.",
        source=f"{JAX}jax.numpy.std.html",
        build=function(lambda x: x / x.std(1, keepdim=True), lambda x, **s: x / jnp.std(x, 1, keepdims=True, **s)),
        wrong={},
        right={"ddof": 1},
        place=BETWEEN,
        cause="variance",
        fix="ddof=1",
    ),
    Trap(
        name="median of an even count",
        stage="forward",
        torch="The lower of the two.",
        jax="jnp.median: their mean.",
        source=f"{TORCH}torch.median.html",
        build=function(lambda x: x.median(1, keepdim=True).values * torch.ones(WIDTH), _median),
        wrong={"lower": False},
        right={"lower": True},
        place=BETWEEN,
        cause="median",
        fix="lower",
        whole=False,
    ),
    Trap(
        name="resizing with antialiasing",
        stage="forward",
        torch="interpolate does not antialias by default.",
        jax="jax.image.resize antialiases by default.",
        source="https://github.com/jax-ml/jax/issues/11206",
        build=image(lambda x: _interpolated(x, 4), functools.partial(_resized, size=4)),
        wrong={},
        right={"antialias": False},
        place=BETWEEN,
        cause="antialias",
        fix="antialias=False",
    ),
    Trap(
        name="aligned corners",
        stage="forward",
        torch="align_corners=False: half-pixel centres.",
        jax="Corners aligned.",
        source=f"{TORCH}torch.nn.functional.interpolate.html",
        build=image(_interpolated, _corners),
        wrong={"aligned": True},
        right={"aligned": False},
        place=BETWEEN,
        cause="aligned corners",
        fix="antialias=False",
    ),
    Trap(
        name="epsilon of normalize",
        stage="forward",
        torch="The norm is at least 1e-12.",
        jax="Another bound.",
        source=f"{TORCH}torch.nn.functional.normalize.html",
        build=function(lambda x: functional.normalize(x, eps=2.0), _normalized),
        wrong={"epsilon": 1e-12},
        right={"epsilon": 2.0},
        place=BETWEEN,
        cause="epsilon",
        fix="2",
    ),
    Trap(
        name="scaled embedding",
        stage="forward",
        torch="nn.Embedding gives the row.",
        jax="The row times sqrt(d), as in the Transformer paper.",
        source=f"{TORCH}torch.nn.Embedding.html",
        build=embedding,
        wrong={"scale": math.sqrt(WIDTH)},
        right={"scale": 1.0},
        place=("forward", "*front*"),
        cause="embedding|factor",
        fix=r"y / 2\.8",
    ),
    Trap(
        name="padding row zeroed",
        stage="forward",
        torch="The padding row is looked up like any other.",
        jax="Zero for the padding index.",
        source=f"{TORCH}torch.nn.Embedding.html",
        build=embedding,
        wrong={"zeroed": True},
        right={"zeroed": False},
        place=("forward", "*front*"),
        cause="padding row|mask",
        fix="",
    ),
    Trap(
        name="sign of a remainder",
        stage="forward",
        torch="torch.remainder has the divisor's sign.",
        jax="jnp.fmod has the dividend's.",
        source=f"{JAX}jax.numpy.fmod.html",
        build=function(lambda x: torch.remainder(x, 0.7), lambda x, f: f(x, 0.7)),
        wrong={"f": jnp.fmod},
        right={"f": jnp.remainder},
        place=BETWEEN,
        cause="remainder",
        fix="remainder",
    ),
    Trap(
        name="rounding down",
        stage="forward",
        torch="torch.round rounds to the nearest integer.",
        jax="jnp.floor rounds down, as astype(int) does for positive numbers.",
        source=f"{TORCH}torch.round.html",
        build=function(lambda x: x + torch.round(4 * x) / 4, lambda x, f: x + f(4 * x) / 4),
        wrong={"f": jnp.floor},
        right={"f": jnp.round},
        place=BETWEEN,
        cause="rounding",
        fix=r"jnp\.round",
        whole=False,
    ),
    Trap(
        name="rounding of halves",
        stage="forward",
        torch="torch.round rounds halves to even.",
        jax="floor(x + 0.5).",
        source=f"{TORCH}torch.round.html",
        build=function(
            lambda x: x + torch.round(2 * x.sign()) / 4 + torch.round(x.sign() / 2),
            lambda x, even: (
                x
                + jnp.round(2 * jnp.sign(x)) / 4
                + (jnp.round(jnp.sign(x) / 2) if even else jnp.sign(x) * jnp.floor(jnp.abs(jnp.sign(x) / 2) + 0.5))
            ),
        ),
        wrong={"even": False},
        right={"even": True},
        place=BETWEEN,
        cause="rounding",
        fix=r"jnp\.round",
        whole=False,
    ),
    Trap(
        name="dropout on in evaluation",
        stage="forward",
        torch="model.eval() turns it off.",
        jax="deterministic=False.",
        source=f"{FLAX}stochastic.html",
        build=lambda drop: on_vectors(
            nn.Dropout(0.5),
            lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x / 0.5, 0) if drop else x,
            train=False,
        ),
        wrong={"drop": True},
        right={"drop": False},
        place=("*", "*"),
        cause="",
        fix="",
        verdict="nondeterministic",
    ),
    Trap(
        name="dropout not scaled",
        stage="forward",
        torch="Kept values are divided by 1 - p.",
        jax="Kept values are not scaled.",
        source=f"{TORCH}torch.nn.Dropout.html",
        build=lambda scaled: on_vectors(nn.Dropout(0.5), built(lambda rngs: Dropping(rngs, scaled))),
        wrong={"scaled": False},
        right={"scaled": True},
        place=("forward", "*"),
        cause="dropout",
        fix=r"y / 0\.5",
    ),
    Trap(
        name="dropout rate is what is dropped",
        stage="forward",
        torch="p is dropped.",
        jax="The rate is the probability of keeping.",
        source=f"{FLAX}stochastic.html",
        build=lambda rate: on_vectors(nn.Dropout(0.2), built(lambda r: nnx.Dropout(rate, rngs=r))),
        wrong={"rate": 0.8},
        right={"rate": 0.2},
        place=("forward", "layer"),
        cause="dropout rate|factor",
        fix=r"rate=0\.2|factor",
    ),
    Trap(
        name="constant",
        stage="forward",
        torch="A temperature of 0.07.",
        jax="0.7.",
        source=f"{TORCH}torch.div.html",
        build=function(lambda x: x / 0.07, lambda x, temperature: x / temperature),
        wrong={"temperature": 0.7},
        right={"temperature": 0.07},
        place=BETWEEN,
        cause="constant|factor",
        fix=r"0\.07|factor",
    ),
    Trap(
        name="sum in place of mean over time",
        stage="forward",
        torch="mean(1).",
        jax="sum(1).",
        source=f"{TORCH}torch.mean.html",
        build=function(
            lambda x: x.reshape(2, 3, 8).mean(1).repeat(3, 1),
            lambda x, f: jnp.tile(f(x.reshape(2, 3, 8), axis=1), (3, 1)),
        ),
        wrong={"f": jnp.sum},
        right={"f": jnp.mean},
        place=BETWEEN,
        cause="mean or sum|factor",
        fix="mean|factor",
    ),
    Trap(
        name="residual from the normalized input",
        stage="forward",
        torch="x + f(norm(x)).",
        jax="norm(x) + f(norm(x)).",
        source="https://arxiv.org/abs/2002.04745",
        build=function(
            lambda x: x + torch.tanh(functional.layer_norm(x, (8,))),
            lambda x, normalized: (_layer_norm(x) if normalized else x) + jnp.tanh(_layer_norm(x)),
        ),
        wrong={"normalized": True},
        right={"normalized": False},
        place=BETWEEN,
        cause="operand",
        fix="output of front",
    ),
    Trap(
        name="heads split in another order",
        stage="forward",
        torch="(heads, head_dim).",
        jax="(head_dim, heads).",
        source=f"{TORCH}torch.reshape.html",
        build=function(
            lambda x: torch.tanh(x).reshape(6, 2, 4).transpose(1, 2).reshape(6, 8),
            lambda x, split: jnp.tanh(x).reshape(6, *split).swapaxes(1, 2).reshape(6, 8),
        ),
        wrong={"split": (4, 2)},
        right={"split": (2, 4)},
        place=BETWEEN,
        cause="order|transposed|another layout",
        fix=r"jnp\.take|torch's order",
    ),
]


def _layer_norm(x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


def _even(**settings: Any) -> Pair:
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    return on_images(layer, built(lambda r: nnx.Conv(4, 4, (3, 3), strides=2, **settings, rngs=r)), size=6)


def _max_pool(x: Any, zeros: bool) -> Any:
    if zeros:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nnx.max_pool(x, (3, 3))
    return nnx.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))
