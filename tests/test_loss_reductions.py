"""What is printed where a loss reduces other elements than torch's: a fix that makes it right, or none."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

import compare


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(x), self.two(x)


class FlaxHeads(nnx.Module):
    def __init__(self) -> None:
        self.one, self.two = (nnx.Linear(4, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.one(x), self.two(x)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (lambda x: x.mean(), r"jnp\.sum\(\.\.\., axis=1\), in torch's layout: reduce this axis alone, and the others"),
        (lambda x: x.sum(), r"take the mean of 6 numbers, as torch does, .*divided by 6"),
        (lambda x: x.sum(axis=1).mean(), None),
    ],
)
def test_a_reduction_of_other_axes_is_no_fix(taken: Any, expected: str | None) -> None:
    """The mean of sums over an axis is neither the mean of all elements nor their sum."""
    report = compare.check(
        compare.Torch(TwoHeads(), lambda given, y: (given[0].square() + given[1].exp() - y).sum(dim=1).mean()),
        compare.Flax(FlaxHeads(), lambda given, y: taken(given[0] ** 2 + jnp.exp(given[1]) - y)),
        [(np.random.default_rng(0).normal(size=(6, 4)), np.ones((6, 3)))],
        quick=True,
        device="cpu",
    )
    if expected is None:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "mean or sum"
    assert re.search(expected, report.divergence.cause.fix)


def labelled(divisor: Any, batches: int = 1) -> compare.Report:
    """Take a loss of labels of which some are ignored, divided by something."""
    generator, made = np.random.default_rng(1), []
    for number in range(batches):
        labels = generator.integers(0, 5, (6, 4))
        labels[: 3 + number, 2:] = -100
        made.append((generator.normal(size=(6, 4, 3)), labels))

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        each = -jnp.sum(jax.nn.one_hot(labels, 5) * jax.nn.log_softmax(logits), axis=-1)
        return jnp.sum(each * (labels >= 0)) / divisor(labels)

    return compare.check(
        compare.Torch(torch.nn.Linear(3, 5), lambda given, y: functional.cross_entropy(given.transpose(1, 2), y)),
        compare.Flax(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), loss),
        made,
        quick=True,
        device="cpu",
    )


@pytest.mark.parametrize("batches", [1, 2])
def test_the_share_of_the_ignored_labels_in_a_batch_is_no_factor(batches: int) -> None:
    report = labelled(lambda labels: labels.size, batches)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "divides by the number of all labels" in report.divergence.cause.explanation
    assert "divide by the number of labels that are not -100" in report.divergence.cause.fix


def test_a_divisor_that_is_not_understood_is_no_factor() -> None:
    report = labelled(lambda labels: labels.size + (labels == -100).sum())
    assert report.divergence is not None
    assert report.divergence.cause is None


def test_a_factor_that_holds_for_other_labels_too_is_one() -> None:
    report = labelled(lambda labels: 2 * (labels >= 0).sum())
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "factor"
    assert labelled(lambda labels: (labels >= 0).sum()).ok


def weighted(divisor: Any) -> compare.Report:
    """Take a loss of labels with weights for each class, of which some are ignored, divided by something."""
    generator, weights = np.random.default_rng(2), np.array([0.5, 1, 2, 1, 3], np.float32)
    made = []
    for _ in range(2):
        labels = generator.integers(0, 5, (8, 3))
        labels[generator.random(labels.shape) < 0.3] = 255
        made.append((generator.normal(size=(8, 3, 4)), labels))

    def torch_loss(given: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        each = torch.from_numpy(weights).to(given.dtype)
        return functional.cross_entropy(given.transpose(1, 2), y, weight=each, ignore_index=255)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        counted = labels != 255
        each = jnp.asarray(weights)[jnp.where(counted, labels, 0)] * counted
        chosen = jnp.sum(jax.nn.one_hot(labels, 5) * jax.nn.log_softmax(logits), axis=-1)
        return -jnp.sum(chosen * each) / divisor(each, counted)

    return compare.check(
        compare.Torch(torch.nn.Linear(4, 5), torch_loss),
        compare.Flax(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), loss),
        made,
        quick=True,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("divisor", "expected"),
    [
        (lambda each, counted: each.sum(), None),
        (lambda each, counted: counted.sum(), "by the number of the labels that count"),
        (lambda each, counted: counted.size, "by the number of all labels"),
    ],
)
def test_a_loss_with_class_weights(divisor: Any, expected: str | None) -> None:
    report = weighted(divisor)
    if expected is None:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "class weights"
    assert expected in report.divergence.cause.explanation


class Bag(torch.nn.Module):
    """Embeddings of words, of which 0 is the padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = torch.nn.Embedding(7, 4, padding_idx=0), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(x).mean(1))


class FlaxBag(nnx.Module):
    def __init__(self, *, trained: bool) -> None:
        self.words, self.out = nnx.Embed(7, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.trained = trained

    def __call__(self, x: jax.Array) -> jax.Array:
        given = self.words(x)
        if not self.trained:
            given = jnp.where((x == 0)[..., None], jax.lax.stop_gradient(given), given)
        return self.out(given.mean(1))


@pytest.mark.parametrize("trained", [False, True])
def test_the_row_of_the_padding_index(*, trained: bool) -> None:
    """Torch never trains it, though it may be read."""
    words = np.array([[1, 2, 0, 0], [3, 4, 5, 0]])
    report = compare.check(
        compare.Torch(Bag(), lambda given, y: (given - y).square().mean()),
        compare.Flax(FlaxBag(trained=trained), lambda given, y: jnp.mean((given - y) ** 2)),
        [(words, np.ones((2, 2)))],
        quick=True,
        device="cpu",
    )
    if not trained:
        assert report.ok
        return
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "trained padding row"
    assert "jnp.where((x == 0)[..., None], jax.lax.stop_gradient(y), y)" in report.divergence.cause.fix


def transcribed(*, mean: bool = True, blank: int = 0, ended: bool = True) -> compare.Report:
    """Take the CTC loss of inputs and targets of several lengths."""
    generator, lengths, ends = np.random.default_rng(3), np.array([3, 1, 2]), np.array([9, 7, 8])
    data = [(generator.normal(size=(3, 9, 4)), generator.integers(1, 5, (3, 3))) for _ in range(2)]

    def torch_loss(given: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        chances = functional.log_softmax(given, -1).transpose(0, 1)
        return functional.ctc_loss(chances, y, torch.tensor(ends), torch.tensor(lengths))

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        inputs = (jnp.arange(9) >= ends[:, None]) * 1.0 if ended else jnp.zeros((3, 9))
        each = optax.ctc_loss(logits, inputs, labels, (jnp.arange(3) >= lengths[:, None]) * 1.0, blank_id=blank)
        return jnp.mean(each / lengths if mean else each)

    return compare.check(
        compare.Torch(torch.nn.Linear(4, 5), torch_loss),
        compare.Flax(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), loss),
        data,
        quick=True,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("port", "name"),
    [
        ({}, None),
        ({"mean": False}, "reduction"),
        ({"blank": 4}, "blank label"),
        ({"ended": False}, "lengths of the inputs"),
    ],
)
def test_a_ctc_loss(port: Any, name: str | None) -> None:
    report = transcribed(**port)
    cause = report.divergence and report.divergence.cause
    assert (cause and cause.name) == name, str(report)


def test_a_sum_over_some_axes_and_a_mean_over_the_others_is_told() -> None:
    """Another constant than torch's, -1/12 for -1/2, would explain it as well on these batches, and mend nothing."""

    def ours(given: Any, y: Any) -> Any:
        mean, log_variance = given
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return functional.mse_loss(mean, y) + divergence

    def theirs(given: Any, y: Any) -> Any:
        mean, log_variance = given
        divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1).mean()
        return jnp.mean((mean - y) ** 2) + divergence

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 4)), rng.normal(size=(6, 3))) for _ in range(3)]
    sides = compare.Torch(TwoHeads(), ours), compare.Flax(FlaxHeads(), theirs)
    report = compare.check(*sides, batches, quick=True, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "another reduction"
    assert "the mean over axis 0 and the sum over axis 1" in report.divergence.cause.explanation


def test_the_cross_entropy_of_probabilities_is_no_divergence() -> None:
    """Its gradient by the logits is the same: what the target alone gives is missing."""

    def ours(given: Any, y: Any) -> Any:
        return functional.kl_div(given.log_softmax(-1), y, reduction="batchmean")

    def theirs(given: Any, y: Any) -> Any:
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(given), -1))

    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 4)), rng.dirichlet(np.ones(3), 6)) for _ in range(3)]
    flax = compare.Flax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), theirs)
    report = compare.check(compare.Torch(torch.nn.Linear(4, 3), ours), flax, batches, quick=True, device="cpu")
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "entropy of the target"
    assert str(report.divergence.cause.code[0]).startswith("jnp.sum((jax.scipy.special.xlogy(target, target)")
