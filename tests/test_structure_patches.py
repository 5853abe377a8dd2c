"""Faults of structure become patches: what was left out, moved or exchanged is written with the port's own names."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import compare

Forward = Callable[..., Any]


class Original(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)  # with some weights, a layer gives positive numbers alone, which no relu changes
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.computed = forward

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.computed(self, *inputs)


class Layers(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.b = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.c = nnx.Linear(4, 4, rngs=rngs)


class Residual(Layers):
    def __call__(self, x: Any) -> Any:
        x = self.a(x)
        x = self.b(nnx.relu(x))
        return self.c(x)


class Skipped(Layers):
    def __call__(self, x: Any) -> Any:
        h = self.b(nnx.tanh(self.a(x)))
        return self.c(h)


class Gated(Layers):
    def __call__(self, x: Any) -> Any:
        gate = self.a(x)
        value = self.b(x)
        del gate
        return self.c(value)


class Overwritten(Layers):
    def __call__(self, x: Any) -> Any:
        x = nnx.tanh(self.a(x))
        x = self.b(x)
        return self.c(x)


class Early(Layers):
    def __call__(self, x: Any) -> Any:
        return self.c(nnx.leaky_relu(self.a(x), 0.2) + self.b(x))


class Late(Layers):
    def __call__(self, x: Any) -> Any:
        return self.c(nnx.silu(self.b(x) + self.a(x)))


class Joined(Layers):
    def __call__(self, x: Any) -> Any:
        return jnp.concatenate([self.b(x), self.c(x), self.a(x)], axis=-1)


class Attending(Layers):
    def __call__(self, x: Any) -> Any:
        scores = (self.a(x) @ self.b(x).T)[None, None]
        return self.c(jax.nn.softmax(scores, axis=-2)[0, 0] @ x)


class Again(Layers):
    def __call__(self, x: Any) -> Any:
        x = self.a(x)
        x = self.b(nnx.relu(x))
        return x + self.c(nnx.tanh(x))


class Unbent(Layers):
    def __call__(self, x: Any) -> Any:
        x = self.a(x)
        return self.b(x)


class Bent(Layers):
    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.b(nnx.relu(self.a(x))))


class Scaled(Layers):
    def __call__(self, x: Any) -> Any:
        return self.b(2 * self.a(x))


def residual(net: Any, x: Any) -> Any:
    x = net.a(x)
    return net.c(x + net.b(torch.relu(x)))


def skipped(net: Any, x: Any) -> Any:
    return net.c(net.b(torch.tanh(net.a(x))) + x)


def gated(net: Any, x: Any) -> Any:
    return net.c(net.a(x) * net.b(x))


def early(net: Any, x: Any) -> Any:
    return net.c(nn.functional.leaky_relu(net.a(x) + net.b(x), 0.2))


def late(net: Any, x: Any) -> Any:
    return net.c(nn.functional.silu(net.a(x)) + net.b(x))


def joined(net: Any, x: Any) -> Any:
    return torch.cat([net.a(x), net.b(x), net.c(x)], -1)


def again(net: Any, x: Any) -> Any:
    x = net.a(x)
    x = x + net.b(torch.relu(x))
    return x + net.c(torch.tanh(x))


def bent_once(net: Any, x: Any) -> Any:
    return net.b(torch.relu(net.a(x)))


def scaled(net: Any, x: Any) -> Any:
    return net.b(2 * torch.relu(net.a(x)))


def attending(net: Any, x: Any) -> Any:
    scores = (net.a(x) @ net.b(x).T)[None, None]
    return net.c(scores.softmax(-1)[0, 0] @ x)


def groups(forward: Forward, port: type[Layers]) -> Any:
    batches = [(np.random.default_rng(0).normal(size=(5, 4)), None)]
    original, flax = compare.Torch(Original(forward)), compare.Flax(port(nnx.Rngs(0)))
    return compare.check(original, flax, batches, device="cpu").groups


@pytest.mark.parametrize(
    ("forward", "port", "line"),
    [
        pytest.param(residual, Residual, "x = x + self.b(nnx.relu(x))", id="a residual"),
        pytest.param(skipped, Skipped, "h = self.b(nnx.tanh(self.a(x))) + x", id="the input of the model"),
        pytest.param(gated, Gated, "value = gate * self.b(x)", id="a gate"),
        pytest.param(early, Early, "return self.c(jax.nn.leaky_relu(self.a(x) + self.b(x), 0.2))", id="before the sum"),
        pytest.param(late, Late, "return self.c(jax.nn.silu(self.a(x)) + self.b(x))", id="behind the sum"),
        pytest.param(bent_once, Unbent, "return self.b(jax.nn.relu(x))", id="an activation"),
        pytest.param(bent_once, Bent, "return self.b(nnx.relu(self.a(x)))", id="an activation too many"),
        pytest.param(
            joined, Joined, "return jnp.concatenate([self.a(x), self.b(x), self.c(x)], axis=-1)", id="an order"
        ),
        pytest.param(attending, Attending, "return self.c(jax.nn.softmax(scores, axis=-1)[0, 0] @ x)", id="an axis"),
    ],
)
def test_a_fault_of_structure_is_a_patch(forward: Forward, port: type[Layers], line: str) -> None:
    first = groups(forward, port)[0]
    assert first.patch, f"{first.headline}: {first.fix}: {first.unpatched}"
    assert [each.strip() for change in first.patch.changes for each in change.added] == [line]


def test_a_name_that_has_another_value_by_then_makes_no_patch() -> None:
    """The port has assigned to `x` before the sum: `x + self.b(x)` would add something else."""
    first = groups(skipped, Overwritten)[0]
    assert first.title == "operation left out"
    assert first.patch is None
    assert first.unpatched == "your code has no name there for what the fix takes"


def test_an_activation_before_something_else_makes_no_patch() -> None:
    """What the JAX side has at the place is not what the activation takes."""
    first = groups(scaled, Scaled)[0]
    assert "jax.nn.relu" in first.fix
    assert first.patch is None


def test_a_sum_that_is_left_out_is_one_finding_wherever_its_variable_is_taken() -> None:
    """The port goes on with `x`, and so lacks the sum in the second residual as well."""
    (group,) = groups(again, Again)
    assert group.patch
    assert [each.strip() for change in group.patch.changes for each in change.added] == ["x = x + self.b(nnx.relu(x))"]


def deviation(x: Any, *, inside: bool) -> Any:
    return jnp.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-3) if inside else x.std(1, ddof=1, keepdims=True) + 1e-3


class RootOfTheSum(Layers):
    def __call__(self, x: Any) -> Any:
        h = self.b(self.a(x))
        return self.c(h / deviation(h, inside=True))


class RootAlone(Layers):
    def __call__(self, x: Any) -> Any:
        h = self.b(self.a(x))
        return self.c(h / deviation(h, inside=False))


@pytest.mark.parametrize("port", [RootOfTheSum, RootAlone])
def test_a_number_that_is_added_inside_the_root(port: type[Layers]) -> None:
    def forward(model: Any, x: torch.Tensor) -> Any:
        h = model.b(model.a(x))
        return model.c(h / (h.std(1, keepdim=True) + 1e-3))

    batches = [np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32) for seed in range(2)]
    report = compare.check(compare.Torch(Original(forward)), compare.Flax(port(nnx.Rngs(0))), batches, steps=2)
    assert report.ok == (port is RootAlone)
    if report.divergence:
        assert report.divergence.cause
        assert "adds 0.001 to the square of" in report.divergence.cause.explanation
        assert "not to its square" in report.divergence.cause.fix


class Discounted(Layers):
    factor, masked = 0.9, True

    def __call__(self, x: Any, done: Any) -> Any:
        g = self.a(x)
        h = self.b(g)
        return self.c(g + (self.factor * (1 - done) * h if self.masked else self.factor * h))


class SquaredDiscount(Discounted):
    factor = 0.9**2


class WithoutMask(Discounted):
    masked = False


@pytest.mark.parametrize(
    ("port", "says"),
    [
        (Discounted, ""),
        (SquaredDiscount, "torch has 0.9, the JAX side 0.81"),
        (WithoutMask, "continues with 0.9 everywhere"),
    ],
)
def test_a_mask_with_a_factor(port: type[Discounted], says: str) -> None:
    """A mask of zeros and ones is its own square, so another discount is no product with the discounted mask."""

    def forward(model: Any, x: torch.Tensor, done: torch.Tensor) -> Any:
        g = model.a(x)
        return model.c(g + 0.9 * (1 - done) * model.b(g))

    random = np.random.default_rng(0)
    batches = [tuple(random.normal(size=(2, 6, 4)).astype(np.float32)) for _ in range(3)]
    batches = [((x, (y > 0.3).astype(np.float32)), y) for x, y in batches]
    sides = compare.Torch(Original(forward)), compare.Flax(port(nnx.Rngs(0)))
    report = compare.check(*sides, batches, steps=3)
    assert report.ok == (not says)
    if report.divergence:
        assert report.divergence.cause
        assert says in report.divergence.cause.explanation


class Rectified(Layers):
    def __call__(self, x: Any) -> Any:
        return self.c(nnx.relu(self.a(x)) + self.b(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_an_activation_of_one_operand_for_the_sum_is_told_of_operations_in_place(*, in_place: bool) -> None:
    """As `out += identity` and `ReLU(inplace=True)` of a residual block."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out, identity = self.a(x), self.b(x)
        if in_place:
            out += identity
        else:
            out = out + identity
        return self.c(nn.functional.relu(out, inplace=in_place))

    rng = np.random.default_rng(0)
    sides = compare.Torch(Original(forward)), compare.Flax(Rectified(nnx.Rngs(0)))
    report = compare.check(*sides, [(rng.normal(size=(8, 4)), None)])
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert report.divergence.cause.name == "operations in another order", str(report)
    assert not report.others
