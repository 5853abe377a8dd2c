"""What may be a cause: a hypothesis that also holds where it was not fitted. Each wrong port here tempts to one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from in_ci import some
from torch import nn
from torch.nn import functional

import compare
from compare.diagnosis.changes import is_written
from compare.diagnosis.held_out import ENOUGH, Evidence, Fit, equations


def regression(ours: Callable[..., Any], theirs: Callable[..., Any], *, count: int = 3) -> compare.Report:
    """Compare one linear layer under two losses."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(5, 4)), rng.normal(size=(5, 3))) for _ in range(count)]
    port = compare.Flax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), theirs, optax.sgd(0.1))
    return compare.check(
        compare.Torch(nn.Linear(4, 3), ours, lambda p: torch.optim.SGD(p, 0.1)), port, batches, steps=3, device="cpu"
    )


def square(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).mean()


TEMPTING = {
    # Each has a number, right on both sides, with which the first batch's loss can be had.
    "a weighted sum with another term": (
        lambda o, t: square(o, t) + 0.2 * (o[:, 1:] - o[:, :-1]).abs().mean(),
        lambda o, t: square(o, t) + 0.2 * jnp.abs(o[1:] - o[:-1]).mean(),
    ),
    "another function beside constants": (
        lambda o, t: 0.5 * ((o - t).abs() ** 3).mean() + 1.5,
        lambda o, t: 0.5 * jnp.log(jnp.cosh(o - t)).mean() + 1.5,
    ),
    "a factor that depends on the batch": (
        lambda o, t: square(o, t),
        lambda o, t: square(o, t) * (1 + 0.1 * jnp.abs(t).mean()),
    ),
    "an offset that depends on the batch": (
        lambda o, t: square(o, t),
        lambda o, t: square(o, t) + 0.1 * t.mean(),
    ),
    "a huber loss with another middle": (
        lambda o, t: functional.huber_loss(o, t, delta=0.7),
        lambda o, t: jnp.mean(jnp.log(jnp.cosh(o - t))),
    ),
}


LONG = {"a weighted sum with another term", "another function beside constants"}


@pytest.mark.parametrize("name", some(TEMPTING, TEMPTING.keys() - LONG))
@pytest.mark.parametrize(
    "count", [pytest.param(1, id="one batch"), pytest.param(3, id="three batches", marks=pytest.mark.slow)]
)
def test_a_number_that_fits_one_loss_is_no_cause(name: str, count: int) -> None:
    report = regression(*TEMPTING[name], count=count)
    assert report.divergence is not None
    assert report.divergence.stage == "loss"
    assert report.divergence.cause is None, str(report)


FITTED = {
    "constant": (lambda o, t: 0.3 * square(o, t) + o.mean(), lambda o, t: 0.45 * square(o, t) + o.mean(), "0.3 * x"),
    "delta": (
        lambda o, t: functional.huber_loss(o, t, delta=0.7),
        lambda o, t: jnp.mean(optax.huber_loss(o, t, delta=0.4)),
        "jnp.mean(optax.huber_loss(output, target, delta=0.7))",
    ),
    "factor": (square, lambda o, t: square(o, t) / 3, "3 * y, where y is the JAX side's value there"),
}


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("count", [1, 3], ids=["one batch", "three batches"])
def test_a_number_that_fits_everywhere_is_one(name: str, count: int) -> None:
    *losses, fix = FITTED[name]
    cause = regression(*losses, count=count).divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert (cause.name, cause.fix) == (name, fix)


def test_half_of_a_squared_error_is_a_factor_and_no_huber_loss() -> None:
    """Of errors below 1, both are the same."""

    def ours(output: Any, target: Any) -> Any:
        return functional.mse_loss(0.1 * output, 0.1 * target)

    divergence = regression(ours, lambda o, t: square(0.1 * o, 0.1 * t) / 2).divergence
    assert divergence is not None
    assert divergence.cause is not None
    assert divergence.cause.name == "factor"


@pytest.mark.parametrize("count", [1, 3], ids=["one batch", "three batches"])
@pytest.mark.parametrize("far", [0.0, 12.0], ids=["near", "far"])
def test_a_choice_that_goes_one_way_on_the_data_is_no_factor(count: int, far: float) -> None:
    """All outputs are above the targets, so that an expectile's loss with its sides exchanged is torch's times 7/3.

    With `far`, no weights of other signs bring them below: the targets have other signs at a held-out step.
    """

    def ours(output: Any, target: Any) -> Any:
        error = target - output
        return (torch.where(error < 0, 0.3, 0.7) * error**2).mean()

    def theirs(output: Any, target: Any) -> Any:
        error = target - output
        return (jnp.where(error > 0, 0.3, 0.7) * error**2).mean()

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    nn.init.constant_(model.bias, 0.8)
    rng = np.random.default_rng(0)
    batches = [(0.2 * rng.normal(size=(5, 4)), 0.2 * rng.normal(size=(5, 3)) - far) for _ in range(count)]
    report = compare.check(
        compare.Torch(model, ours, lambda p: torch.optim.SGD(p, 0.1)),
        compare.Flax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), theirs, optax.sgd(0.1)),
        batches,
        steps=3,
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "another mask", str(report)


def test_labels_among_real_numbers_are_not_turned() -> None:
    """An array of labels and weights: where its numbers have other signs, torch has no such label, and raises."""

    def ours(output: Any, target: Any) -> Any:
        labels, weights = target[:, 0].long(), target[:, 1]
        chosen = torch.log_softmax(output, -1).gather(1, labels[:, None])[:, 0]
        return -(weights * chosen).mean() + 0.3 * (output**2).mean()

    def theirs(output: Any, target: Any) -> Any:
        labels, weights = target[:, 0].astype(jnp.int32), target[:, 1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(output), labels[:, None], 1)[:, 0]
        return -(weights * chosen).mean() + 0.45 * (output**2).mean()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(0, 3, 6), rng.normal(size=6)], 1)
    report = compare.check(
        compare.Torch(nn.Linear(4, 3), ours, lambda p: torch.optim.SGD(p, 0.1)),
        compare.Flax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), theirs, optax.sgd(0.1)),
        [(rng.normal(size=(6, 4)), target)],
        steps=3,
        device="cpu",
    )
    assert not report.bugs, str(report)
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "constant"


def evidence(*steps: tuple[float, float]) -> Evidence:
    """Held-out steps by how far the sides are apart, without a hypothesis and with one."""
    return Evidence(iter([lambda h, pair=pair: pair[h is not None] for pair in steps]), 1e-15)  # type: ignore[misc]


SCALAR = Fit(before=1e-2, after=1e-16, equations=1, free=1)


def test_as_many_confirmations_as_free_numbers_plus_one() -> None:
    good = (1e-2, 1e-16)
    assert not evidence().confirms("fitted", SCALAR)
    assert not evidence(good).confirms("fitted", SCALAR)
    assert evidence(good, good).confirms("fitted", SCALAR)
    assert not evidence(good, good).confirms("two fitted", SCALAR._replace(free=2))
    assert evidence().confirms("nothing fitted", SCALAR._replace(free=0))
    assert evidence().confirms("an array", SCALAR._replace(equations=ENOUGH))


def test_one_contradiction_is_enough() -> None:
    good, bad, spoilt = (1e-2, 1e-16), (1e-2, 1e-5), (0.0, 1e-5)
    assert not evidence(good, bad).confirms("fitted", SCALAR)
    assert not evidence(bad).confirms("nothing fitted", SCALAR._replace(free=0))
    assert not evidence(spoilt).confirms("changes what agreed", SCALAR._replace(free=0))
    assert not evidence((0.0, 0.0), (0.0, 0.0)).confirms("never tried", SCALAR)


def test_equations_of_an_array() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert equations(x, 3 * x, 1e-15) == 1
    assert equations(x, x + 2, 1e-15) == 1
    assert equations(x, x**2, 1e-15) == ENOUGH
    assert equations(np.array(1.0), np.array(2.0), 1e-15) == 1


class Between(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.front, self.back, self.function = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.back(self.function(self.front(x)))


class FlaxBetween(nnx.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.front = nnx.Conv(2, 3, (3, 3), padding=1, rngs=rngs)
        self.back, self.function = nnx.Conv(3, 2, (1, 1), rngs=rngs), function

    def __call__(self, x: Any) -> Any:
        return self.back(self.function(self.front(x)))


def causes(report: compare.Report) -> list[compare.Cause]:
    """Give all causes that are printed."""
    return [each.cause for each in (report.divergence, *report.others) if each and each.cause]


def between(ours: Callable[..., Any], theirs: Callable[..., Any]) -> compare.Report:
    """Compare what stands between two convolutions."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 8))
    port = compare.Flax(FlaxBetween(theirs), batch=lambda x, _: (np.moveaxis(x, 1, -1), None))
    return compare.check(compare.Torch(Between(ours)), port, [(x, None)], steps=1, device="cpu")


def resize(method: str, size: tuple[int, int], **settings: Any) -> Callable[[Any], Any]:
    import jax

    return lambda x: jax.image.resize(x, (x.shape[0], *size, x.shape[3]), method, **settings)


def interpolate(mode: str, size: tuple[int, int]) -> Callable[[Any], Any]:
    return lambda x: functional.interpolate(x, size=size, mode=mode)


IMAGES = {
    "nearest for bilinear": (
        interpolate("bilinear", (9, 12)),
        resize("nearest", (9, 12)),
        resize("bilinear", (9, 12), antialias=False),
        ("resizing", "jax.image.resize(..., method='linear', antialias=False)"),
    ),
    "bicubic": (
        interpolate("bicubic", (9, 12)),
        resize("bicubic", (9, 12), antialias=False),
        None,
        ("resizing", ""),
    ),
    "bicubic, smaller": (interpolate("bicubic", (3, 5)), resize("bicubic", (3, 5)), None, ("antialiasing", "")),
    "SAME in a max pool": (
        lambda x: functional.max_pool2d(x, 3, 2, 1),
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME"),
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
        ("padding", "nnx.max_pool(..., padding=((1, 1), (1, 1)))"),
    ),
    "the stride of a pool": (
        lambda x: functional.max_pool2d(x, 2),
        lambda x: nnx.max_pool(x, (2, 2)),
        lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)),
        ("stride", "nnx.max_pool(..., strides=(2, 2))"),
    ),
    "ceil mode": (
        lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2)),
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1))),
        ("ceil mode", "nnx.max_pool(..., padding=((0, 1), (0, 1)))"),
    ),
    "padding by wrapping": (
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"),
        lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"),
        lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap"),
        ("padding mode", "jnp.pad(..., mode='wrap')"),
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_one_call_with_another_setting(name: str) -> None:
    ours, wrong, right, expected = IMAGES[name]
    cause = between(ours, wrong).divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert (cause.name, cause.fix) == expected
    if right is not None:
        assert between(ours, right).verdict == "match"


TRANSPOSED = {
    "SAME": "SAME",
    "VALID": "VALID",
    "torch's padding": ((1, 1), (1, 1)),
    "no output padding": ((2, 2), (2, 2)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_padding_of_a_transposed_convolution(name: str) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 6))

    def checked(padding: Any) -> compare.Report:
        layer = nnx.ConvTranspose(3, 2, (4, 4), strides=(3, 3), padding=padding, rngs=nnx.Rngs(0))
        port = compare.Flax(layer, batch=lambda x, _: (np.moveaxis(x, 1, -1), None))
        return compare.check(compare.Torch(original), port, [(x, None)], steps=1, device="cpu")

    original = nn.ConvTranspose2d(3, 2, 4, stride=3, padding=1, output_padding=2)
    cause = checked(TRANSPOSED[name]).divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert cause.name == "padding"
    (code,) = cause.code
    assert code.call == "nnx.ConvTranspose"
    assert checked(code.keywords["padding"]).verdict == "match"


class Padded(nn.Module):
    """A convolution of which the input is padded before, as causal ones are written in torch."""

    def __init__(self, conv: nn.Module, pad: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.pad = conv, pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, self.pad))


CONVOLVED: dict[str, tuple[nn.Module, dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "the other ends": (
        Padded(nn.Conv1d(3, 2, 3, dilation=2), (4, 0)),
        {"padding": "SAME", "kernel_dilation": 2},
        ("padding", {"padding": ((4, 0),)}),
    ),
    "the other ends of two axes": (
        Padded(nn.Conv2d(3, 2, 3, stride=2), (0, 1, 1, 0)),
        {"padding": ((0, 1), (0, 1)), "strides": 2},
        ("padding", {"padding": ((1, 0), (0, 1))}),
    ),
    "a causal dilation": (
        Padded(nn.Conv1d(3, 2, 3, dilation=2), (4, 0)),
        {"padding": "CAUSAL", "kernel_dilation": 1},
        ("dilation", {"kernel_dilation": (2,)}),
    ),
    "a dilation": (
        nn.Conv2d(3, 2, 3, dilation=2, padding=2),
        {"padding": "SAME", "kernel_dilation": 3},
        ("dilation", {"kernel_dilation": (2, 2)}),
    ),
}


@pytest.mark.parametrize("name", CONVOLVED)
def test_padding_and_dilation_of_a_convolution(name: str) -> None:
    original, settings, (expected, fix) = CONVOLVED[name]
    space = len(fix["padding"] if "padding" in fix else fix["kernel_dilation"])
    x = np.random.default_rng(0).normal(size=(2, 3, *(9, 10)[:space])).astype(np.float32)

    def checked(**settings: Any) -> compare.Report:
        port = nnx.Conv(3, 2, (3,) * space, rngs=nnx.Rngs(0), **settings)
        adapted = compare.Flax(port, batch=lambda x, _: (np.moveaxis(x, 1, -1), None))
        return compare.check(compare.Torch(original), adapted, [(x, None)], steps=1, device="cpu")

    cause = checked(**settings).divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert cause.name == expected
    (code,) = cause.code
    assert (code.call, code.keywords) == ("nnx.Conv", fix)
    assert checked(**settings | fix).verdict == "match"


def test_a_setting_is_given_to_a_layer_that_has_it() -> None:
    """The norm lies behind a convolution and has no weights: it is the norm whose epsilon is named."""
    norm = nnx.InstanceNorm(3, epsilon=1e-6, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    report = between(lambda x: functional.instance_norm(x), norm)
    cause = report.divergence.cause  # type: ignore[union-attr]
    assert cause is not None
    assert cause.fix == "nnx.InstanceNorm(..., epsilon=1e-05)"


def test_a_missing_dropout_is_written_in_the_names_of_the_port() -> None:
    torch.manual_seed(0)
    port = compare.Flax(FlaxBetween(lambda x: x), batch=lambda x, _: (np.moveaxis(x, 1, -1), None))
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 8))
    report = compare.check(compare.Torch(Between(nn.Dropout(0.3))), port, [(x, None)], steps=1, device="cpu")
    assert [each.fix for each in causes(report)] == ["nnx.Dropout(0.3, rngs=rngs)(x)"]


@pytest.mark.parametrize("value", [0.3, 3 / 7, 1 / 96**0.5, (2 / np.pi) ** 0.5, -np.log(1e4) / 6, 2 * np.pi, 0.0])
def test_numbers_that_a_program_may_have(value: float) -> None:
    assert is_written(value)


def test_a_number_that_comes_from_data_is_not_written() -> None:
    drawn = np.random.default_rng(0).uniform(0.01, 30, 200)
    assert sum(map(is_written, drawn)) <= 6
