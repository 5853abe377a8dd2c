"""Tables, masks and positions that the JAX side computes otherwise: both sides' numbers and lines are named."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import compare
from compare.diagnosis.structure.tables import _is_neutral


def mse(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


def checked(original: torch.nn.Module, port: nnx.Module, batches: list[Any]) -> compare.Report:
    torch_side = compare.Torch(original, mse, lambda params: torch.optim.SGD(params, 0.1))
    return compare.check(torch_side, compare.Flax(port, mse, optax.sgd(0.1)), batches, device="cpu")


class Normalized(torch.nn.Module):
    """A model that normalises its inputs by means and deviations that it keeps."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.41, 0.37, 0.62]))
        self.register_buffer("deviation", torch.tensor([0.21, 0.33, 0.27]))
        self.fc = torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((x - self.mean) / self.deviation)


class FlaxNormalized(nnx.Module):
    def __init__(self, deviation: tuple[float, ...]) -> None:
        self.fc, self.deviation = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), deviation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc((x - jnp.array([0.41, 0.37, 0.62])) / jnp.array(self.deviation))


def test_a_number_of_a_table_is_named() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4))) for _ in range(2)]
    assert checked(Normalized(), FlaxNormalized((0.21, 0.33, 0.27)), batches).ok
    report = checked(Normalized(), FlaxNormalized((0.21, 0.35, 0.27)), batches)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None, str(report)
    assert cause.name == "another table"
    assert "other numbers for deviation" in cause.explanation
    assert "at [1] torch has 0.33, the JAX side 0.35" in cause.explanation
    assert "mean" not in cause.explanation  # it was rounded to float32, and that is no fault


class Gained(torch.nn.Module):
    """Two branches, each with a gain of its own, which is taken from a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(3, 6), torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(x).view(-1, 2, 3)
        gains, distance = torch.tensor([0.6, 0.05])[:, None], torch.arange(3.0)
        return self.outer((h - gains * distance).tanh().flatten(1))


class FlaxGained(nnx.Module):
    def __init__(self, *gains: float) -> None:
        self.inner, self.outer = nnx.Linear(3, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(1))
        self.gains = gains

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.inner(x).reshape(-1, 2, 3)
        return self.outer(jnp.tanh(h - jnp.array(self.gains)[:, None] * jnp.arange(3.0)).reshape(len(x), -1))


def test_numbers_in_reverse_order_within_a_model_are_no_targets() -> None:
    """What is taken from a value within a model is no target of a loss, and nothing reverses what is written so."""
    rng = np.random.default_rng(3)
    batches = [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4))) for _ in range(2)]
    report = checked(Gained(), FlaxGained(0.05, 0.6), batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "other numbers"


def by_hand(output: Any, target: Any) -> Any:
    return ((output - 0.5 * target) ** 2).mean()


def test_targets_in_reverse_order_are_named() -> None:
    """Also where the loss is written by hand, and computes with the targets before it takes them."""
    rng = np.random.default_rng(4)
    batches = [(rng.normal(size=(5, 3)), rng.normal(size=(5, 4))) for _ in range(2)]
    port = compare.Flax(FlaxGained(0.6, 0.05), by_hand, optax.sgd(0.1), batch=lambda x, y: (x, y[::-1]))
    original = compare.Torch(Gained(), by_hand, lambda params: torch.optim.SGD(params, 0.1))
    report = compare.check(original, port, batches, device="cpu", quick=True)
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "order of the targets"


class Pooled(torch.nn.Module):
    """Attention by scores over the first steps of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.value = torch.nn.Linear(4, 1), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden = torch.arange(x.shape[1])[None] >= lengths[:, None]
        weights = torch.softmax(self.score(x)[..., 0].masked_fill(hidden, -torch.inf), -1)
        return (weights[..., None] * self.value(x)).sum(1)


class FlaxPooled(nnx.Module):
    def __init__(self, shorter: int) -> None:
        self.score, self.value = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))
        self.shorter = shorter

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        seen = jnp.arange(x.shape[1])[None] < lengths[:, None] // self.shorter
        weights = jax.nn.softmax(jnp.where(seen, self.score(x)[..., 0], -jnp.inf), -1)
        return (weights[..., None] * self.value(x)).sum(1)


@pytest.mark.parametrize("shorter", [1, 2])
def test_a_mask_of_other_lengths_is_named(shorter: int) -> None:
    rng = np.random.default_rng(0)
    each = [np.array([6, 5, 3]), np.array([4, 6, 2]), np.array([3, 4, 6])]
    batches = [((rng.normal(size=(3, 6, 4)), lengths), rng.normal(size=(3, 3))) for lengths in each]
    report = checked(Pooled(), FlaxPooled(shorter), batches)
    if shorter == 1:
        assert report.verdict == "match"
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None, str(report)
    assert report.divergence.cause.name == "another mask"
    assert "torch has False, the JAX side True" in report.divergence.cause.explanation
    assert not report.others


class Scaled(torch.nn.Module):
    """Attention whose scores are divided by the root of a head's size."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = torch.nn.Linear(12, 12), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.both(x).split(6, dim=1)
        return self.out(torch.softmax(query @ key.T * 6**-0.5, -1) @ key)


class FlaxScaled(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.both, self.out = nnx.Linear(12, 12, rngs=nnx.Rngs(0)), nnx.Linear(6, 3, rngs=nnx.Rngs(1))
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key = jnp.split(self.both(x), 2, axis=1)
        return self.out(jax.nn.softmax(query @ key.T * self.factor) @ key)


def test_a_fix_gives_all_digits_of_a_number() -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 12)), rng.normal(size=(5, 3))) for _ in range(2)]
    report = checked(Scaled(), FlaxScaled(12**-0.5), batches)
    assert report.divergence is not None
    cause = report.divergence.cause
    assert cause is not None, str(report)
    assert f"{6**-0.5!r}" in cause.fix, cause.fix
    assert not checked(Scaled(), FlaxScaled(float(f"{6**-0.5:.6g}")), batches).ok
    assert checked(Scaled(), FlaxScaled(6**-0.5), batches).ok


def test_class_weights_can_be_copied() -> None:
    """Torch's are in float32, and nine digits after the point are another number in float64."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 5)), rng.integers(0, 3, 6)) for _ in range(2)]
    weights = torch.tensor([0.3, 1 / 3, 0.001234567])

    def weighed(loss: Any) -> compare.Report:
        original = compare.Torch(torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(weight=weights))
        return compare.check(original, compare.Flax(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), loss), batches, device="cpu")

    found = weighed(lambda o, y: optax.softmax_cross_entropy_with_integer_labels(o, y).mean()).divergence
    assert found is not None
    assert found.cause is not None
    copied = eval(f"lambda logits, labels: {found.cause.fix}", {"jnp": jnp, "optax": optax})
    assert weighed(copied).ok


@pytest.mark.parametrize("by_name", [True, False])
def test_weights_of_the_classes_are_called_by_their_name(by_name: bool) -> None:
    numbers = [0.2, 1.0, 3.0]

    def ours(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor(numbers, dtype=output.dtype)
        cross_entropy = torch.nn.functional.cross_entropy
        return cross_entropy(output, target, weight=weight) if by_name else cross_entropy(output, target, weight)

    def theirs(output: jax.Array, target: jax.Array) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(output, target)
        weight = jnp.array([0.7, 1.0, 3.0])[target]
        return (each * weight).sum() / weight.sum()

    rng = np.random.default_rng(0)
    report = compare.check(
        compare.Torch(torch.nn.Linear(4, 3), ours),
        compare.Flax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), theirs),
        [(rng.normal(size=(8, 4)), rng.integers(0, 3, 8)) for _ in range(2)],
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "other numbers for the weight of cross_entropy: at [0] torch has 0.2" in report.divergence.cause.explanation
    assert report.divergence.cause.fix == "compute the weight of cross_entropy as torch does"


def test_another_use_of_a_value_is_not_blamed() -> None:
    """The share of a mixture is exchanged in its second use alone."""

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
            h = self.fc(share * x + (1 - share) * y)
            return self.last(share * h.tanh() + (1 - share) * h.sin())

    class FlaxMixed(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.fc, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x: jax.Array, y: jax.Array, share: jax.Array) -> jax.Array:
            h = self.fc(share * x + (1 - share) * y)
            return self.last((1 - share) * jnp.tanh(h) + share * jnp.sin(h))

    rng = np.random.default_rng(0)
    batches = [
        ((rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), rng.uniform(0.1, 0.9, (6, 1))), rng.normal(size=(6, 4)))
        for _ in range(3)
    ]
    report = checked(Mixed(), FlaxMixed(), batches)
    assert report.divergence is not None
    assert report.divergence.torch == "between fc and last"
    assert report.divergence.cause is not None
    assert "wherever it is used" not in report.divergence.cause.explanation, str(report)


@pytest.mark.parametrize(
    ("array", "neutral"),
    [
        (np.eye(3), True),
        (np.tile(np.eye(3), (2, 1, 1)), True),
        (np.zeros((2, 3)), True),
        (np.ones(4), True),
        (2 * np.eye(3), False),
        (np.array([1.0, 0.0]), False),
        (np.ones((2, 2), bool), False),
    ],
)
def test_what_changes_nothing_is_no_table(array: np.ndarray, neutral: bool) -> None:
    assert _is_neutral(array) == neutral
