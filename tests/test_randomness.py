"""Random numbers that torch draws are recorded, and replayed in both precisions and on the JAX side."""

import copy
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from compare.errors import NondeterministicError
from compare.jax_side.draw_matching import match
from compare.jax_side.lift import lift
from compare.jax_side.replay import replayable, replaying
from compare.step.draws import Draw, Site
from compare.step.layouts import draw_layouts
from compare.torch_side.control import ControlledRun

X = np.random.default_rng(0).normal(size=(3, 5, 8))
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


# Torch against itself: recorded in float32, replayed in float64

MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, tuple[int, ...]]]]] = {
    # A module on X, and what it draws.
    "Dropout": (lambda: nn.Dropout(0.3), [("bernoulli", (3, 5, 8))]),
    "in place": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3, inplace=True)), [("bernoulli", (3, 5, 8))]),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), [("bernoulli", (3, 5, 1))]),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.3), [("bernoulli", (3, 5, 8))]),
    "RReLU": (lambda: nn.Sequential(nn.Linear(8, 8), nn.RReLU(inplace=True)), [("rrelu_with_noise", (3, 5, 8))]),
    "LSTM": (lambda: nn.LSTM(8, 6, 2, dropout=0.3), [("bernoulli", (3, 5, 6))]),
    "GRU": (lambda: nn.GRU(8, 6, 3, dropout=0.3, batch_first=True), [("bernoulli", (5, 3, 6))] * 2),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True),
        [("bernoulli", shape) for shape in ((3, 2, 5, 5), (3, 5, 8), (3, 5, 16), (3, 5, 8))],
    ),
}

FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[tuple[str, tuple[int, ...]]]]] = {
    "none": (lambda x: F.dropout(x, 0.5, training=False) + F.dropout(x, 0.0), []),
    "native dropout": (lambda x: torch.native_dropout(x, 0.3, True)[0], [("bernoulli", (3, 5, 8))]),
    "gumbel": (lambda x: F.gumbel_softmax(x), [("exponential", (3, 5, 8))]),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
        # From PyTorch 2.14 on, three dimensions are four, of which the first has length one.
        [("bernoulli", (3, 5, 5) if TORCH < (2, 14) else (1, 3, 5, 5))],
    ),
    "normal": (
        lambda x: x + torch.normal(2.0, 3.0, (8,)) + torch.normal(x.detach(), 0.5) + torch.randn_like(x),
        [("normal", (8,)), ("normal", (3, 5, 8)), ("normal", (3, 5, 8))],
    ),
    "uniform": (
        lambda x: x * torch.empty(8).uniform_(-0.3, 0.9) * torch.rand(8, dtype=torch.float32),
        [("uniform", (8,)), ("uniform", (8,))],
    ),
    "bernoulli": (
        lambda x: x * torch.bernoulli(torch.full((8,), 0.4)) * torch.bernoulli(x.detach(), 0.3),
        [("bernoulli", (8,)), ("bernoulli", (3, 5, 8))],
    ),
    "integers": (
        lambda x: x[torch.randperm(3)] * torch.randint(0, 5, (8,)) + torch.multinomial(torch.ones(8), 8),
        [("randperm", (3,)), ("randint", (8,)), ("race", (8,))],
    ),
    "other": (
        lambda x: x * torch.poisson(torch.ones(8)) + torch.empty(8).random_(0, 5) + torch.empty(8).exponential_(3.0),
        [("poisson", (8,)), ("randint", (8,)), ("exponential", (8,))],
    ),
    "out": (lambda x: x + torch.rand(8, out=torch.empty(8, dtype=x.dtype)), [("uniform", (8,))]),
}


def recorded_and_replayed(f32: Callable[..., Any], f64: Callable[..., Any]) -> tuple[list[Draw], Any, Any]:
    """Outputs and the input's gradients of the first run and of its repetition."""

    def run(f: Callable[..., Any], dtype: torch.dtype, controlled: ControlledRun) -> list[torch.Tensor]:
        x = torch.tensor(X, dtype=dtype, requires_grad=True)
        with controlled:
            output = f(x)
            output = output[0] if isinstance(output, tuple) else output
            weights = torch.arange(output.numel()).to(dtype).cos().reshape(output.shape)
            (output * weights).sum().backward()  # a plain sum is constant after a softmax, that of squares after a norm
        assert controlled.pinned == controlled.unrecorded == []
        assert x.grad is not None
        return [output.detach(), x.grad]

    torch.manual_seed(0)
    recorded = ControlledRun()
    first = run(f32, torch.float32, recorded)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = run(f64, torch.float64, ControlledRun(lift=True, replay=recorded.draws))
    assert torch.equal(torch.get_rng_state(), state)
    return recorded.draws, first, second


@pytest.mark.parametrize("name", [*MODELS, *FUNCTIONS])
def test_torch_repeats_itself_in_float64(name: str) -> None:
    if name in MODELS:
        make, expected = MODELS[name]
        f32: Callable[..., Any] = make().train()
        f64: Callable[..., Any] = copy.deepcopy(f32).double()  # type: ignore[attr-defined]
    else:
        f32, expected = FUNCTIONS[name]
        f64 = f32
    draws, first, second = recorded_and_replayed(f32, f64)
    assert [(draw.kind, draw.value.shape) for draw in draws] == expected
    for low, high in zip(first, second, strict=True):
        assert high.dtype == torch.float64
        assert torch.linalg.vector_norm(low - high) < 1e-6 * torch.linalg.vector_norm(high)


def test_recording_changes_nothing() -> None:
    layer, x = nn.Dropout(0.3), torch.tensor(X)
    torch.manual_seed(0)
    alone, state = layer(x), torch.get_rng_state()
    torch.manual_seed(0)
    with ControlledRun() as run:
        assert torch.equal(layer(x), alone)
    assert torch.equal(torch.get_rng_state(), state)
    draw = run.draws[0]
    assert draw.value.dtype == bool
    assert draw.parameters == pytest.approx((0.7,))
    np.testing.assert_array_equal(draw.value, alone.numpy() != 0)
    with ControlledRun() as run:
        torch.native_dropout(x, 0.3, True)
    assert run.draws[0].parameters == pytest.approx((0.7,))


def test_a_checkpoint_draws_again_in_the_backward_pass() -> None:
    def f(x: torch.Tensor) -> Any:
        return checkpoint(lambda x: F.dropout(x.sin(), 0.4), x, use_reentrant=False)

    draws, _, _ = recorded_and_replayed(f, f)
    assert [draw.backward for draw in draws] == [False, True]
    np.testing.assert_array_equal(draws[0].value, draws[1].value)
    assert len(replayable(draws, "float32")) == 1


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda: torch.rand(3), lambda: torch.rand(4), r"draw 0 was uniform \(3,\) .* is uniform \(4,\) .*, in head"),
        (lambda: torch.rand(3), lambda: torch.randn(3), r"draw 0 was uniform \(3,\) .* is normal \(3,\) in the second"),
        (lambda: torch.rand(3), lambda: None, r"1 times in the first run and 0 times in the second: uniform \(3,\)"),
        (lambda: None, lambda: torch.rand(3), r"0 times in the first run, and once more in the second: uniform \(3,\)"),
    ],
)
def test_other_draws_are_an_error(first: Callable[[], Any], second: Callable[[], Any], message: str) -> None:
    with ControlledRun() as recorded:
        first()
    with (
        pytest.raises(NondeterministicError, match=message),
        ControlledRun(replay=recorded.draws, where=lambda: "head"),
    ):
        second()


# JAX against torch


def bernoulli(x: Any, rate: float, key: Any) -> Any:
    return x * jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)


def block(x: Any, key: Any) -> Any:
    first, second = jax.random.split(key)
    return bernoulli(jnp.tanh(bernoulli(x, 0.3, first)), 0.2, second)


def blocks(apply: Callable[..., Any]) -> Callable[[Any], Any]:
    def f(x: Any) -> Any:
        for key in jax.random.split(jax.random.key(0), 3):
            x = apply(x, key)
        return x

    return f


def scanned(*, reverse: bool = False) -> Callable[[Any], Any]:
    def f(x: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 3)
        return jax.lax.scan(lambda x, key: (block(x, key), None), x, keys, reverse=reverse)[0]

    return f


def torch_blocks(x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = F.dropout(torch.tanh(F.dropout(x, 0.3)), 0.2)
    return x


def nnx_dropout(x: Any, rate: float = 0.3, **kwargs: Any) -> Any:
    return nnx.Dropout(rate, rngs=nnx.Rngs(0), **kwargs)(x)


def linen_dropout(x: Any) -> Any:
    return linen.Dropout(0.3, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})


def flax_attention(module: Any) -> Callable[[Any], Any]:
    def f(x: Any) -> Any:
        x = x.reshape(3, 5, 2, 4)
        options = {"dropout_rate": 0.3, "dropout_rng": jax.random.key(0), "broadcast_dropout": False}
        return module.dot_product_attention(x, x, x, **options).reshape(3, 5, 8)

    return f


def torch_attention(x: torch.Tensor) -> torch.Tensor:
    x = x.view(3, 5, 2, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3).transpose(1, 2).reshape(3, 5, 8)


def torch_merged_heads(x: torch.Tensor) -> torch.Tensor:
    """As in `nn.MultiheadAttention` with `need_weights`."""
    x = x.view(3, 5, 2, 4).transpose(1, 2).reshape(6, 5, 4)
    weights = F.dropout(F.softmax(x @ x.mT / 2, -1), 0.3)
    return (weights @ x).view(3, 2, 5, 4).transpose(1, 2).reshape(3, 5, 8)


def torch_dropout(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.3)


def torch_images(x: torch.Tensor) -> torch.Tensor:
    x = x.view(3, 5, 4, 2).permute(0, 3, 1, 2)  # NCHW
    return F.dropout2d(F.dropout(x, 0.3), 0.5).permute(0, 2, 3, 1).reshape(3, 5, 8)


def jax_images(x: Any) -> Any:
    return nnx_dropout(nnx_dropout(x.reshape(3, 5, 4, 2)), 0.5, broadcast_dims=(1, 2)).reshape(3, 5, 8)


def torch_distributions(x: torch.Tensor) -> torch.Tensor:
    x = x + torch.empty_like(x).normal_(2, 3) + torch.empty(8).uniform_(-1, 2)
    return x - torch.empty(8).exponential_(1).log() + torch.empty(8).exponential_(2) + torch.randint(0, 5, (8,))


def jax_distributions(x: Any) -> Any:
    key, random = jax.random.key(0), jax.random
    x = x + 2 + 3 * random.normal(key, x.shape) + random.uniform(key, (8,), minval=-1, maxval=2)
    return x + random.gumbel(key, (8,)) + random.exponential(key, (8,)) / 2 + random.randint(key, (8,), 0, 5)


def vmapped(x: Any) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.vmap(lambda x, key: eqx.nn.Dropout(0.3)(x, key=key))(x, keys)


jitted = jax.jit(block)

PORTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], Any]]] = {
    "nnx": (torch_dropout, nnx_dropout),
    "linen": (torch_dropout, linen_dropout),
    "equinox": (torch_dropout, lambda x: eqx.nn.Dropout(0.3)(x, key=jax.random.key(0))),
    "equinox, vmap": (torch_dropout, vmapped),
    "haiku": (torch_dropout, lambda x: hk.dropout(jax.random.PRNGKey(0), 0.3, x)),
    "nnx attention": (torch_attention, flax_attention(nnx)),
    "linen attention": (torch_attention, flax_attention(linen)),
    "heads merged": (torch_merged_heads, flax_attention(nnx)),
    "channels last": (torch_images, jax_images),
    "time first": (lambda x: F.dropout(x.transpose(0, 1), 0.3).transpose(0, 1), nnx_dropout),
    "permutation": (lambda x: x[torch.randperm(3)], lambda x: x[jax.random.permutation(jax.random.key(0), 3)]),
    "distributions": (torch_distributions, jax_distributions),
    "blocks": (torch_blocks, blocks(block)),
    "jit": (torch_blocks, blocks(jitted)),
    "checkpoint": (torch_blocks, blocks(jax.checkpoint(block))),
    "checkpoint of jit": (torch_blocks, blocks(jax.checkpoint(jitted))),
    "scan": (torch_blocks, scanned()),
    "scan backwards": (torch_blocks, scanned(reverse=True)),
    "scan in jit": (torch_blocks, jax.jit(scanned())),
}


def compared(
    original: Callable[[torch.Tensor], torch.Tensor], port: Callable[[Any], Any], *, unroll: bool = False
) -> tuple[list[float], list[str], list[str]]:
    """Relative differences in float32 and in float64, of outputs and gradients; unreplayed; guessed."""
    torch.manual_seed(0)
    draws: list[Draw] = []
    errors: list[float] = []
    unreplayed: list[str] = []
    guessed: list[str] = []
    for wide in (False, True):
        x = torch.tensor(X, dtype=torch.float64 if wide else torch.float32, requires_grad=True)
        with ControlledRun(lift=wide, replay=draws if wide else None) as run:
            expected = original(x)
            expected.square().sum().backward()
        draws = draws or run.draws
        unreplayed, guessed = [], []

        def step(x: Any, values: Any, unreplayed: list[str] = unreplayed, guessed: list[str] = guessed) -> Any:
            with jax.disable_jit(unroll):
                replayed = replaying(port, values, unreplayed, guessed)

                def loss(x: Any) -> Any:
                    output = replayed(x)
                    return (output**2).sum(), output

                return jax.value_and_grad(loss, has_aux=True)(x)

        with jax.enable_x64(wide):
            compiled = jax.jit(lift(step, []) if wide else step)
            (_, output), gradient = compiled(jnp.asarray(X, x.detach().numpy().dtype), replayable(draws, "float64"))
        assert x.grad is not None
        found = np.concatenate([np.ravel(output), np.ravel(gradient)])
        want = np.concatenate([expected.detach().numpy().ravel(), x.grad.numpy().ravel()])
        errors.append(float(np.linalg.norm(found - want) / np.linalg.norm(want)))
    return errors, unreplayed, guessed


@pytest.mark.parametrize("name", PORTS)
def test_jax_replays_torch(name: str) -> None:
    (error32, error64), unreplayed, guessed = compared(*PORTS[name])
    assert (unreplayed, guessed) == ([], [])
    assert error32 < 1e-6
    assert error64 < 1e-15


@pytest.mark.parametrize("name", ["nnx", "linen", "scan", "checkpoint"])
def test_jax_replays_torch_unrolled(name: str) -> None:
    """Under `jax.disable_jit`, as the engine traces what is to be seen layer by layer."""
    (error32, error64), unreplayed, _ = compared(*PORTS[name], unroll=True)
    assert unreplayed == []
    assert error32 < 1e-6
    assert error64 < 1e-15


def test_a_wrong_rate_shows() -> None:
    errors, unreplayed, _ = compared(torch_dropout, lambda x: nnx_dropout(x, 0.2))
    assert unreplayed == []
    assert 1 - 0.7 / 0.8 < errors[1] < 1 - (0.7 / 0.8) ** 2  # of the output, and of the gradient of its square


def test_a_wrong_order_shows() -> None:
    errors, unreplayed, _ = compared(
        torch_images,
        lambda x: nnx_dropout(nnx_dropout(x.reshape(3, 5, 4, 2), 0.5, broadcast_dims=(1, 2))).reshape(X.shape),
    )
    assert len(unreplayed) == 2
    assert errors[1] > 0.1


def broadcast(x: Any) -> Any:
    x = x.reshape(3, 5, 2, 4)
    return nnx.dot_product_attention(x, x, x, dropout_rate=0.3, dropout_rng=jax.random.key(0)).reshape(X.shape)


def conditional(x: Any) -> Any:
    def turn(x: Any, key: Any) -> Any:
        return jax.lax.cond(x[0, 0, 0] > 9, lambda x: x, lambda x: bernoulli(x, 0.3, key), x), None

    return jax.lax.scan(turn, x, jax.random.split(jax.random.key(0), 1))[0]


@pytest.mark.parametrize(
    ("original", "port", "message"),
    [
        (
            torch_attention,
            broadcast,
            r"bernoulli \(3, 2, 5, 5\) where JAX draws .* \(1, 1, 5, 5\).*broadcast_dropout=False",
        ),
        (lambda x: F.dropout(F.dropout(x, 0.3), 0.2), nnx_dropout, r"torch draws .* \(draw 1\), JAX does not"),
        (torch_dropout, lambda x: nnx_dropout(nnx_dropout(x)), r"JAX draws .* \(draw 1\), torch does not"),
        (torch_dropout, lambda x: x, r"torch draws .* \(draw 0\), JAX does not"),
        (torch_dropout, conditional, r"it is inside cond within scan"),
        (
            torch_dropout,
            lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
            r"different kinds of random numbers",
        ),
        (
            lambda x: x * torch.randint(0, 5, (8,)),
            lambda x: x * (jax.random.bits(jax.random.key(0), (8,)) % 5),
            r"not known what these random bits",
        ),
    ],
)
def test_what_cannot_be_replayed_is_named(
    original: Callable[[torch.Tensor], torch.Tensor], port: Callable[[Any], Any], message: str
) -> None:
    errors, unreplayed, _ = compared(original, port)
    assert errors[1] > 1e-3
    assert len(unreplayed) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(unreplayed[0])


def test_each_step_has_its_own_masks_without_compiling_again() -> None:
    traced = []

    def port(x: Any) -> Any:
        traced.append(x)
        return nnx_dropout(x)

    step = jax.jit(lambda x, values: replaying(port, values, [], [])(x))
    torch.manual_seed(0)
    for _ in range(3):
        with ControlledRun() as run:
            expected = torch_dropout(torch.tensor(X, dtype=torch.float32))
        found = step(jnp.asarray(X, jnp.float32), replayable(run.draws, "float32"))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert len(traced) == 1


# Where a draw goes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=4), st.booleans())
def test_layouts_lay_out(sizes: list[int], last: bool) -> None:
    """Each layout gives the wanted shape, no two the same array, and the true one is among them."""
    array = np.arange(np.prod(sizes)).reshape(sizes)
    true = np.moveaxis(array, 1, -1) if last else array
    found = [layout.to_jax(array) for layout in draw_layouts(array.shape, true.shape)]
    assert all(laid_out.shape == true.shape for laid_out in found)
    assert sum(np.array_equal(laid_out, true) for laid_out in found) == 1
    assert len({laid_out.tobytes() for laid_out in found}) == len(found)


def test_an_ambiguous_layout_follows_the_others() -> None:
    square, sites = Site("bernoulli", (2, 4, 4, 4)), [Site("bernoulli", (2, 4, 4, 4))]
    alone = match([square], sites)
    assert alone.placed[0] is not None
    assert alone.placed[0][1].name == "as it is"
    assert "fits the JAX side as it is or channels last" in alone.guessed[0]
    other = (Site("bernoulli", (2, 3, 4, 4)), Site("bernoulli", (2, 4, 4, 3)))
    both = match([square, other[0]], [*sites, other[1]])
    assert [placed[1].name for placed in both.placed if placed] == ["channels last"] * 2
    assert both.guessed == []


def test_what_one_side_lacks_does_not_shift_the_rest() -> None:
    a, b, c = (Site("bernoulli", (n, 7)) for n in (2, 3, 4))
    matching = match([a, b, c], [a, c])
    assert [placed and placed[0] for placed in matching.placed] == [0, 2]
    assert matching.unreplayed == ["torch draws bernoulli (3, 7) (draw 1), JAX does not"]
    assert match([], []).unreplayed == []
    assert match([], [a]).placed == [None]
