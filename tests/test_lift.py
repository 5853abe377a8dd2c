"""Float64 that is float64, whatever precision the user's code asks for; each case fails without the lift."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.jax_side.lift import lift
from compare.jax_side.lift_modules import lift_nnx, lifted_linen
from compare.numerics.constants import restored
from compare.torch_side.control import ControlledRun

ROUNDING = 1e-15
X = np.random.default_rng(0).normal(size=(4, 8))
W = np.random.default_rng(1).normal(size=(8, 8))


def distance(a: Any, b: Any) -> float:
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64) for tree in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# Constants


@given(st.integers(-999_999, 999_999), st.integers(-20, 12))
def test_short_decimals_are_restored(digits: int, exponent: int) -> None:
    meant = float(f"{digits}e{exponent}")
    found = restored(np.array(np.float32(meant)))
    # 12.625e-3 is the float32 number of no shorter decimal, but may equal a short binary fraction, or an integer.
    assert found is not None
    assert found == meant or abs(found - np.float32(meant)) == 0


@pytest.mark.parametrize("meant", [1e-6, 1e-5, 1e-12, 0.1, 0.044715, 0.02, 1.702, 1 / 3, 1 / 49, 2**-0.5, np.pi])
def test_constants_are_restored(meant: float) -> None:
    rounded = np.float32(meant)
    assert restored(np.array([rounded, -rounded])) == pytest.approx([meant, -meant], rel=2e-16, abs=0)
    assert float(rounded) != meant


def test_a_constant_of_seven_digits_that_is_none() -> None:
    assert str(np.float32(np.sqrt(2 / np.pi))) == "0.7978846"  # and yet it is not 0.7978846
    assert restored(np.array(np.float32(np.sqrt(2 / np.pi)))) == np.sqrt(2 / np.pi)


@pytest.mark.parametrize(
    "exact", [0.0, 1.0, -0.5, 2.0**-20, 3.0, 1e9, np.inf, np.finfo(np.float32).min, 16777216.0, 0.375]
)
def test_what_is_exact_stays(exact: float) -> None:
    assert restored(np.array(exact)) == exact


def test_bfloat16_is_restored() -> None:
    assert restored(np.array(0.10009765625), "bfloat16") == 0.1
    assert restored(np.array(0.10009765625), "float16") is None


def test_what_means_nothing_cannot_be_told() -> None:
    drawn = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    mistaken = [value for value in drawn if restored(value) is not None]
    assert len(mistaken) < 60  # one in thirty is a decimal of six digits by accident
    assert restored(drawn) is None
    assert restored(drawn[:20]) is None
    assert restored(np.tril(np.full((100, 100), -1e9, np.float32))) is not None


# PyTorch


def autocast(f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.autocast("cpu", dtype=torch.bfloat16)(f)


TORCH: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    # What the user wrote, and what it means.
    "float": (lambda x, w: (x @ w).float() * 0.1, lambda x, w: (x @ w) * 0.1),
    "to": (lambda x, w: (x @ w).to(torch.bfloat16).to(torch.float32), lambda x, w: x @ w),
    "half": (lambda x, w: (x.half() + 1e-3).float() @ w.float(), lambda x, w: (x + 1e-3) @ w),
    "softmax": (
        lambda x, w: torch.softmax(x @ w, -1, dtype=torch.float32),
        lambda x, w: torch.softmax(x @ w, -1),
    ),
    "sum": (lambda x, w: (x @ w).sum(-1, dtype=torch.float32), lambda x, w: (x @ w).sum(-1)),
    "autocast": (autocast(lambda x, w: torch.nn.functional.linear(x, w)), lambda x, w: x @ w.T),
    "full": (lambda x, w: x @ w * torch.full((8,), 0.1, dtype=torch.float32), lambda x, w: x @ w * 0.1),
    "tensor": (lambda x, w: x @ w * torch.tensor([0.1], dtype=torch.float32), lambda x, w: x @ w * 0.1),
    "default dtype": (
        lambda x, w: x @ w * torch.linspace(0, 1, 8) + torch.tensor(0.3),
        lambda x, w: x @ w * torch.linspace(0, 1, 8, dtype=torch.float64) + 0.3,
    ),
    "integers": (
        lambda x, w: x @ w * (torch.arange(8) / 7) + torch.ones(8, dtype=torch.bool).float() / 3,
        lambda x, w: x @ w * (torch.arange(8, dtype=torch.float64) / 7) + 1 / 3,
    ),
    "complex": (
        lambda x, w: torch.fft.fft((x @ w).to(torch.complex64)).real,
        lambda x, w: torch.fft.fft(x @ w).real,
    ),
}


def torch_gradients(f: Callable[..., torch.Tensor]) -> list[np.ndarray]:
    x, w = (torch.tensor(array, requires_grad=True) for array in (X, W))
    output = f(x, w)
    output.square().sum().backward()
    return [tensor.detach().numpy() for tensor in (output, x.grad, w.grad) if tensor is not None]


@pytest.mark.parametrize("name", TORCH)
def test_torch(name: str) -> None:
    written, meant = TORCH[name]
    with ControlledRun(lift=True) as run:
        lifted = torch_gradients(written)
    assert {array.dtype for array in lifted} == {np.dtype(np.float64)}
    assert distance(lifted, torch_gradients(meant)) < ROUNDING
    assert run.pinned == []
    if name != "autocast":  # it leaves float64 alone in any case
        assert distance(torch_gradients(written), torch_gradients(meant)) > 1e-10


def test_torch_is_left_as_it_was() -> None:
    with ControlledRun(lift=True):
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), ControlledRun(lift=True):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).dtype == torch.float32
    with ControlledRun():
        assert torch.zeros(1).dtype == torch.float32


def test_torch_names_what_was_rounded_before() -> None:
    table, mask, cache = torch.sin(torch.arange(8.0)), torch.full((8,), -1e4), torch.zeros(4, 8)

    def forward(x: torch.Tensor) -> torch.Tensor:
        cache[:2].copy_(x[:2])
        return x * table + mask + cache

    with ControlledRun(lift=True, where=lambda: "encoder.0") as run:
        output = forward(torch.tensor(X))
    assert output.dtype == torch.float64
    assert run.pinned == [
        "a tensor of shape (2, 8), float32, that is written to, in encoder.0",
        "a constant of shape (8,), float32, in encoder.0",
        "a constant of shape (4, 8), float32, in encoder.0",
    ]
    assert torch.equal(cache[:2], torch.tensor(X[:2]).float())  # it is still the same tensor


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_torch_runs_a_compiled_model_as_it_is_written() -> None:
    compiled = torch.compile(lambda x: x.float() * 0.1, backend="eager")
    with ControlledRun(lift=True):
        assert torch.equal(compiled(torch.tensor(X)), torch.tensor(X) * 0.1)


# JAX


def run_jax(f: Callable[..., Any], *args: np.ndarray, lifted: bool = True) -> tuple[Any, list[str]]:
    pinned: list[str] = []
    with jax.enable_x64(True):
        output = jax.jit(lift(f, pinned) if lifted else f)(*map(jnp.asarray, args))
    return output, pinned


def convolution(w: Any, dtype: Any) -> Any:
    return jax.lax.conv(w[None, None].astype(dtype), jnp.full((1, 1, 3, 3), 0.1, dtype), (1, 1), "SAME")


def scatter(x: Any, dtype: Any) -> Any:
    rows = jnp.array([0, 1, 0])
    added = jnp.zeros((4, 8), dtype).at[rows].add(x[:3].astype(dtype))
    return added + jnp.zeros((4, 8), dtype).at[1].max(jnp.asarray(0.1, dtype))


def scan(x: Any, dtype: Any) -> Any:
    return jax.lax.scan(lambda c, row: (jnp.tanh(c * 0.3 + row.astype(dtype)), c.sum()), jnp.zeros(8, dtype), x)


def while_loop(x: Any, dtype: Any) -> Any:
    start = (0, x.astype(dtype))
    return jax.lax.while_loop(lambda state: state[0] < 5, lambda state: (state[0] + 1, state[1] * 0.7), start)[1]


def branches(x: Any, dtype: Any) -> Any:
    return jax.lax.cond(x[0, 0] > 0, lambda y: y * 0.1, lambda y: y * 0.3, x.astype(dtype))


def activations(x: Any, dtype: Any) -> Any:
    y = x.astype(dtype)
    rematerialized = jax.checkpoint(lambda y: jnp.sin(y) * jax.nn.silu(y))(y)
    return jax.nn.relu(y).sum() + jax.nn.gelu(y).sum() + rematerialized.sum() + jax.nn.softmax(y).std()


JAX: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "literal": (lambda x, dtype: x.astype(dtype) * 1e-6 + 0.3, X),
    "numpy scalar": (lambda x, dtype: x * np.dtype(dtype).type(0.1), X),
    "numpy array": (lambda x, dtype: x @ np.tril(np.full((8, 8), 0.1)).astype(dtype), X),
    "product": (lambda w, dtype: jax.lax.dot(w.astype(dtype), w.astype(dtype), preferred_element_type=dtype), W),
    "convolution": (convolution, W),
    "scatter": (scatter, X),
    "reduction": (lambda x, dtype: jax.lax.reduce(x.astype(dtype), np.dtype(dtype).type(1), jax.lax.mul, (0,)), X),
    "solve": (lambda w, dtype: jnp.linalg.solve(w.astype(dtype), jnp.ones(8, dtype)), W),
    "fft": (lambda w, dtype: jnp.fft.fft2(w.astype(dtype)).real, W),
    "gradient": (jax.value_and_grad(activations), X),
    "gradient of a scan": (jax.value_and_grad(lambda x, dtype: scan(x, dtype)[0].sum()), X),
    "scan": (scan, X),
    "while": (while_loop, X),
    "cond": (branches, X),
    "pooling": (
        jax.value_and_grad(lambda w, dtype: linen.max_pool(w.astype(dtype)[..., None], (2,), (2,)).sum()),
        W,
    ),
}


@pytest.mark.parametrize("name", JAX)
def test_jax(name: str) -> None:
    f, array = JAX[name]
    lifted, pinned = run_jax(lambda x: f(x, jnp.float32), array)
    meant, _ = run_jax(lambda x: f(x, jnp.float64), array, lifted=False)
    low, _ = run_jax(lambda x: f(x, jnp.float32), array, lifted=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(lifted)} == {np.dtype(np.float64)}
    assert distance(lifted, meant) < ROUNDING
    assert distance(low, meant) > 1e-9
    assert pinned == []


def test_jax_bfloat16_and_algorithms() -> None:
    def product(w: Any) -> Any:
        contracted = (((1,), (0,)), ((), ()))
        preset = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
        low = jax.lax.dot_general(w.astype(jnp.float32), w.astype(jnp.float32), contracted, precision=preset)
        return low + (w.astype(jnp.bfloat16) * 0.1).astype(jnp.float16)

    lifted, pinned = run_jax(product, W)
    assert distance(lifted, W @ W + W * 0.1) < ROUNDING
    assert pinned == []


def test_jax_gradient_at_a_tie_survives() -> None:
    def relu(x: Any) -> Any:
        return jax.nn.relu(x.astype(jnp.float32)).sum()

    def maximum(x: Any) -> Any:
        return jnp.maximum(x.astype(jnp.float32), 0).sum()

    assert run_jax(jax.grad(relu), np.zeros(3))[0].tolist() == [0, 0, 0]
    assert run_jax(jax.grad(maximum), np.zeros(3))[0].tolist() == [0.5, 0.5, 0.5]


def test_jax_integers_keys_and_bits_are_left_alone() -> None:
    def f(x: Any) -> Any:
        key = jax.random.key(3)
        uniform = jax.random.uniform(key, (4,), jnp.float32)
        return x.astype(jnp.int8), x > 0, key, jax.random.bits(key, (2,)), uniform

    lifted, _ = run_jax(f, X)
    meant, _ = run_jax(f, X, lifted=False)
    assert [leaf.dtype for leaf in lifted[:4]] == [leaf.dtype for leaf in meant[:4]]
    lifted, meant = ([*out[:2], jax.random.key_data(out[2]), *out[3:]] for out in (lifted, meant))
    assert [np.array_equal(a, b) for a, b in zip(lifted, meant, strict=True)] == [True] * 5


def test_jax_traces_in_float32_what_mixes_precisions() -> None:
    def f(x: Any) -> Any:  # the carry is float32, what is added is not
        return jax.lax.scan(lambda c, row: (jnp.tanh(c * 0.3 + row), c.sum()), jnp.zeros(8, jnp.float32), x)

    lifted, pinned = run_jax(jax.value_and_grad(lambda x: f(x)[0].sum()), X)
    meant, _ = run_jax(jax.value_and_grad(lambda x: scan(x, jnp.float64)[0].sum()), X, lifted=False)
    assert distance(lifted, meant) < ROUNDING
    assert len(pinned) == 1
    assert pinned[0].startswith(
        "the JAX side was traced in float32, which rounds its constants, because in float64 JAX"
    )
    assert "carry" in pinned[0]


def test_jax_names_what_cannot_be_lifted() -> None:
    table = np.sin(np.arange(8.0)).astype(np.float32)

    def f(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return x * table + jax.pure_callback(lambda y: np.asarray(y) * 2, shape, x.astype(jnp.float32))

    lifted, pinned = run_jax(f, X)
    assert lifted.dtype == np.float64
    assert sorted(pinned) == [
        "a constant of shape (8,) in the JAX side's program, rounded to float32",
        "pure_callback, which computes in the precision that it was written for",
    ]


def test_jax_user_error_is_the_users() -> None:
    with pytest.raises(ValueError, match="Incompatible shapes"):
        run_jax(lambda x: x + jnp.ones(3), X)


# Flax


class Compact(linen.Module):
    dtype: Any = jnp.float32

    @linen.compact
    def __call__(self, x: Any) -> Any:
        assert x.dtype == jnp.float64
        x = linen.Dense(8, dtype=self.dtype)(x)
        return linen.gelu(linen.LayerNorm(dtype=jnp.float32)(x))


class Setup(linen.Module):
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.inner = Compact(dtype=self.dtype)
        self.scale = self.param("scale", linen.initializers.normal(), (8,), jnp.float32)

    def __call__(self, x: Any) -> Any:
        return self.inner(x) * jnp.asarray(self.scale, self.dtype)


@pytest.mark.parametrize("make", [Compact, Setup])
def test_linen_is_traced_in_float64(make: type[linen.Module]) -> None:
    module: Any = make()
    pinned: list[str] = []
    with jax.enable_x64(True):
        variables = module.init(jax.random.key(0), X)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        plain = module.apply(variables, X)
        with lifted_linen():
            inside = jax.make_jaxpr(module.apply)(variables, X)
        lifted = jax.jit(lift(module.apply, pinned))(variables, X)
    assert plain.dtype == jnp.float32
    assert "f32" not in str(inside).replace("dtype=float32", "")
    assert lifted.dtype == jnp.float64
    assert pinned == []
    assert module.dtype is jnp.float32


def test_nnx_is_lifted() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.LayerNorm(8, dtype=jnp.float32, rngs=nnx.Rngs(0))
            self.cells = nnx.List([nnx.RNN(nnx.LSTMCell(8, 8, dtype=jnp.float32, rngs=nnx.Rngs(0)))])

        def __call__(self, x: Any) -> Any:
            return jax.nn.gelu(self.cells[0](self.norm(x)))

    model: Any = Model()
    pinned: list[str] = []
    copied = nnx.clone(model)
    lift_nnx(copied)
    graph, state = nnx.split(copied)

    def f(state: Any, x: Any) -> Any:
        return nnx.merge(graph, state)(x)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
        output = jax.jit(lift(f, pinned))(wide, jnp.asarray(X[None]))
        assert f(wide, jnp.asarray(X[None])).dtype == jnp.float64
    assert output.dtype == jnp.float64
    assert pinned == []
    assert model.norm.dtype == jnp.float32
    assert model.cells[0].cell.param_dtype == jnp.float32


@pytest.mark.parametrize("name", [pytest.param("GPT2", marks=pytest.mark.slow), "Bert"])
def test_models_of_a_hub(name: str) -> None:
    """Linen models that are float32 through and through, against their originals: logits, loss and gradients."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
    size = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 4}
    if name == "Bert":
        size = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        size |= {"intermediate_size": 64, "max_position_embeddings": 16}
    config = getattr(transformers, f"{name}Config")(**size)
    head = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM"}[name]
    torch.manual_seed(0)
    original = getattr(transformers, f"{name}{head}")(config).eval()
    port = getattr(transformers, f"Flax{name}{head}")(config)
    params = convert_pytorch_state_dict_to_flax(original.state_dict(), port)
    # Without 0: torch's BERT gives the padding token's embedding no gradient.
    tokens = np.random.default_rng(0).integers(1, 50, (2, 7))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])

    original.double()
    with ControlledRun(lift=True) as run:
        logits = original(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens).flatten())
        loss.backward()

    def step(params: Any) -> Any:
        def compute(params: Any) -> Any:
            positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
            rest = {"head_mask": None, "token_type_ids": jnp.zeros_like(tokens)} if name == "Bert" else {}
            out = port.module.apply({"params": params}, tokens, mask, position_ids=positions, **rest).logits
            return -jnp.take_along_axis(jax.nn.log_softmax(out), tokens[..., None], -1).mean(), out

        return jax.value_and_grad(compute, has_aux=True)(params)

    pinned: list[str] = []
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        (jax_loss, jax_logits), gradients = jax.jit(lift(step, pinned))(wide)
        low = jax.jit(step)(wide)[0][1]
    path = ("transformer", "wte") if name == "GPT2" else ("bert", "embeddings", "word_embeddings")
    assert (pinned, run.pinned) == ([], [])
    assert distance(jax_logits, logits.detach()) < ROUNDING
    assert distance(low, logits.detach()) > 1e-8
    assert distance(jax_loss, loss.detach()) < ROUNDING
    found = gradients
    for part in path:
        found = found[part]
    gradient = original.get_parameter(".".join((*path, "weight"))).grad
    assert distance(found["embedding"], gradient) < ROUNDING


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(["relu", "gelu", "tanh", "norm", "dense"]), min_size=1, max_size=6), st.integers(0, 99))
def test_random_programs_are_the_same_in_float64(layers: list[str], seed: int) -> None:
    """A function written in float32 and lifted is the function written in float64, and so is its gradient."""
    w = np.random.default_rng(seed).normal(size=(8, 8)) / 3

    def f(x: Any, w: Any, dtype: Any) -> Any:
        x = x.astype(dtype)
        for layer in layers:
            if layer == "dense":
                x = x @ w.astype(dtype)
            elif layer == "norm":
                x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            else:
                x = getattr(jax.nn, layer)(x)
        return (x * w.astype(dtype)[:4]).sum()

    lifted, pinned = run_jax(jax.value_and_grad(lambda x, w: f(x, w, jnp.float32), (0, 1)), X, w)
    meant, _ = run_jax(jax.value_and_grad(lambda x, w: f(x, w, jnp.float64), (0, 1)), X, w, lifted=False)
    assert pinned == []
    assert distance(lifted, meant) < 1e-12  # a sum over terms of both signs
