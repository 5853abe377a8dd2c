"""Training and evaluation: the port is in torch's mode, however it takes that, and a frozen norm stays frozen."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import compare
from compare.jax_side.mode import by_effect, in_training, with_mode

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, True) for name in ("train", "training", "is_training", "train_mode", "in_training")),
        *((name, False) for name in ("deterministic", "eval_mode", "inference", "is_test", "use_running_average")),
        *((name, None) for name in ("pretrained", "constrained", "mask", "evaluate_training", "tested_by", "latest")),
    ],
)
def test_what_an_argument_is_in_training(name: str, value: bool | None) -> None:
    assert in_training(name) is value


def test_an_argument_is_given_where_the_batch_does_not() -> None:
    def model(x: Any, train: bool, train_data: Any = 3, deterministic: bool | None = None) -> None: ...

    assert with_mode(model, (X,), {}, training=True) == {"train": True, "deterministic": False}
    assert with_mode(model, (X, False), {}, training=True) == {"deterministic": False}
    assert with_mode(model, (X,), {"train": False}, training=True) == {"train": False, "deterministic": False}
    assert with_mode(len, (X,), {}, training=True) == {}


def test_an_argument_of_any_name_is_found_by_what_it_does() -> None:
    def model(x: Any, frozen: bool = False, verbose: bool = False) -> None: ...

    def effect(kwargs: dict[str, Any]) -> int:
        return 0 if kwargs["frozen"] else 2

    found = functools.partial(by_effect, model, (X,), {})
    assert found(training=True, effect=effect) == {}
    assert found(training=False, effect=effect) == {"frozen": True}
    assert found(training=False, effect=lambda kwargs: 1) == {}


class Named(linen.Module):
    @linen.compact
    def __call__(self, x: Any, is_training: bool) -> Any:
        return linen.BatchNorm(use_running_average=not is_training, momentum=0.9)(linen.Dense(4)(x))


class ByEffect(linen.Module):
    @linen.compact
    def __call__(self, x: Any, refresh_statistics: bool = True, square: bool = False) -> Any:
        x = linen.Dense(4)(x)
        x = linen.BatchNorm(use_running_average=not refresh_statistics, momentum=0.9)(x)
        return x**2 if square else x


class Attribute(linen.Module):
    is_training: bool = True

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.BatchNorm(use_running_average=not self.is_training, momentum=0.9)(linen.Dense(4)(x))


class Fixed(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.BatchNorm(use_running_average=False, momentum=0.9)(linen.Dense(4)(x))


def normed(*, training: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert isinstance(model[1].running_mean, torch.Tensor)
    model[1].running_mean += 0.3
    return model.train(training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", [Named, ByEffect, Attribute])
def test_a_linen_module_is_in_torchs_mode(cls: Any, training: bool) -> None:
    module = cls()
    arguments = {"is_training": True} if cls is Named else {}
    variables = module.init(jax.random.key(0), jnp.zeros((1, 3)), **arguments)
    report = compare.check(
        compare.Torch(normed(training=training)), compare.Flax((module, variables)), [X], device="cpu"
    )
    # In training the two keep another running variance: docs/getting-started.md. The forward pass is the same.
    assert report.verdict == ("mismatch" if training else "match")
    assert report.divergence is None or report.divergence.stage == "buffers"


def test_a_linen_module_for_training_alone_shows_that_it_is() -> None:
    module = Fixed()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 3)))
    report = compare.check(compare.Torch(normed(training=False)), compare.Flax((module, variables)), [X], device="cpu")
    assert report.headline.startswith("mismatch at step 0, forward, 1")


def two_norms(frozen: bool) -> Any:
    rngs = nnx.Rngs(0)
    norm = functools.partial(nnx.BatchNorm, 4, momentum=0.9, epsilon=1e-5, rngs=rngs)
    return nnx.Sequential(
        nnx.Linear(3, 4, rngs=rngs), norm(use_running_average=frozen), nnx.Linear(4, 4, rngs=rngs), norm()
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_a_norm_that_is_frozen_in_training(frozen: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    original = torch.nn.Sequential(torch.nn.Linear(3, 4), first, torch.nn.Linear(4, 4), second)
    first.eval()
    report = compare.check(compare.Torch(original), compare.Flax(two_norms(frozen)), [X], device="cpu")
    assert report.divergence is not None
    place = (report.divergence.stage, report.divergence.torch)
    assert place == (("buffers", "3.running_var") if frozen else ("forward", "1"))


def test_a_port_that_is_frozen_where_torch_is_not() -> None:
    original = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    )
    report = compare.check(compare.Torch(original), compare.Flax(two_norms(True)), [X], device="cpu")
    assert report.headline.startswith("mismatch at step 0, forward, 1")
    report = compare.check(compare.Torch(original.eval()), compare.Flax(two_norms(True)), [X], device="cpu")
    assert report.verdict == "match"


class Sowing(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Dense(4)(x)
        self.sow("intermediates", "hidden", x)
        self.sow("losses", "norm", (x**2).sum())
        return x


class SowingNnx(nnx.Module):
    def __init__(self) -> None:
        self.fc = nnx.Linear(3, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        x = self.fc(x)
        self.sow(nnx.Intermediate, "hidden", x)
        return x


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("nnx_module", [True, False])
def test_what_a_model_sows_is_no_state(nnx_module: bool, right: bool) -> None:
    torch.manual_seed(0)
    original = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Identity() if right else torch.nn.Tanh())
    port: Any = SowingNnx()
    if not nnx_module:
        module = Sowing()
        port = (module, module.init(jax.random.key(0), jnp.zeros((1, 3))))
    sides = (
        compare.Torch(original, lambda output, target: (output**2).mean()),
        compare.Flax(port, lambda output, target: (output**2).mean()),
    )
    report = compare.check(*sides, [(X, None)], steps=2, device="cpu")
    assert (report.verdict == "match") == right
