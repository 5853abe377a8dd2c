"""State beside the parameters: constants need no partner, and what a step changes does."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import compare
from compare.alignment.training import NO_PARTNER
from compare.report.report import Report


class Tracker(nn.Module):
    """Divides by the largest output of the steps so far; with a mask, a table of integers and a position."""

    mask: torch.Tensor
    index: torch.Tensor
    largest: torch.Tensor
    recent: torch.Tensor
    position: torch.Tensor

    def __init__(self, *, start: int = 0) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.spare = nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1), persistent=False)
        self.register_buffer("index", torch.arange(3))
        self.register_buffer("largest", torch.ones(4))
        self.register_buffer("recent", torch.ones(6, 4))
        self.register_buffer("position", torch.tensor(start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x[:, self.index])
        y = torch.softmax(y[:, :, None] + self.mask, 1).mean(2) / self.largest.clone() + self.recent.mean(0)
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, y.abs().amax(0) + 1))
            self.recent[int(self.position)] = y.mean(0)
            self.position.fill_((int(self.position) + 1) % 6)
        return y


class Port(nnx.Module):
    def __init__(self, *, moves: bool = True, tracks: bool = True, keeps: str = "largest") -> None:
        self.fc = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.spare = nnx.Param(jnp.ones(2))
        self.recent = nnx.BatchStat(jnp.zeros((6, 4)))
        self.position = nnx.Variable(jnp.array(0))
        self.scale = nnx.Variable(jnp.full((5,), 2.0))  # torch has no such constant
        self.moves, self.tracks, self.keeps = moves, tracks, keeps
        setattr(self, keeps, nnx.BatchStat(jnp.ones(4)))

    def __call__(self, x: Any) -> Any:
        largest, at = getattr(self, self.keeps), self.position[...]
        y = self.fc(x)
        mask = jnp.triu(jnp.full((4, 4), -jnp.inf), 1)
        y = nnx.softmax(y[:, :, None] + mask, 1).mean(2) / largest[...] * self.scale[...][0] / 2
        y = y + self.recent[...].mean(0)
        if self.tracks:
            largest[...] = jnp.maximum(largest[...], jnp.abs(y).max(0) + 1)
        self.recent[...] = self.recent[...].at[at].set(y.mean(0))
        if self.moves:
            self.position[...] = (at + 1) % 6
        return y


def checked(original: nn.Module, port: nnx.Module, **options: Any) -> Report:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((5, 3)), rng.standard_normal((5, 4))) for _ in range(3)]
    return compare.check(
        compare.Torch(original, nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(port, lambda y, target: jnp.mean((y - target) ** 2), optax.sgd(0.1)),
        batches,
        **options,
    )


def test_constants_need_no_partner_and_integers_of_one_name_are_one() -> None:
    report = checked(Tracker(start=4), Port())
    assert report.verdict == "match"
    assert ("position", "position") in report.weights
    held = {(quantity.torch, quantity.jax) for quantity in report.quantities if quantity.stage == "buffers"}
    assert {("mask", NO_PARTNER), ("index", NO_PARTNER), (NO_PARTNER, "scale"), ("position", "position")} <= held


def test_a_position_that_stands_still_is_a_mismatch() -> None:
    divergence = checked(Tracker(start=4), Port(moves=False)).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage, divergence.torch) == (0, "buffers", "position")


def test_a_position_that_is_left_out_starts_equal_and_is_not_compared() -> None:
    report = checked(Tracker(start=4), Port(), weights={"position": None})
    assert report.verdict == "match"
    assert ("position", "position") not in report.weights


def test_what_a_step_changes_needs_a_partner() -> None:
    """The port's `maximum` has another name, and torch's a partner only by the user's word."""
    report = checked(Tracker(), Port(keeps="seen"), steps=1)
    assert report.divergence is not None
    assert (report.divergence.stage, report.divergence.torch, report.divergence.jax) == (
        "buffers",
        "largest",
        NO_PARTNER,
    )
    assert checked(Tracker(), Port(keeps="seen"), weights={"largest": "seen"}).verdict == "match"
    assert checked(Tracker(), Port(keeps="seen", tracks=False), weights={"largest": "seen"}).verdict == "mismatch"


def test_a_parameter_that_is_left_out_must_have_no_gradient() -> None:
    """The spare one has none. The bias has, which the port lacks."""
    assert checked(Tracker(), Port(), weights={"spare": None}).verdict == "match"
    original = Tracker()
    nn.init.zeros_(original.fc.bias)
    port = Port()
    port.fc = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(compare.InputError, match=r"(?m)^  fc.bias \(4,\) +fc has none$"):
        checked(original, port)
    divergence = checked(original, port, weights={"fc.bias": None}, steps=1).divergence
    assert divergence is not None
    assert (divergence.stage, divergence.torch, divergence.jax) == ("gradient", "fc.bias", NO_PARTNER)


def test_a_momentum_has_its_fix_beside_other_norms() -> None:
    """The layer that keeps the buffer is the one to change, though a norm of another class runs before it."""

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.second(self.first(x))

    class Port(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.LayerNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0))
            self.second = nnx.BatchNorm(4, momentum=0.99, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.second(self.first(x))

    batches = [(np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32), None)]
    report = compare.check(compare.Torch(Original()), compare.Flax(Port()), batches, device="cpu")
    assert "BatchNorm1d momentum" in report.to_mend, str(report)
    assert "nnx.BatchNorm(..., momentum=0.9)" in [group.fix for group in report.groups]


def test_an_average_of_all_batches_has_no_momentum() -> None:
    """Torch's `momentum=None` takes 1, 1/2, 1/3 of a batch: what explains one step is no setting of the JAX side's."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3, momentum=None))
    rngs = nnx.Rngs(0)
    rng = np.random.default_rng(0)
    report = compare.check(
        compare.Torch(model, torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, 0.1)),
        compare.Flax(
            nnx.Sequential(nnx.Linear(5, 3, rngs=rngs), nnx.BatchNorm(3, momentum=0.9, rngs=rngs)),
            lambda output, target: jnp.mean((output - target) ** 2),
            optax.sgd(0.1),
        ),
        [(rng.normal(size=(6, 5)), rng.normal(size=(6, 3))) for _ in range(3)],
        device="cpu",
    )
    assert report.divergence is not None
    assert report.divergence.torch == "1.running_mean"
    assert report.divergence.cause is None
