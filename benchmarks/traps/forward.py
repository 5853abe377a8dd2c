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
        name,
        "forward",
        f"{name}: torch's definition.",
        does,
        f"{JAX}jax.nn.{name.split()[0].lower()}.html",
        lambda function: on_vectors(ours, function, batches=None),
        {"function": wrong},
        {"function": theirs},
        BETWEEN,
        "activation|slope|alpha|beta|constant",
        fix,
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
        "LayerNorm epsilon",
        "forward",
        "eps is 1e-5.",
        "nnx.LayerNorm's epsilon is 1e-6.",
        f"{FLAX}normalization.html",
        norm(nn.LayerNorm(WIDTH), nnx.LayerNorm),
        {},
        {"epsilon": 1e-5},
        LAYER,
        "epsilon",
        "epsilon=1e-05",
    ),
    Trap(
        "GroupNorm epsilon",
        "forward",
        "eps is 1e-5.",
        "nnx.GroupNorm's epsilon is 1e-6.",
        f"{FLAX}normalization.html",
        norm(nn.GroupNorm(2, WIDTH), nnx.GroupNorm, num_groups=2),
        {},
        {"epsilon": 1e-5},
        LAYER,
        "epsilon",
        "epsilon=1e-05",
    ),
    Trap(
        "RMSNorm epsilon",
        "forward",
        "eps is what it is given.",
        "nnx.RMSNorm's epsilon is 1e-6.",
        f"{TORCH}torch.nn.RMSNorm.html",
        norm(nn.RMSNorm(WIDTH, eps=1e-5), nnx.RMSNorm),
        {},
        {"epsilon": 1e-5},
        LAYER,
        "epsilon",
        "epsilon=1e-05",
    ),
    Trap(
        "BatchNorm epsilon",
        "forward",
        "eps as given, 1e-3 in ports of TensorFlow.",
        "nnx.BatchNorm's epsilon is 1e-5.",
        f"{FLAX}normalization.html",
        lambda **s: on_vectors(
            nn.BatchNorm1d(WIDTH, eps=1e-3),
            built(lambda r: nnx.BatchNorm(WIDTH, use_running_average=True, **s, rngs=r)),
            train=False,
        ),
        {},
        {"epsilon": 1e-3},
        LAYER,
        "epsilon",
        r"epsilon=0\.001",
    ),
    Trap(
        "GroupNorm groups or group size",
        "forward",
        "num_groups is the number of groups.",
        "num_groups, or group_size: the channels of one.",
        f"{FLAX}normalization.html",
        norm(nn.GroupNorm(2, WIDTH), nnx.GroupNorm, epsilon=1e-5),
        {"num_groups": 4},
        {"num_groups": 2},
        LAYER,
        "groups",
        "num_groups=2",
    ),
    Trap(
        "LayerNorm without bias",
        "forward",
        "It has weight and bias.",
        "use_bias=False leaves the bias out.",
        f"{FLAX}normalization.html",
        norm(nn.LayerNorm(WIDTH), nnx.LayerNorm, epsilon=1e-5),
        {"use_bias": False},
        {"use_bias": True},
        ("error", "layer.bias"),
        "",
        "",
        "error",
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
        "exact, where the model was trained with the approximation.",
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
        "softmax over another axis",
        "forward",
        "dim is an argument.",
        "jax.nn.softmax's axis is -1 by default.",
        f"{JAX}jax.nn.softmax.html",
        function(lambda x: x.reshape(2, 3, WIDTH).softmax(1).reshape(6, WIDTH), _softmax),
        {},
        {"axis": 1},
        BETWEEN,
        "axis",
        "axis=1",
    ),
    Trap(
        "attention scaled twice",
        "forward",
        "Scores are divided by sqrt(head_dim), once.",
        "Scaled by hand as well.",
        f"{TORCH}torch.nn.functional.scaled_dot_product_attention.html",
        attention,
        {"scale": 0.25},
        {"scale": 0.5},
        BETWEEN,
        "scale",
        r"0\.5",
    ),
    Trap(
        "attention not scaled",
        "forward",
        "Scores are divided by sqrt(head_dim).",
        "A plain product.",
        f"{TORCH}torch.nn.functional.scaled_dot_product_attention.html",
        attention,
        {"scale": 1.0},
        {"scale": 0.5},
        BETWEEN,
        "scale",
        r"0\.5",
    ),
    Trap(
        "causal mask forgotten",
        "forward",
        "is_causal=True.",
        "No mask.",
        f"{JAX}jax.nn.dot_product_attention.html",
        attention,
        {"is_causal": False},
        {"is_causal": True},
        BETWEEN,
        "causal",
        "is_causal=True",
    ),
    Trap(
        "attention mask inverted",
        "forward",
        "In nn.MultiheadAttention, True is masked out.",
        "In Flax, True takes part.",
        f"{TORCH}torch.nn.MultiheadAttention.html",
        _masked,
        {"mask_value": True},
        {"mask_value": False},
        ("forward", "layer*"),
        "mask",
        "True where it may attend",
    ),
    Trap(
        "convolution padding",
        "forward",
        "padding is 0 by default.",
        'nnx.Conv pads "SAME" by default.',
        "https://github.com/google/flax/issues/963",
        lambda **s: conv(padding=1, stride=2)(**s) if s else conv(padding=1, stride=2)(),
        {"padding": "VALID"},
        {"padding": 1},
        ("forward", "layer"),
        "padding",
        "padding",
    ),
    Trap(
        '"SAME" with stride 2',
        "forward",
        "padding=1 pads both ends.",
        '"SAME" pads 6 pixels at the end alone.',
        "https://github.com/google/flax/issues/963",
        lambda **s: _even(**s),
        {"padding": "SAME"},
        {"padding": 1},
        LAYER,
        "padding",
        "padding",
    ),
    Trap(
        "bias of a convolution left out",
        "forward",
        "bias=True.",
        "use_bias=False.",
        f"{FLAX}linear.html",
        conv(padding=1),
        {"padding": 1, "use_bias": False},
        {"padding": 1, "use_bias": True},
        ("error", "layer.bias"),
        "",
        "",
        "error",
    ),
    Trap(
        "max pool padded with zeros",
        "forward",
        "Pads with minus infinity.",
        "jnp.pad pads with zeros.",
        f"{TORCH}torch.nn.MaxPool2d.html",
        image(lambda x: functional.max_pool2d(x - 2, 3, 1, 1), lambda x, zeros: _max_pool(x - 2, zeros)),
        {"zeros": True},
        {"zeros": False},
        BETWEEN,
        "padding value",
        "padding",
    ),
    Trap(
        "average pool counts padding",
        "forward",
        "count_include_pad=True.",
        "count_include_pad=False leaves padding out.",
        f"{FLAX}linear.html",
        image(
            lambda x: functional.avg_pool2d(x, 3, 2, 1),
            lambda x, **s: nnx.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), **s),
        ),
        {"count_include_pad": False},
        {"count_include_pad": True},
        BETWEEN,
        "padding counted",
        "count_include_pad=True",
    ),
    Trap(
        "variance by n - 1",
        "forward",
        "torch.var divides by n - 1.",
        "jnp.var divides by n.",
        f"{JAX}jax.numpy.var.html",
        function(lambda x: x / x.var(1, keepdim=True), lambda x, **s: x / jnp.var(x, 1, keepdims=True, **s)),
        {},
        {"ddof": 1},
        BETWEEN,
        "variance",
        "ddof=1",
    ),
    Trap(
        "standard deviation by n - 1",
        "forward",
        "torch.std divides by n - 1.",
        "jnp.std divides by n.",
        f"{JAX}jax.numpy.std.html",
        function(lambda x: x / x.std(1, keepdim=True), lambda x, **s: x / jnp.std(x, 1, keepdims=True, **s)),
        {},
        {"ddof": 1},
        BETWEEN,
        "variance",
        "ddof=1",
    ),
    Trap(
        "median of an even count",
        "forward",
        "The lower of the two.",
        "jnp.median: their mean.",
        f"{TORCH}torch.median.html",
        function(lambda x: x.median(1, keepdim=True).values * torch.ones(WIDTH), _median),
        {"lower": False},
        {"lower": True},
        BETWEEN,
        "median",
        "lower",
        whole=False,
    ),
    Trap(
        "resizing with antialiasing",
        "forward",
        "interpolate does not by default.",
        "jax.image.resize does by default.",
        "https://github.com/jax-ml/jax/issues/11206",
        image(lambda x: _interpolated(x, 4), functools.partial(_resized, size=4)),
        {},
        {"antialias": False},
        BETWEEN,
        "antialias",
        "antialias=False",
    ),
    Trap(
        "aligned corners",
        "forward",
        "align_corners=False: half-pixel centres.",
        "Corners aligned.",
        f"{TORCH}torch.nn.functional.interpolate.html",
        image(_interpolated, _corners),
        {"aligned": True},
        {"aligned": False},
        BETWEEN,
        "aligned corners",
        "antialias=False",
    ),
    Trap(
        "epsilon of normalize",
        "forward",
        "The norm is at least 1e-12.",
        "Another bound.",
        f"{TORCH}torch.nn.functional.normalize.html",
        function(lambda x: functional.normalize(x, eps=2.0), _normalized),
        {"epsilon": 1e-12},
        {"epsilon": 2.0},
        BETWEEN,
        "epsilon",
        "2",
    ),
    Trap(
        "scaled embedding",
        "forward",
        "nn.Embedding gives the row.",
        "Times sqrt(d), as in the Transformer paper.",
        f"{TORCH}torch.nn.Embedding.html",
        embedding,
        {"scale": math.sqrt(WIDTH)},
        {"scale": 1.0},
        ("forward", "*front*"),
        "embedding|factor",
        r"y / 2\.8",
    ),
    Trap(
        "padding row zeroed",
        "forward",
        "Looked up like any other.",
        "Zero for the padding index.",
        f"{TORCH}torch.nn.Embedding.html",
        embedding,
        {"zeroed": True},
        {"zeroed": False},
        ("forward", "*front*"),
        "padding row|mask",
        "",
    ),
    Trap(
        "sign of a remainder",
        "forward",
        "torch.remainder has the divisor's sign.",
        "jnp.fmod the dividend's.",
        f"{JAX}jax.numpy.fmod.html",
        function(lambda x: torch.remainder(x, 0.7), lambda x, f: f(x, 0.7)),
        {"f": jnp.fmod},
        {"f": jnp.remainder},
        BETWEEN,
        "remainder",
        "remainder",
    ),
    Trap(
        "rounding of halves",
        "forward",
        "torch.round: to even.",
        "floor(x + 0.5).",
        f"{TORCH}torch.round.html",
        function(
            lambda x: x + torch.round(2 * x.sign()) / 4 + torch.round(x.sign() / 2),
            lambda x, even: (
                x
                + jnp.round(2 * jnp.sign(x)) / 4
                + (jnp.round(jnp.sign(x) / 2) if even else jnp.sign(x) * jnp.floor(jnp.abs(jnp.sign(x) / 2) + 0.5))
            ),
        ),
        {"even": False},
        {"even": True},
        BETWEEN,
        "rounding",
        r"jnp\.round",
        whole=False,
    ),
    Trap(
        "dropout on in evaluation",
        "forward",
        "model.eval() turns it off.",
        "deterministic=False.",
        f"{FLAX}stochastic.html",
        lambda drop: on_vectors(
            nn.Dropout(0.5),
            lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x / 0.5, 0) if drop else x,
            train=False,
        ),
        {"drop": True},
        {"drop": False},
        ("*", "*"),
        "",
        "",
        "nondeterministic",
    ),
    Trap(
        "dropout not scaled",
        "forward",
        "Kept values are divided by 1 - p.",
        "Kept as they are.",
        f"{TORCH}torch.nn.Dropout.html",
        lambda scaled: on_vectors(nn.Dropout(0.5), built(lambda rngs: Dropping(rngs, scaled))),
        {"scaled": False},
        {"scaled": True},
        ("forward", "*"),
        "dropout",
        r"y / 0\.5",
    ),
    Trap(
        "dropout rate is what is dropped",
        "forward",
        "p is dropped.",
        "Kept with that probability.",
        f"{FLAX}stochastic.html",
        lambda rate: on_vectors(nn.Dropout(0.2), built(lambda r: nnx.Dropout(rate, rngs=r))),
        {"rate": 0.8},
        {"rate": 0.2},
        ("forward", "layer"),
        "dropout rate|factor",
        r"rate=0\.2|factor",
    ),
    Trap(
        "constant",
        "forward",
        "A temperature of 0.07.",
        "0.7.",
        f"{TORCH}torch.div.html",
        function(lambda x: x / 0.07, lambda x, temperature: x / temperature),
        {"temperature": 0.7},
        {"temperature": 0.07},
        BETWEEN,
        "constant|factor",
        r"0\.07|factor",
    ),
    Trap(
        "sum in place of mean over time",
        "forward",
        "mean(1).",
        "sum(1).",
        f"{TORCH}torch.mean.html",
        function(
            lambda x: x.reshape(2, 3, 8).mean(1).repeat(3, 1),
            lambda x, f: jnp.tile(f(x.reshape(2, 3, 8), axis=1), (3, 1)),
        ),
        {"f": jnp.sum},
        {"f": jnp.mean},
        BETWEEN,
        "mean or sum|factor",
        "mean|factor",
    ),
    Trap(
        "residual from the normalized input",
        "forward",
        "x + f(norm(x)).",
        "norm(x) + f(norm(x)).",
        "https://arxiv.org/abs/2002.04745",
        function(
            lambda x: x + torch.tanh(functional.layer_norm(x, (8,))),
            lambda x, normalized: (_layer_norm(x) if normalized else x) + jnp.tanh(_layer_norm(x)),
        ),
        {"normalized": True},
        {"normalized": False},
        BETWEEN,
        "operand",
        "output of front",
    ),
    Trap(
        "heads split in another order",
        "forward",
        "(heads, head_dim).",
        "(head_dim, heads).",
        f"{TORCH}torch.reshape.html",
        function(
            lambda x: torch.tanh(x).reshape(6, 2, 4).transpose(1, 2).reshape(6, 8),
            lambda x, split: jnp.tanh(x).reshape(6, *split).swapaxes(1, 2).reshape(6, 8),
        ),
        {"split": (4, 2)},
        {"split": (2, 4)},
        BETWEEN,
        "order|transposed|another layout",
        r"jnp\.take|torch's order",
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
