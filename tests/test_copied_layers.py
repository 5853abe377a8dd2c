"""Layer by layer: with the weights that the map copies, both frameworks compute the same, to float64's rounding."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from compare.conversion import copy_weights
from compare.errors import InputError
from compare.jax_side.layers import linen_layers, nnx_layers, pytree_layers, pytree_names
from compare.torch_side.layers import torch_layers
from compare.weights.find import find_links
from compare.weights.links import to_jax, to_torch
from compare.weights.units import View

F64 = jnp.float64
Array = Any


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def filled(model: nn.Module) -> nn.Module:
    """In float64, with no two numbers alike, running statistics and norms included."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - (0 if "var" in name else 0.5)
            )
    return model


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def close(a: Array, b: Array) -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


def round_trip(model: nn.Module, links: Any, like: Mapping[str, Array]) -> None:
    """to_torch undoes to_jax, bit for bit, and both fill everything that is not left out by name."""
    before = arrays(model)
    hidden = to_jax(links, before, {name: np.full(np.shape(array), np.nan) for name, array in like.items()})
    assert not any(np.isnan(array).any() for array in hidden.values())
    after = to_torch(links, hidden, {name: np.full(array.shape, np.nan) for name, array in before.items()})
    for name, array in before.items():
        if name not in links.apart:
            np.testing.assert_array_equal(after[name], array)


def zeros(leaf: Any) -> Any:
    """In float64 whatever is asked for: Flax keeps running statistics in float32 otherwise."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.asarray(np.zeros(leaf.shape, np.float64 if jnp.issubdtype(leaf.dtype, np.inexact) else leaf.dtype))


def make_nnx(factory: Callable[[], Any]) -> Any:
    """Without drawing initial weights, which takes long to compile."""
    graphdef, state = nnx.split(nnx.eval_shape(factory))
    return nnx.merge(graphdef, jax.tree.map(zeros, state))


def make_linen(layer: linen.Module, *inputs: Array) -> tuple[linen.Module, Any]:
    return layer, jax.tree.map(zeros, jax.eval_shape(layer.init, jax.random.key(0), *inputs))


def make_equinox(factory: Callable[[], Any]) -> Any:
    shapes = eqx.filter_eval_shape(factory)
    return jax.tree.map(lambda leaf: zeros(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, shapes)


def run(port: Any, *inputs: Array) -> Array:
    """As one program, which is faster compiled than each operation by itself."""
    if isinstance(port, tuple):
        return jax.jit(port[0].apply)(port[1], *inputs)
    if isinstance(port, nnx.Module):
        graphdef, state = nnx.split(port)
        return jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs))(state, *inputs)
    return eqx.filter_jit(port)(*inputs)


class Case(NamedTuple):
    torch: Callable[[], nn.Module]
    flax: Callable[..., Any]
    """Takes the flax package, nnx or linen, and gives a layer of it."""
    shape: tuple[int, ...]
    """Of the input on the torch side; None for indices."""
    spatial: bool = False


def to_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def dense(of: Any, inputs: int, outputs: int, **options: Any) -> Any:
    options["param_dtype"] = F64
    return of.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options) if of is nnx else of.Dense(outputs, **options)


def conv(of: Any, inputs: int, outputs: int, kernel: tuple[int, ...], transposed: bool = False, **options: Any) -> Any:
    options["param_dtype"] = F64
    kind = of.ConvTranspose if transposed else of.Conv
    return kind(inputs, outputs, kernel, rngs=nnx.Rngs(0), **options) if of is nnx else kind(outputs, kernel, **options)


def norm(of: Any, name: str, features: int, **options: Any) -> Any:
    options["param_dtype"] = F64
    return getattr(of, name)(features, rngs=nnx.Rngs(0), **options) if of is nnx else getattr(of, name)(**options)


def pads(*sizes: int) -> list[tuple[int, int]]:
    return [(size, size) for size in sizes]


CASES = {
    "linear": Case(lambda: nn.Linear(3, 5), lambda of: dense(of, 3, 5), (4, 3)),
    "linear, square": Case(lambda: nn.Linear(4, 4), lambda of: dense(of, 4, 4), (4, 4)),
    "linear, no bias": Case(lambda: nn.Linear(3, 5, bias=False), lambda of: dense(of, 3, 5, use_bias=False), (4, 3)),
    "conv1d": Case(lambda: nn.Conv1d(3, 5, 3), lambda of: conv(of, 3, 5, (3,), padding="VALID"), (2, 3, 8), True),
    "conv1d, all alike": Case(
        lambda: nn.Conv1d(3, 3, 3), lambda of: conv(of, 3, 3, (3,), padding="VALID"), (2, 3, 8), True
    ),
    "conv2d, strided": Case(
        lambda: nn.Conv2d(3, 5, (3, 2), stride=2),
        lambda of: conv(of, 3, 5, (3, 2), strides=(2, 2), padding="VALID"),
        (2, 3, 8, 7),
        True,
    ),
    "conv2d, grouped and dilated": Case(
        lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=1),
        lambda of: conv(of, 4, 6, (3, 3), feature_group_count=2, kernel_dilation=(2, 2), padding=pads(1, 1)),
        (2, 4, 8, 7),
        True,
    ),
    "conv2d, depthwise": Case(
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        lambda of: conv(of, 4, 4, (3, 3), feature_group_count=4, padding="VALID"),
        (2, 4, 8, 7),
        True,
    ),
    "conv3d": Case(
        lambda: nn.Conv3d(2, 3, (1, 2, 3)), lambda of: conv(of, 2, 3, (1, 2, 3), padding="VALID"), (2, 2, 3, 4, 5), True
    ),
    "conv_transpose1d": Case(
        lambda: nn.ConvTranspose1d(3, 5, 4, stride=2),
        lambda of: conv(of, 3, 5, (4,), True, strides=(2,), padding="VALID"),
        (2, 3, 8),
        True,
    ),
    "conv_transpose2d, square": Case(
        lambda: nn.ConvTranspose2d(3, 3, 3, stride=2),
        lambda of: conv(of, 3, 3, (3, 3), True, strides=(2, 2), padding="VALID"),
        (2, 3, 5, 4),
        True,
    ),
    "conv_transpose2d, transpose_kernel": Case(
        lambda: nn.ConvTranspose2d(3, 3, (3, 2), stride=2),
        lambda of: conv(of, 3, 3, (3, 2), True, strides=(2, 2), padding="VALID", transpose_kernel=True),
        (2, 3, 5, 4),
        True,
    ),
    "conv_transpose2d, dilated": Case(
        lambda: nn.ConvTranspose2d(2, 3, 3, dilation=2, padding=1),
        lambda of: conv(of, 2, 3, (3, 3), True, kernel_dilation=(2, 2), padding=pads(3, 3)),
        (2, 2, 6, 5),
        True,
    ),
    "conv_transpose3d": Case(
        lambda: nn.ConvTranspose3d(2, 3, 2),
        lambda of: conv(of, 2, 3, (2, 2, 2), True, padding="VALID"),
        (2, 2, 3, 4, 5),
        True,
    ),
    "batch_norm": Case(
        lambda: nn.BatchNorm2d(4),
        lambda of: norm(of, "BatchNorm", 4, epsilon=1e-5, use_running_average=True),
        (2, 4, 3, 5),
        True,
    ),
    "layer_norm": Case(lambda: nn.LayerNorm(4), lambda of: norm(of, "LayerNorm", 4, epsilon=1e-5), (2, 3, 4)),
    "group_norm": Case(
        lambda: nn.GroupNorm(2, 4), lambda of: norm(of, "GroupNorm", 4, num_groups=2, epsilon=1e-5), (2, 4, 3, 5), True
    ),
    "instance_norm": Case(
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda of: norm(of, "InstanceNorm", 4, epsilon=1e-5),
        (2, 4, 3, 5),
        True,
    ),
    "rms_norm": Case(lambda: nn.RMSNorm(4, eps=1e-6), lambda of: norm(of, "RMSNorm", 4, epsilon=1e-6), (2, 3, 4)),
    "prelu": Case(
        lambda: nn.PReLU(), lambda of: nnx.PReLU(param_dtype=F64) if of is nnx else linen.PReLU(param_dtype=F64), (2, 3)
    ),
}


@pytest.mark.parametrize("of", [nnx, linen], ids=["nnx", "linen"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_computes_the_same(name: str, of: Any) -> None:
    case = CASES[name]
    original = filled(case.torch())
    x = np.random.default_rng(0).standard_normal(case.shape)
    expected = original(torch.from_numpy(x)).detach().numpy()
    if case.spatial:
        x, expected = to_last(x), to_last(expected)
    made = make_nnx(lambda: case.flax(nnx)) if of is nnx else make_linen(case.flax(linen), x)
    port, links = copy_weights(original, made)
    close(run(port, x), expected)
    round_trip(original, links, like(port))


def like(port: Any) -> dict[str, Array]:
    layers = linen_layers(port[1], port[0]) if isinstance(port, tuple) else nnx_layers(port)
    return {name: np.zeros(shape) for layer in layers for name, shape in layer.tensors.items()}


@pytest.mark.parametrize("of", [nnx, linen], ids=["nnx", "linen"])
def test_embedding(of: Any) -> None:
    original = filled(nn.Embedding(7, 3))
    tokens = np.array([[1, 6, 0], [2, 2, 5]])
    nnx_layer, linen_layer = (
        lambda: nnx.Embed(7, 3, param_dtype=F64, rngs=nnx.Rngs(0)),
        linen.Embed(7, 3, param_dtype=F64),
    )
    port = copy_weights(original, make_nnx(nnx_layer) if of is nnx else make_linen(linen_layer, tokens)).model
    close(run(port, tokens), original(torch.from_numpy(tokens)).detach().numpy())


def test_layer_norm_over_two_axes() -> None:
    original = filled(nn.LayerNorm((3, 4)))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    layer = linen.LayerNorm(epsilon=1e-5, reduction_axes=(-2, -1), feature_axes=(-2, -1), param_dtype=F64)
    close(run(copy_weights(original, make_linen(layer, x)).model, x), original(torch.from_numpy(x)).detach().numpy())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 3)])
def test_equinox_convolutions(kernel: tuple[int, ...], groups: int) -> None:
    n = len(kernel)
    x = np.random.default_rng(0).standard_normal((1, 4, *(5, 6, 4)[:n]))
    for transposed in (False, True):
        original = filled(getattr(nn, f"Conv{'Transpose' if transposed else ''}{n}d")(4, 6, kernel, groups=groups))
        kind = eqx.nn.ConvTranspose if transposed else eqx.nn.Conv
        port = make_equinox(partial(kind, n, 4, 6, kernel, groups=groups, key=jax.random.key(0)))
        close(run(given_weights(original, port), x[0]), original(torch.from_numpy(x)).detach().numpy()[0])


def given_weights(original: nn.Module, tree: Any, weights: Any = None) -> Any:
    """The pytree with the torch model's weights."""
    links = find_links(torch_layers(original), pytree_layers(tree), weights)
    names = pytree_names(tree)
    old = dict(zip(names, (leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)), strict=True))
    new = to_jax(links, arrays(original), {name: np.asarray(leaf) for name, leaf in old.items()})
    if not any(link.adds for link in links):
        round_trip(original, links, old)
    leaves = iter(new[name] for name in names)
    return jax.tree.map(lambda leaf: jnp.array(next(leaves)) if eqx.is_inexact_array(leaf) else leaf, tree)


def test_grouped_transposed_convolution_of_a_ports_own() -> None:
    original = filled(nn.ConvTranspose2d(4, 6, (2, 3), groups=2))
    params = given_weights(original, {"kernel": jnp.zeros((2, 3, 2, 6)), "bias": jnp.zeros(6)})
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6))
    y = jax.lax.conv_general_dilated(
        to_last(x),
        params["kernel"],
        (1, 1),
        pads(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    close(y + params["bias"], to_last(original(torch.from_numpy(x)).detach().numpy()))


class TorchAttention(nn.Module):
    """Projections of their own, heads merged."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        # Not in the order in which they are used, and not in that of the port.
        self.v_proj, self.out_proj, self.k_proj, self.q_proj = (nn.Linear(size, size) for _ in range(4))
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class TorchSelfAttention(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Fused(nnx.Module):
    def __init__(self, size: int, heads: int) -> None:
        self.qkv = dense(nnx, size, 3 * size)
        self.out = dense(nnx, size, size)
        self.heads = heads

    def __call__(self, x: Array) -> Array:
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(self.qkv(x), 3, -1))
        return self.out(attend(q, k, v).reshape(x.shape))


def attend(query: Array, key: Array, value: Array, *_: Any, **__: Any) -> Array:
    """Flax's own takes `jax.nn.dot_product_attention`, which computes its logits in float32 whatever it is given."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


ATTENTION: dict[str, Callable[[Array], Any]] = {
    "nnx": lambda x: make_nnx(
        lambda: nnx.MultiHeadAttention(2, 6, decode=False, attention_fn=attend, param_dtype=F64, rngs=nnx.Rngs(0))
    ),
    "linen": lambda x: make_linen(linen.MultiHeadDotProductAttention(2, param_dtype=F64), x),
    "fused": lambda x: make_nnx(lambda: Fused(6, 2)),
}


@pytest.mark.parametrize("port", ATTENTION)
@pytest.mark.parametrize("fused", [False, True])
def test_attention(port: str, fused: bool) -> None:
    model = filled(TorchSelfAttention(6, 2, batch_first=True) if fused else TorchAttention(6, 2))
    x = np.random.default_rng(0).standard_normal((2, 5, 6))
    copied = copy_weights(model, ATTENTION[port](x))
    close(run(copied.model, x), model(torch.from_numpy(x)).detach().numpy())
    round_trip(model, copied.weights, like(copied.model))


def test_attention_with_other_key_and_value_sizes() -> None:
    model = filled(nn.MultiheadAttention(6, 2, kdim=4, vdim=3, batch_first=True))
    inputs = [np.random.default_rng(0).standard_normal((2, 5, size)) for size in (6, 4, 3)]
    layer = linen.MultiHeadDotProductAttention(2, param_dtype=F64, qkv_features=6, out_features=6)
    port = copy_weights(model, make_linen(layer, *inputs)).model
    close(run(port, *inputs), model(*map(torch.from_numpy, inputs))[0].detach().numpy())


class Recurrent(nnx.Module):
    def __init__(self, cell: Any, sizes: list[int], bidirectional: bool) -> None:
        def rnn(inputs: int, reverse: bool) -> nnx.RNN:
            made = cell(inputs, sizes[1], dtype=F64, param_dtype=F64, rngs=nnx.Rngs(0))
            return nnx.RNN(made, rngs=nnx.Rngs(0))

        def layer(inputs: int) -> nnx.Module:
            if bidirectional:
                return nnx.Bidirectional(rnn(inputs, False), rnn(inputs, True), rngs=nnx.Rngs(0))
            return rnn(inputs, False)

        self.layers = nnx.List([layer(sizes[0]), layer(sizes[1] * (1 + bidirectional))])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class LinenRecurrent(linen.Module):
    cell: Any
    size: int
    bidirectional: bool

    @linen.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            forward = linen.RNN(self.cell(self.size, param_dtype=F64))
            if self.bidirectional:
                x = linen.Bidirectional(forward, linen.RNN(self.cell(self.size, param_dtype=F64)))(x)
            else:
                x = forward(x)
        return x


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "SimpleCell", "GRUCell"])
@pytest.mark.parametrize("of", ["nnx", "linen"])
def test_recurrent_networks(of: str, cell: str, bidirectional: bool) -> None:
    kind = {"G": nn.GRU, "S": nn.RNN}.get(cell[0], nn.LSTM)
    model = filled(kind(3, 4, num_layers=2, bidirectional=bidirectional, batch_first=True))
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = model(torch.from_numpy(x))[0].detach().numpy()
    if of == "linen":
        port = make_linen(LinenRecurrent(getattr(linen, cell), 4, bidirectional), x)
    else:
        port = make_nnx(lambda: Recurrent(getattr(nnx, cell), [3, 4], bidirectional))
    if (of, cell) == ("nnx", "GRUCell"):
        # It has no bias inside the reset gate's product, so that it cannot be what torch's is.
        with pytest.raises(InputError, match=r"bias_hh_l0\[8:12\] \(4,\)"):
            copy_weights(model, port)
        # The message names the parts of torch's tensors, and None leaves them out.
        _, links = copy_weights(model, port, weights={r"bias_hh_l\d(_reverse)?[8:]": None})
        assert set(links.apart) == {f"{name}[8:12]" for name in model.state_dict() if name.startswith("bias_hh")}
        return
    port, links = copy_weights(model, port)
    close(run(port, x), expected)
    # Biases that add up: JAX's is their sum, and nothing of it is lost on the way to torch and back.
    assert any(link.adds for link in links)
    there = to_jax(links, arrays(model), like(port))
    again = to_jax(links, to_torch(links, there, arrays(model)), like(port))
    assert all(np.array_equal(again[name], there[name]) for name in there)


def test_equinox_recurrent_cells() -> None:
    x, h, c = (np.random.default_rng(0).standard_normal(size) for size in (3, 4, 4))
    lstm, gru = filled(nn.LSTMCell(3, 4)), filled(nn.GRUCell(3, 4))
    ports = [make_equinox(partial(kind, 3, 4, key=jax.random.key(0))) for kind in (eqx.nn.LSTMCell, eqx.nn.GRUCell)]
    mine = lstm(torch.from_numpy(x), (torch.from_numpy(h), torch.from_numpy(c)))
    for ours, theirs in zip(given_weights(lstm, ports[0])(x, (h, c)), mine, strict=True):
        close(ours, theirs.detach().numpy())
    close(given_weights(gru, ports[1])(x, h), gru(torch.from_numpy(x), torch.from_numpy(h)).detach().numpy())


class Mlp(nnx.Module):
    """Its features are flattened as Flax has them, channels last."""

    def __init__(self, size: tuple[int, ...], points: int) -> None:
        self.conv = conv(nnx, 2, 3, size, padding="SAME")
        self.bn = norm(nnx, "BatchNorm", 3, use_running_average=True)
        self.fc1, self.fc2 = dense(nnx, 3 * points, 4), dense(nnx, 4, 4)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.bn(self.conv(x)))
        return self.fc2(nnx.relu(self.fc1(x.reshape(len(x), -1))))


@pytest.mark.parametrize(
    ("shape", "seen"), [((4, 4), False), ((4, 4), True), ((4, 5), True), ((7,), False), ((2, 3, 4), True)]
)
def test_linear_after_a_flattened_convolution(shape: tuple[int, ...], seen: bool) -> None:
    n, points = len(shape), math.prod(shape)
    model = filled(
        nn.Sequential(
            getattr(nn, f"Conv{n}d")(2, 3, (3,) * n, padding=1),
            getattr(nn, f"BatchNorm{n}d")(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * points, 4),
            nn.ReLU(),
            nn.Linear(4, 4),
        )
    )
    x = np.random.default_rng(0).standard_normal((2, 2, *shape))
    port, links = copy_weights(model, make_nnx(lambda: Mlp((3,) * n, points)), inputs=x if seen else None)
    close(run(port, to_last(x)), model(torch.from_numpy(x)).detach().numpy())
    assert [link.torch_view.shape for link in links if link.torch == "4.weight"] == [(4, 3, *shape)]
    assert not model.training
    assert bool(links.notes) is not seen  # a square is concluded, and said; a run has seen it


def test_flattened_features_of_unknown_height_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 20, 4))
    port = make_nnx(lambda: nnx.Sequential(conv(nnx, 2, 3, (3, 3)), dense(nnx, 60, 4)))
    with pytest.raises(
        InputError, match=r"2\.weight \(4, 60\) .*\n.* 3 channels of 20 points.*\n.*copy_weights\(inputs="
    ):
        copy_weights(model, port)
    links = find_links(torch_layers(model), nnx_layers(port), {"2.weight": "layers/1/kernel"})
    assert links[2].jax_view == View(axes=(1, 0))  # as the user says, row by row


def test_equinox_flattens_as_torch_does() -> None:
    model = filled(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)))

    def build() -> Any:
        key = jax.random.key(0)
        return eqx.nn.Sequential(
            [eqx.nn.Conv2d(2, 3, 3, key=key), eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(12, 4, key=key)]
        )

    port = make_equinox(build)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
    close(run(given_weights(model, port), x[0]), model(torch.from_numpy(x)).detach().numpy()[0])


def test_haiku() -> None:
    def forward(x: Array) -> Array:
        x = hk.LayerNorm(-1, True, True, eps=1e-5)(jax.nn.relu(hk.Linear(4)(x)))
        return hk.nets.MLP([4, 4, 2])(x)

    model = filled(
        nn.Sequential(
            *(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()),
            nn.Linear(4, 2),
        )
    )
    x = np.random.default_rng(0).standard_normal((3, 4))
    port: Any = hk.without_apply_rng(hk.transform(forward))
    params = port.init(jax.random.key(0), x)
    weights = {"0": "linear", r"3\.(.*)": r"mlp/~/linear_0/\1", r"5": r"mlp/~/linear_1"}
    with pytest.raises(InputError, match="which is which"):
        given_weights(model, params)
    with pytest.raises(InputError, match="did you mean 'mlp/~/linear_0/w'"):
        given_weights(model, params, weights)
    weights = {"0": "linear", "3": "mlp/~/linear_0", "5": "mlp/~/linear_1"}
    close(port.apply(given_weights(model, params, weights), x), model(torch.from_numpy(x)).detach().numpy())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.embed(x))))


class TiedPort(linen.Module):
    tied: bool

    @linen.compact
    def __call__(self, x: Array) -> Array:
        embed = linen.Embed(7, 4, name="embed", param_dtype=F64)
        x = jnp.tanh(linen.Dense(4, name="body", param_dtype=F64)(embed(x)))
        if self.tied:
            return embed.attend(x) + self.param("head_bias", lambda _: jnp.zeros(7))
        return linen.Dense(7, name="head", param_dtype=F64)(x)


def test_tied_weights() -> None:
    model, tokens = filled(Tied()), np.array([[1, 6], [2, 0]])
    expected = model(torch.from_numpy(tokens)).detach().numpy()
    # JAX keeps two: each name has its own.
    port, links = copy_weights(model, make_linen(TiedPort(False), tokens))
    assert {link.torch: link.jax for link in links if "weight" in link.torch and "body" not in link.torch} == {
        "embed.weight": "embed/embedding",
        "head.weight": "head/kernel",
    }
    close(run(port, tokens), expected)
    # JAX has one: both names are it. The bias of the head is called otherwise, alone of its shape.
    port, links = copy_weights(model, make_linen(TiedPort(True), tokens), {"head.bias": "head_bias"})
    assert [link.torch for link in links if link.jax == "embed/embedding"] == ["embed.weight", "head.weight"]
    close(run(port, tokens), expected)
    round_trip(model, links, like(port))


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(size, eps=1e-6), nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class NnxBlock(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs) -> None:
        self.down, self.up = (nnx.Linear(size, size, param_dtype=F64, rngs=rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(size, param_dtype=F64, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.down(jnp.tanh(self.up(self.norm(x))))


class Scanned(nnx.Module):
    def __init__(self) -> None:
        self.first = dense(nnx, 4, 4)
        self.blocks = nnx.vmap(lambda key: NnxBlock(4, nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 3))

    def __call__(self, x: Array) -> Array:
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            self.first(x), self.blocks
        )


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:
        hidden = jnp.tanh(linen.Dense(4, name="up", param_dtype=F64)(linen.LayerNorm(param_dtype=F64)(x)))
        return x + linen.Dense(4, name="down", param_dtype=F64)(hidden), None


class LinenScanned(linen.Module):
    @linen.compact
    def __call__(self, x: Array) -> Array:
        blocks = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return blocks()(linen.Dense(4, param_dtype=F64)(x), None)[0]


@pytest.mark.parametrize("of", ["nnx", "linen"])
def test_stacked_layers(of: str) -> None:
    model = filled(nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(Block(4) for _ in range(3)))))
    x = np.random.default_rng(0).standard_normal((2, 4))
    port = make_nnx(Scanned) if of == "nnx" else make_linen(LinenScanned(), x)
    port, links = copy_weights(model, port)
    close(run(port, x), model(torch.from_numpy(x)).detach().numpy())
    round_trip(model, links, like(port))
    assert [link.jax_view.index for link in links if link.torch.endswith("up.weight")] == [(0,), (1,), (2,)]
    assert "has 3 layers along its first axis" in str(links)


def test_stacked_arrays_of_a_dictionary_are_named_as_layers_of_torch() -> None:
    """Arrays of equal shapes, which a plain scan takes: the index along the first axis is the layer's number."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
            self.down = nn.Linear(6, 4, bias=False)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Residual() for _ in range(3))

    shapes = {"gate": (3, 4, 6), "up": (3, 4, 6), "down": (3, 6, 4)}
    links = find_links(
        torch_layers(Deep()), pytree_layers({"layers": {name: jnp.zeros(shape) for name, shape in shapes.items()}})
    )
    assert {(link.torch, link.jax, link.jax_view.index[0]) for link in links} == {
        (f"layers.{at}.{name}.weight", f"layers/{name}", at) for at in range(3) for name in shapes
    }
