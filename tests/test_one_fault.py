"""One fault is one finding, and what is no fault is none: consequences, draws and shapes that change nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import first

import compare


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def normal(*shapes: tuple[int, ...], count: int = 2) -> list[Any]:
    rng = np.random.default_rng(0)
    return [tuple(rng.normal(size=shape) for shape in shapes) for _ in range(count)]


def checked(original: torch.nn.Module, port: nnx.Module, batches: list[Any]) -> compare.Report:
    torch.manual_seed(0)
    torch_side = compare.Torch(original, mse, lambda params: torch.optim.SGD(params, 0.1))
    return compare.check(torch_side, compare.Flax(port, mse, optax.sgd(0.1)), batches, device="cpu")


class Noisy(torch.nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second, self.size = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2), size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.second(torch.tanh(h + self.size * torch.randn_like(h)))


class Quiet(nnx.Module):
    def __init__(self) -> None:
        self.first, self.second = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


def test_what_torch_draws_without_effect_is_no_difference() -> None:
    batches = normal((5, 4), (5, 2))
    report = checked(Noisy(0.0), Quiet(), batches)
    assert report.verdict == "match", str(report)
    assert any("without effect" in each.reason for each in report.not_compared)
    assert checked(Noisy(0.2), Quiet(), batches).verdict == "mismatch"


class Masked(torch.nn.Module):
    """Attention whose mask is added as a large negative number."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / 6**0.5
        return torch.softmax(scores + (1 - kept[:, None].float()) * -1e9, -1) @ self.value(x)


class FlaxMasked(nnx.Module):
    def __init__(self, *, inverted: bool) -> None:
        self.query, self.key, self.value = (nnx.Linear(6, 6, rngs=nnx.Rngs(seed)) for seed in range(3))
        self.inverted = inverted

    def __call__(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        scores = self.query(x) @ self.key(x).swapaxes(-1, -2) / 6**0.5
        seen = kept[:, None] == (0 if self.inverted else 1)
        return jax.nn.softmax(jnp.where(seen, scores, -1e9), -1) @ self.value(x)


def test_an_inverted_mask_that_is_added_is_called_inverted() -> None:
    kept = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    batches = [((x, kept), y) for x, y in normal((3, 4, 6), (3, 4, 6))]
    assert checked(Masked(), FlaxMasked(inverted=False), batches).ok
    report = checked(Masked(), FlaxMasked(inverted=True), batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "another mask"
    assert "inverted" in report.divergence.cause.explanation
    assert not report.others


class Block(torch.nn.Module):
    """Positions, a residual, and a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Embedding(5, 6)
        self.norm, self.mix, self.again, self.out = (
            torch.nn.LayerNorm(6),
            torch.nn.Linear(6, 6),
            torch.nn.LayerNorm(6),
            torch.nn.Linear(6, 6),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions(torch.arange(5))
        x = x + torch.tanh(self.mix(self.norm(x)))
        return x + self.out(self.again(x))


class FlaxBlock(nnx.Module):
    def __init__(self, fault: str) -> None:
        rngs, self.fault = nnx.Rngs(0), fault
        self.positions = nnx.Embed(5, 6, rngs=rngs)
        self.norm, self.again = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs), nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)
        self.mix, self.out = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        positions = jnp.arange(5)[None]
        x = x + self.positions((positions + 1) % 5 if self.fault == "positions" else positions)
        mixed = jnp.tanh(self.mix(self.norm(x)))
        x = (self.norm(x) if self.fault == "residual" else x) + mixed
        return x + self.out(self.again(x))


@pytest.mark.parametrize(
    ("fault", "words"),
    first([("positions", "other numbers for the input of positions"), ("residual", "takes the output of norm")]),
)
def test_what_follows_from_a_fault_through_a_residual_is_no_second_finding(fault: str, words: str) -> None:
    batches = normal((2, 5, 6), (2, 5, 6))
    assert checked(Block(), FlaxBlock(""), batches).verdict == "match"
    report = checked(Block(), FlaxBlock(fault), batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert words in report.divergence.cause.explanation, str(report)
    assert not report.others, str(report)


class Frozen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)
        self.norm.get_buffer("running_mean").add_(0.3)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x))


class FlaxFrozen(nnx.Module):
    def __init__(self, *, frozen: bool) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, epsilon=1e-5, use_running_average=frozen, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.first(x))


def test_what_a_norm_in_another_mode_keeps_is_no_second_finding() -> None:
    batches = normal((5, 4), (5, 6))
    assert checked(Frozen(), FlaxFrozen(frozen=True), batches).verdict == "match"
    report = checked(Frozen(), FlaxFrozen(frozen=False), batches)
    assert report.divergence is not None
    assert report.divergence.headline == "step 0, forward, norm: mode of a normalization"
    assert not report.others, str(report)


class Heads(torch.nn.Module):
    """Two heads that take the same, and one that takes a multiple of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mean = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
        self.scale, self.rest, self.last = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Any:
        h = torch.nn.functional.leaky_relu(self.stem(x), 0.2)
        return self.last(torch.cat([self.mean(h), torch.sigmoid(self.scale(h)), self.rest(2 * h)], 1))


class FlaxHeads(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, factor: float) -> None:
        self.stem, self.mean = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.scale, self.rest = nnx.Linear(6, 3, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.last, self.factor = nnx.Linear(8, 2, rngs=rngs), factor

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.leaky_relu(self.stem(x))
        scale = nnx.softplus(self.scale(self.factor * h))
        return self.last(jnp.concatenate([self.mean(h), scale, self.rest(2 * h)], 1))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_what_several_heads_take_is_one_finding(factor: float) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    report = compare.check(compare.Torch(Heads()), compare.Flax(FlaxHeads(nnx.Rngs(0), factor)), [x], device="cpu")
    assert report.divergence is not None
    places = [each.torch for each in (report.divergence, *report.others)]
    own = ["between mean and scale"] if factor != 1.0 else []  # a fault of this head alone stays a finding
    assert places == ["between stem and mean", *own, "between rest and last"], str(report)
