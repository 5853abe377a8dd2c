"""What differs inside the model and is undone later is no finding, beside whatever else is wrong."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from in_ci import some

import compare

WIDTH, HEADS = 6, 2


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class Pair(NamedTuple):
    """A program and its port, whose norm may have a wrong epsilon."""

    original: type[torch.nn.Module]
    port: Callable[[float], Any]
    inputs: np.ndarray
    place: str
    """Where the wrong epsilon must be found."""


class Attention(torch.nn.Module):
    """Batch first, with heads as an axis of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix, self.out, self.norm = torch.nn.Softmax(-1), torch.nn.Linear(WIDTH, WIDTH), torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        q, k, v = (f(x).view(batch, time, HEADS, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = self.mix(q * (WIDTH // HEADS) ** -0.5 @ k.transpose(-1, -2))
        together = (weights @ v).transpose(1, 2).reshape(batch, time, WIDTH)
        result: torch.Tensor = self.norm(x + self.out(together))
        return result


class Softmax(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return jax.nn.softmax(x)


class FoldedPort(nnx.Module):
    """Time first, heads folded into the batch, and scores that are scaled and not queries."""

    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.query, self.key, self.value, self.out = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))
        self.mix, self.norm = Softmax(), nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        batch, time, _ = x.shape
        x = x.swapaxes(0, 1)
        q, k, v = (f(x).reshape(time, batch * HEADS, -1).swapaxes(0, 1) for f in (self.query, self.key, self.value))
        weights = self.mix(q @ k.swapaxes(1, 2) * (WIDTH // HEADS) ** -0.5)
        together = (weights @ v).swapaxes(0, 1).reshape(time, batch, WIDTH)
        return self.norm(x + self.out(together)).swapaxes(0, 1)


class Scaled(torch.nn.Module):
    """Scales what it looks up, in a container that gives one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = torch.nn.Embedding(9, WIDTH), Body()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self.table(x) * WIDTH**0.5)
        return result


class Body(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.LayerNorm(WIDTH),
            torch.nn.Linear(WIDTH, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.norm(self.first(x)))
        return result


class ScaledPort(nnx.Module):
    """Scales within the container, which also gives what nobody takes."""

    def __init__(self, epsilon: float) -> None:
        self.table, self.body = nnx.Embed(9, WIDTH, rngs=nnx.Rngs(0)), BodyPort(epsilon)

    def __call__(self, x: Any) -> Any:
        return self.body(self.table(x))[1]


class BodyPort(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        hidden = self.first(x * WIDTH**0.5)
        return hidden.mean(), self.last(self.norm(hidden))


class Products(torch.nn.Module):
    """Scales the left factor of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = (
            torch.nn.Linear(WIDTH, 5),
            torch.nn.Linear(WIDTH, 5),
            torch.nn.LayerNorm(5),
        )
        self.drop = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.drop(self.left(x) * 0.25) * self.right(x))
        return result


class Same(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return x


Same.__name__ = "Identity"


class ProductsPort(nnx.Module):
    """Scales the right factor: neither place is right without the other."""

    def __init__(self, epsilon: float) -> None:
        rngs = nnx.Rngs(0)
        self.left, self.right = nnx.Linear(WIDTH, 5, rngs=rngs), nnx.Linear(WIDTH, 5, rngs=rngs)
        self.norm, self.drop = nnx.LayerNorm(5, epsilon=epsilon, rngs=rngs), Same()

    def __call__(self, x: Any) -> Any:
        return self.norm(self.drop(self.left(x)) * (self.right(x) * 0.25))


PAIRS = {
    "heads folded, time first": Pair(Attention, FoldedPort, _normal(3, 4, WIDTH), "norm"),
    "scaled later, another container": Pair(
        Scaled, ScaledPort, np.random.default_rng(0).integers(0, 9, (4, 5)), "body.norm"
    ),
    "the other factor scaled": Pair(Products, ProductsPort, _normal(4, WIDTH), "norm"),
}


def _checked(pair: Pair, epsilon: float, factor: float = 1.0) -> compare.Report:
    torch.manual_seed(0)

    def torch_loss(output: torch.Tensor, _: Any) -> torch.Tensor:
        return (output**2).mean() + output.mean()

    def jax_loss(output: Any, _: Any) -> Any:
        return factor * jnp.mean(output**2) + jnp.mean(output)

    return compare.check(
        compare.Torch(pair.original(), torch_loss, functools.partial(torch.optim.SGD, lr=0.1)),
        compare.Flax(pair.port(epsilon), jax_loss, optax.sgd(0.1)),
        [(pair.inputs, pair.inputs)],
        steps=2,
        device="cpu",
    )


@pytest.mark.parametrize("name", some(PAIRS, list(PAIRS)[::2]))
def test_a_right_port_of_another_arrangement_matches(name: str) -> None:
    report = _checked(PAIRS[name], 1e-5)
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize("name", some(PAIRS, list(PAIRS)[::2]))
def test_beside_another_arrangement_the_fault_is_the_only_finding(name: str) -> None:
    report = _checked(PAIRS[name], 1e-3)
    assert report.divergence
    assert report.divergence.torch == PAIRS[name].place, str(report)
    assert report.divergence.cause
    assert report.divergence.cause.name == "epsilon"
    assert not report.others, str(report)


def test_beside_another_arrangement_the_loss_is_the_only_finding() -> None:
    report = _checked(PAIRS["scaled later, another container"], 1e-5, factor=1.5)
    assert report.divergence
    assert report.divergence.stage == "loss", str(report)
    assert not report.others, str(report)


def test_a_fault_behind_another_is_still_listed() -> None:
    """The later one alone would explain the output: it hides the first, and does not undo it."""

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.first, self.last = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)
            self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(1.5 * self.norm(self.first(x)))

    report = compare.check(compare.Torch(Body()), compare.Flax(Port()), [(_normal(4, WIDTH), None)], device="cpu")
    assert report.divergence
    assert report.divergence.torch == "norm", str(report)
    assert [other.torch for other in report.others] == ["between norm and last"], str(report)


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.fc(x)
        return y, torch.tanh(y)


class TwoPort(nnx.Module):
    def __init__(self, give: Callable[[Any], Any]) -> None:
        self.fc, self.give = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)), give

    def __call__(self, x: Any) -> Any:
        return self.give(self.fc(x))


@pytest.mark.parametrize(
    ("give", "verdict"),
    [
        (lambda y: (y, jnp.tanh(y)), "match"),
        (lambda y: {"hidden": jnp.tanh(y), "logits": y}, "match"),
        (lambda y: (jnp.tanh(y), y), "mismatch"),
        (lambda y: {"hidden": jnp.tanh(y), "logits": 2 * y}, "mismatch"),
        (lambda y: jnp.argmax(y, -1), "mismatch"),
    ],
    ids=["the same", "other names", "another order", "other names, one wrong", "an output that is none of torch's"],
)
def test_outputs_without_a_loss_are_held_against_each_other(give: Callable[[Any], Any], verdict: str) -> None:
    torch.manual_seed(0)
    report = compare.check(compare.Torch(Two()), compare.Flax(TwoPort(give)), [(_normal(4, WIDTH), None)], device="cpu")
    assert report.verdict == verdict, str(report)
    assert verdict == "match" or "output" in str(report) or "the end of the model" in str(report)


def test_outputs_in_another_order_are_named_as_such() -> None:
    port = compare.Flax(TwoPort(lambda y: (jnp.tanh(y), y)))
    report = compare.check(compare.Torch(Two()), port, [(_normal(4, WIDTH), None)], device="cpu")
    assert report.divergence
    assert report.divergence.cause
    assert report.divergence.cause.name == "order of outputs", str(report)


def test_inputs_are_paired_by_the_names_of_arguments() -> None:
    """Labels on one side and positions on the other have the same shape, and nothing to do with each other."""

    class Original(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = (
                torch.nn.Embedding(9, WIDTH),
                torch.nn.Embedding(5, WIDTH),
                torch.nn.Linear(WIDTH, 9),
            )

        def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            shown = self.out(self.words(ids) + self.places(torch.arange(ids.shape[1])))
            return torch.nn.functional.cross_entropy(shown.flatten(0, 1), labels.flatten())

    class Port(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.words, self.places = nnx.Embed(9, WIDTH, rngs=rngs), nnx.Embed(5, WIDTH, rngs=rngs)
            self.out = nnx.Linear(WIDTH, 9, rngs=rngs)

        def __call__(self, ids: Any, positions: Any) -> Any:
            return self.out(self.words(ids) + self.places(positions))

    ids = np.random.default_rng(0).integers(0, 9, (3, 5))

    def checked(factor: float) -> compare.Report:
        def loss(output: Any, target: Any) -> Any:
            return factor * optax.softmax_cross_entropy_with_integer_labels(output, target).mean()

        def adapt(inputs: Any, _: Any) -> Any:
            return {"ids": inputs["ids"], "positions": np.broadcast_to(np.arange(5), (3, 5))}, inputs["labels"]

        torch.manual_seed(0)
        return compare.check(
            compare.Torch(Original(), lambda output, _: output),
            compare.Flax(Port(), loss, batch=adapt),
            [({"ids": ids, "labels": ids}, np.zeros(3))],
            device="cpu",
        )

    assert checked(1.0).verdict == "match"
    wrong = checked(1.5)
    assert wrong.divergence
    assert wrong.divergence.stage == "loss", str(wrong)
    assert not wrong.others


class Flattening(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(5 * 4 * 2, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(torch.relu(self.conv(x)).flatten(1))
        return result


def _plain(params: Any, x: Any, act: Callable[[Any], Any] = jax.nn.relu) -> Any:
    conv, fc = params["conv"], params["fc"]
    x = jax.lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1), conv["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return act(x + conv["b"]).reshape(x.shape[0], -1) @ fc["w"] + fc["b"]


class LinenFlattening(linen.Module):
    act: Callable[[Any], Any] = jax.nn.relu

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = self.act(linen.Conv(5, (3, 3), padding="VALID", name="conv")(x.transpose(0, 2, 3, 1)))
        return linen.Dense(7, name="fc")(x.reshape(x.shape[0], -1))


def _flattening(kind: str, act: Callable[[Any], Any]) -> compare.Report:
    zeros = {"conv": {"w": _normal(3, 3, 3, 5), "b": np.zeros(5)}, "fc": {"w": _normal(40, 7), "b": np.zeros(7)}}
    side = compare.Jax(functools.partial(_plain, act=act), jax.tree.map(np.float32, zeros))
    if kind == "linen":
        model = LinenFlattening(act)
        side = compare.Jax(model.apply, model.init(jax.random.key(0), jnp.zeros((1, 3, 6, 4))))
    torch.manual_seed(0)
    return compare.check(compare.Torch(Flattening()), side, [(_normal(2, 3, 6, 4), None)], device="cpu")


@pytest.mark.parametrize("kind", ["plain", "linen"])
def test_a_pure_function_may_flatten_with_channels_last(kind: str) -> None:
    assert _flattening(kind, jax.nn.relu).verdict == "match"
    wrong = _flattening(kind, jax.nn.silu)
    assert wrong.divergence
    assert wrong.divergence.torch == {"plain": "the model", "linen": "between conv and fc"}[kind], str(wrong)
    assert not wrong.others


class PostNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(PostNormBlock() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PostNormBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.out = (
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.LayerNorm(WIDTH),
            torch.nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(torch.tanh(self.norm(self.mix(x))))
        return result


class NormBlock(nnx.Module):
    def __init__(self, first: bool, rngs: nnx.Rngs) -> None:
        self.mix, self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm, self.first = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs), first

    def __call__(self, x: Any) -> Any:
        return self.out(jnp.tanh(self.mix(self.norm(x)) if self.first else self.norm(self.mix(x))))


class NormPort(nnx.Module):
    def __init__(self, first: bool) -> None:
        self.blocks = nnx.List([NormBlock(first, nnx.Rngs(0)) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("first", [False, True], ids=["norm behind", "norm before"])
def test_modules_in_another_order_are_one_finding_for_each_block(first: bool) -> None:
    torch.manual_seed(0)
    report = compare.check(
        compare.Torch(PostNorm()), compare.Flax(NormPort(first)), [(_normal(4, WIDTH), None)], device="cpu"
    )
    assert report.verdict == ("mismatch" if first else "match"), str(report)
    if first:
        found = [report.divergence, *report.others]
        assert [each and each.torch for each in found] == ["blocks.0", "blocks.1"], str(report)
        assert all(each and each.cause and each.cause.name == "order of modules" for each in found)
