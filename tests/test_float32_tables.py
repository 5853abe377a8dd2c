"""Tables that were rounded to float32 before the comparison began: no mismatch, and no cover for a real one.

And programs that are others in float64 than in float32: a mask that float32 absorbs, integers of 32 bits.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st
from in_ci import first

import compare
from compare.numerics.products import product_movement
from compare.numerics.tables import half_units, movement

LENGTH, WIDTH = 6, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def positions(xp: Any, dtype: Any, base: float = 10000.0) -> Any:
    frequencies = xp.exp(xp.arange(WIDTH // 2, dtype=dtype) * -(math.log(base) / (WIDTH // 2)))
    angles = xp.arange(LENGTH, dtype=dtype)[:, None] * frequencies
    return xp.concatenate([xp.sin(angles), xp.cos(angles)], 1)


class Positions(torch.nn.Module):
    """Adds a table of positions: a buffer, or a tensor that is no buffer."""

    def __init__(self, how: str = "buffer", epsilon: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.out = torch.nn.LayerNorm(WIDTH, epsilon), torch.nn.Linear(WIDTH, 3)
        table = positions(torch, torch.float32)
        if how == "buffer":
            self.register_buffer("table", table)
        else:
            self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x + self.table[: x.shape[1]].to(x.dtype)))


class Port(nnx.Module):
    def __init__(self, table: Callable[[], Any], epsilon: float = 1e-5) -> None:
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, use_fast_variance=False, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0))
        self.table = table

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.norm(x + self.table()[: x.shape[1]]))


def in_jax() -> Any:
    return positions(jnp, jnp.float32)


def in_numpy() -> Any:
    return jnp.asarray(positions(np, np.float64).astype(np.float32))


def check(original: torch.nn.Module, port: Any, batches: Any = ((X, None),)) -> compare.Report:
    return compare.check(compare.Torch(original), compare.Flax(port), list(batches), device="cpu")


@pytest.mark.parametrize("how", ["buffer", "attribute"])
@pytest.mark.parametrize("table", [in_jax, in_numpy])
def test_a_table_in_float32_is_no_mismatch(how: str, table: Callable[[], Any]) -> None:
    report = check(Positions(how), Port(table))
    assert report.verdict == "precision", str(report)
    (note,) = report.notes
    assert note.name == "numbers rounded to float32"
    ours = (
        "the buffer table of shape (6, 8)" if how == "buffer" else "a tensor of shape (6, 8), test_float32_tables.py:"
    )
    assert ours in note.explanation
    assert ("a constant of shape (6, 8), test_float32_tables.py:" in note.explanation) == (table is in_numpy)


def scaled(table: Any) -> Any:
    return jnp.asarray(table * np.float32(1 + 1e-5))


def one_element(table: Any) -> Any:
    return table.at[3, 2].add(1e-4)


@pytest.mark.parametrize("fault", [scaled, one_element])
def test_a_fault_in_a_table_is_a_mismatch(fault: Callable[[Any], Any]) -> None:
    report = check(Positions(), Port(lambda: fault(in_numpy())))
    assert report.divergence is not None
    assert report.divergence.torch == "between the start of the model and norm"


def test_a_fault_behind_a_table_is_a_mismatch() -> None:
    report = check(Positions(), Port(in_jax, epsilon=1e-6), [(X, None), (X[::-1] ** 2, None)])
    assert report.divergence is not None
    assert report.divergence.torch == "norm"
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "epsilon"


class Last(torch.nn.Module):
    """Takes the last position of what has a table added to it."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3)
        self.register_buffer("table", positions(torch, torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.inner(x) + self.table)[:, -1])


class Mean(nnx.Module):
    def __init__(self) -> None:
        self.inner, self.out = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)), nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out((self.inner(x) + in_jax()).mean(1))


def test_a_cause_is_found_beside_a_table() -> None:
    """The table's rounding is left when the cause is mended: a change without a free number may leave as much."""
    report = check(Last(), Mean())
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None
    assert cause.name == "another reduction"
    assert "mean over axis 1" in cause.explanation


def test_another_base_is_a_mismatch() -> None:
    assert check(Positions(), Port(lambda: positions(jnp, jnp.float32, base=10001.0))).verdict == "mismatch"


def test_a_variable_of_the_port_is_a_table_as_well() -> None:
    class Keeping(Port):
        def __init__(self) -> None:
            super().__init__(lambda: self.kept[...])
            self.kept = nnx.Variable(in_numpy())

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(self.norm(x + self.kept[: x.shape[1]]))

    port = Keeping()
    exact = Positions("attribute")
    exact.table = positions(torch, torch.float64)
    report = check(exact, port)
    assert report.verdict == "precision", str(report)
    assert "on the flax side the buffer kept of shape (6, 8)" in report.notes[0].explanation


@pytest.mark.parametrize(("weights", "verdict"), [([0.3, 1 / 3, 0.7], "precision"), ([0.3, 0.3333, 0.7], "mismatch")])
def test_the_weights_of_classes_are_a_table_of_the_loss(weights: list[float], verdict: str) -> None:
    """They are a float32 buffer of torch's loss, and literals of the port."""
    rows, labels = X.reshape(-1, WIDTH), RNG.integers(0, 3, 2 * LENGTH)

    def loss(logits: Any, labels: Any) -> Any:
        each = jnp.asarray(weights)[labels]
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * each).sum() / each.sum()

    original = compare.Torch(
        torch.nn.Linear(WIDTH, 3), torch.nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1 / 3, 0.7]))
    )
    port = compare.Flax(nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0)), loss)
    report = compare.check(original, port, [(rows, labels)], device="cpu")
    assert report.verdict == verdict, str(report)
    if verdict == "precision":
        assert "the buffer loss.weight of shape (3,)" in report.notes[0].explanation


def test_complex_tables() -> None:
    angles = np.arange(LENGTH)[:, None] * 10000.0 ** -(np.arange(4) / 4)

    class Rotated(torch.nn.Module):
        turns: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(WIDTH, 3)
            self.register_buffer("turns", torch.polar(torch.ones(LENGTH, 4), torch.tensor(angles).float()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 4, 2))
            return self.out(torch.view_as_real(pairs * self.turns).flatten(-2))

    class RotatedPort(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            cosine, sine = jnp.cos(angles), jnp.sin(angles)
            even, odd = x[..., ::2], x[..., 1::2]
            turned = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
            return linen.Dense(3)(turned.reshape(x.shape))

    port = RotatedPort()
    report = check(Rotated(), (port, port.init(jax.random.key(0), X)))
    assert report.verdict == "precision", str(report)
    assert "the buffer turns" in report.notes[0].explanation


# How numbers are moved


def test_exact_numbers_are_not_moved() -> None:
    exact = np.array([0.0, 1.0, -0.5, 3.25, 1e10 / 3, np.pi, np.inf, np.nan])
    assert half_units(exact).tolist() == [0.0] * 8  # the two before the last are no float32 numbers
    assert half_units(np.array([0.1], np.float32)) == [np.spacing(np.float32(0.1)) / 2]


def test_equal_numbers_are_moved_alike() -> None:
    numbers = RNG.normal(size=50).astype(np.float32)
    both = movement(np.stack([numbers, numbers[::-1]]), 1)
    assert (both[0] == both[1][::-1]).all()
    assert 10 < (both[0] > 0).sum() < 40
    assert (np.abs(both[0]) == half_units(numbers)).all()
    assert (movement(numbers, 2) != both[0]).any()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 9))
def test_a_number_is_moved_in_each_draw_and_not_in_the_run_that_is_compared(number: float, draw: int) -> None:
    """One number alone shows its effect too, whatever the directions of the draws are."""
    assert movement(np.array([number]), 0) == 0
    assert abs(movement(np.array([number]), draw)) == half_units(np.array([number]))


class Scaled(torch.nn.Module):
    factor: torch.Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.out = torch.nn.Linear(8, 3)
        self.register_buffer("factor", torch.tensor([1.0, factor]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x[:, None] * self.factor[:, None]).mean(1))


class ScaledPort(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.out, self.factor = nnx.Linear(8, 3, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out((x[:, None] * jnp.array([1.0, self.factor])[:, None]).mean(1))


@pytest.mark.parametrize("factor", [0.1, 0.01, 0.001, 0.3])
def test_a_table_of_one_number_that_is_rounded(factor: float) -> None:
    """Such as the frequencies 1 and 0.01 of a small head's rotary positions."""
    x = RNG.normal(size=(5, 8)).astype(np.float32)
    assert check(Scaled(factor), ScaledPort(factor), [(x, None)]).verdict == "precision"


@pytest.mark.parametrize("length", [16, 256, 2048])
def test_a_table_of_sines_is_moved_as_its_angles_are_rounded(length: int) -> None:
    frequencies = 10000.0 ** -(np.arange(16) / 16)
    exact = np.sin(np.arange(length)[:, None] * frequencies + 0.3)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies.astype(np.float32) + np.float32(0.3)
    off = np.linalg.norm(np.sin(angles) - exact)
    assert 0.25 < off / np.linalg.norm(movement(exact.astype(np.float32), 1)) < 4
    shuffled = RNG.permutation(exact.ravel()).reshape(exact.shape).astype(np.float32)
    assert (np.abs(movement(shuffled, 1)) == half_units(shuffled)).all()


def noise(xp: Any, of: str, products: Any) -> Any:
    """What programs make of a diffusion's products of alphas."""
    variance = 1 - products
    return {
        "product": products,
        "signal": xp.sqrt(products),
        "root": xp.sqrt(variance),
        "ratio": products / variance,
    }[of]


@pytest.mark.parametrize("of", ["product", "signal", "root", "ratio"])
@pytest.mark.parametrize("length", [100, 1000, 4000])
def test_a_cumulative_product_is_moved_as_its_factors_are_rounded(of: str, length: int) -> None:
    """The verdict allows 16 times the movement: it must suffice, and allow no fault of 1e-5 in the product itself."""
    exact = noise(np, of, np.cumprod(1 - np.linspace(1e-4, 0.02, length)))
    narrow = noise(torch, of, torch.cumprod(1 - torch.linspace(1e-4, 0.02, length), 0)).numpy()
    off = np.linalg.norm(narrow / exact - 1)
    for draw in (1, 2):
        moved = np.linalg.norm(movement(narrow, draw) / exact)
        assert off < 8 * moved
        if of in ("product", "signal"):
            assert 16 * moved < 1e-5 * length**0.5
    assert (product_movement(narrow[:50].astype(float), 1) is None) == (
        of in ("product", "signal")
    )  # a short product is exact


def test_what_is_no_cumulative_product_is_moved_as_before() -> None:
    falling = np.linspace(0.99999, 0.001, 100)
    decay = np.exp(-np.arange(100) / 30), 1 / (1 + np.arange(100)), np.cos(np.linspace(0, 1.5, 100)) ** 2
    for table in (
        falling,
        RNG.permutation(falling),
        falling[::-1],
        falling + 1,
        -falling,
        np.sqrt(1 - falling),
        *decay,
    ):
        assert product_movement(table.astype(np.float32).astype(float), 1) is None


@pytest.mark.parametrize(("fault", "verdict"), first([(0.0, "precision"), (2e-5, "mismatch")]))
def test_a_loss_weighted_by_a_float32_signal_to_noise_ratio(fault: float, verdict: str) -> None:
    ratios = noise(torch, "ratio", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))
    times = np.arange(2 * LENGTH) ** 2 * 8

    def ours(output: Any, target: Any) -> Any:
        ratio = ratios[target[1]][:, None]
        return (torch.minimum(ratio, torch.tensor(5.0)) / ratio * (output - target[0]) ** 2).mean()

    def theirs(output: Any, target: Any) -> Any:
        ratio = noise(jnp, "ratio", jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, 1000)))[target[1]][:, None]
        return (1 + fault) * jnp.mean(jnp.minimum(ratio, 5.0) / ratio * (output - target[0]) ** 2)

    original = compare.Torch(torch.nn.Linear(WIDTH, 3), ours)
    port = compare.Flax(nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(0)), theirs)
    batches = [(X.reshape(-1, WIDTH), (RNG.normal(size=(2 * LENGTH, 3)), times))]
    report = compare.check(original, port, batches, device="cpu")
    assert report.verdict == verdict, str(report)


# Programs that are others in float64


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.out = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ x.transpose(1, 2) + (1 - mask)[:, None] * -1e10
        return self.out(torch.softmax(scores, -1) @ x)


class MaskedPort(nnx.Module):
    def __init__(self, scale: float = 1.0) -> None:
        self.query, self.out = (nnx.Linear(WIDTH, n, rngs=nnx.Rngs(0)) for n in (WIDTH, 3))
        self.scale = scale

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        scores = self.scale * self.query(x) @ x.swapaxes(1, 2)
        return self.out(jax.nn.softmax(jnp.where(mask[:, None] > 0, scores, -1e10), -1) @ x)


MASK = np.array([[1, 1, 0, 1, 0, 1], [0] * 6], np.float32)


def test_a_mask_that_float32_absorbs_is_no_mismatch() -> None:
    report = check(Masked(), MaskedPort(), [((X, MASK), None)])
    assert report.verdict == "precision", str(report)
    assert [note.name for note in report.notes] == ["float64 is another program"]
    assert "The torch side's float64 run differs from the other three" in report.notes[0].explanation


def test_what_float32_sees_is_a_mismatch_all_the_same() -> None:
    assert check(Masked(), MaskedPort(1 + 1e-4), [((X, MASK), None)]).verdict == "mismatch"


class Hashed(torch.nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.rows, self.factor = torch.nn.Embedding(7, 2), factor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows(ids * self.factor % 7)


class HashedPort(nnx.Module):
    def __init__(self, factor: int) -> None:
        self.rows, self.factor = nnx.Embed(7, 2, rngs=nnx.Rngs(0)), factor

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.rows(ids * self.factor % 7)


@pytest.mark.parametrize(
    ("first", "factor", "verdict"),
    [(5000, 1000003, "mismatch"), (2**40, 1, "mismatch"), (5000, 3, "match"), (2**31 - 8, 1, "match")],
)
def test_integers_have_the_width_in_which_the_port_runs(first: int, factor: int, verdict: str) -> None:
    report = check(Hashed(factor), HashedPort(factor), [(first + np.arange(6), None)])
    assert report.verdict == verdict, str(report)


def test_sums_of_integers_and_signs_of_floats() -> None:
    """Under x64, sums of 32-bit integers have 64 bits; and a float's sign is read from its 64 bits."""

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(WIDTH, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = torch.signbit(x).sum(-1, keepdim=True) + torch.arange(LENGTH)[:, None]
            return self.out(x * count.to(x.dtype) + x.argmax(-1, keepdim=True))

    class CountedPort(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
                return total + row.sum(), total

            count = jnp.signbit(x).sum(-1, keepdims=True) + jnp.arange(LENGTH)[:, None]
            _, before = jax.lax.scan(add, jnp.zeros((), int), jnp.arange(3))
            return linen.Dense(3)(x * count + x.argmax(-1, keepdims=True) + 0 * before.sum())

    port = CountedPort()
    report = check(Counted(), (port, port.init(jax.random.key(0), X)))
    assert report.verdict == "match", str(report)


class Shifted(torch.nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * self.shift)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        # torch.linspace(0, 0.3, 4)[1].item(), as timm makes the rates of its layers.
        (float(np.float32(0.1)), float(np.float32(0.1)), "match"),
        (float(np.float32(0.1)), 0.1, "match"),
        (0.1 + 1e-9, 0.1, "mismatch"),
    ],
)
def test_a_number_that_was_rounded_to_float32(ours: float, theirs: float, verdict: str) -> None:
    report = compare.check(
        compare.Torch(Shifted(ours)), compare.Jax(lambda _, x: jnp.tanh(x * theirs), {}), [(X, None)]
    )
    assert report.verdict == verdict, str(report)
