"""What a replay hides is read: the probability of a mask and the range of integers. What is as likely is no fault."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from in_ci import first, some
from torch.nn import functional as F  # noqa: N812

import compare

WIDTH = 6
RNG = np.random.default_rng(5)
BATCH = RNG.normal(size=(WIDTH, 4, WIDTH)), None
SQUARE = RNG.normal(size=(WIDTH, WIDTH, WIDTH)), None

TorchNoise = Callable[[torch.Tensor], torch.Tensor]
JaxNoise = Callable[[jax.Array, jax.Array], jax.Array]


class Original(torch.nn.Module):
    """Two linear layers with something random between them."""

    def __init__(self, noise: TorchNoise) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.noise = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3), noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.noise(torch.tanh(self.first(x))))


PARAMS = {
    "first": {"kernel": jnp.zeros((WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)},
    "second": {"kernel": jnp.zeros((WIDTH, 3)), "bias": jnp.zeros(3)},
}


def check(original: TorchNoise, port: JaxNoise, data: Any = BATCH, batch: Any = None) -> compare.Report:
    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        return port(h, jax.random.key(3)) @ params["second"]["kernel"] + params["second"]["bias"]

    return compare.check(
        compare.Torch(Original(original)), compare.Jax(apply, PARAMS, batch=batch), [data], device="cpu"
    )


def kept(p: float) -> JaxNoise:
    return lambda h, key: jnp.where(jax.random.bernoulli(key, p, h.shape), h / 0.8, 0)


def dropped(p: float, keep: float = 0.8) -> JaxNoise:
    return lambda h, key: jnp.where(jax.random.bernoulli(key, p, h.shape), 0, h / keep)


def rows(p: float) -> JaxNoise:
    """One mask a row, each of the rows with its own key and its own probability."""

    def row(h: jax.Array, key: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, p, h.shape), h / 0.8, 0)

    return lambda h, key: jax.vmap(row)(h, jax.random.split(key, len(h)), jnp.full(len(h), p))


def scanned(p: float) -> JaxNoise:
    def step(h: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return kept(p)(h, key), None

    return lambda h, key: jax.lax.scan(step, h, jax.random.split(key, 2))[0]


def integers(low: int, high: int, moved: int = 0) -> JaxNoise:
    return lambda h, key: h * (jax.random.randint(key, h.shape, low, high) + moved)


def gated(scale: float) -> JaxNoise:
    """A mask whose probability the network computes."""
    return lambda h, key: h * jax.random.bernoulli(key, jax.nn.sigmoid(scale * h))


def dropout(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.2)


def dropout_twice(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(F.dropout(x, 0.2), 0.2)


def torch_integers(x: torch.Tensor) -> torch.Tensor:
    return x * torch.randint(2, 7, x.shape)


def paths(x: torch.Tensor) -> torch.Tensor:
    return x * (torch.rand(len(x), 1, 1) < 0.8) / 0.8


def paths_from_above(x: torch.Tensor) -> torch.Tensor:
    return x * torch.floor(0.8 + torch.rand(len(x), 1, 1)) / 0.8


def drop_path(p: float) -> JaxNoise:
    return lambda h, key: jnp.where(jax.random.bernoulli(key, p, (len(h), 1, 1)), h / 0.8, 0)


def sampled(x: torch.Tensor) -> torch.Tensor:
    return x * torch.multinomial(torch.softmax(x.flatten(0, 1), -1), 1).view(*x.shape[:2], 1)


def categorical(scale: float) -> JaxNoise:
    def noise(h: jax.Array, key: jax.Array) -> jax.Array:
        return h * jax.random.categorical(key, scale * h.reshape(-1, WIDTH)).reshape(*h.shape[:2], 1)

    return noise


def mask_once(x: torch.Tensor) -> torch.Tensor:
    mask = F.dropout(torch.ones_like(x), 0.2)
    return torch.tanh(x * mask) * mask


def one_key(other: bool) -> JaxNoise:
    """Two masks of one key, which are equal; or of two."""
    return lambda h, key: kept(0.8)(jnp.tanh(kept(0.8)(h, key)), jax.random.fold_in(key, 1) if other else key)


RIGHT: dict[str, tuple[TorchNoise, JaxNoise]] = {
    "what to drop": (dropout, dropped(0.2)),
    "what to drop, one half": (lambda x: F.dropout(x, 0.5), dropped(0.5, keep=0.5)),
    "vmap": (dropout, rows(0.8)),
    "scan": (dropout_twice, scanned(0.8)),
    "integers from elsewhere on": (torch_integers, integers(0, 5, moved=2)),
    "computed": (lambda x: x * torch.bernoulli(torch.sigmoid(2 * x)), gated(2)),
    "uniform for a boolean": (paths, drop_path(0.8)),
    "uniform from above": (paths_from_above, drop_path(0.8)),
    "categories": (sampled, categorical(1)),
    "one mask twice": (mask_once, one_key(other=False)),
}

WRONG: dict[str, tuple[TorchNoise, JaxNoise, str]] = {
    # With the cause, where the values of a step do not show it.
    "another probability": (dropout, kept(0.7), "probability of a random mask"),
    "that of dropping": (dropout, kept(0.2), "probability of a random mask"),
    "what to drop": (dropout, dropped(0.3), ""),
    "vmap": (dropout, rows(0.9), "probability of a random mask"),
    "scan": (dropout_twice, scanned(0.9), "probability of a random mask"),
    "integers": (torch_integers, integers(2, 12), "range of random integers"),
    "integers from elsewhere on": (torch_integers, integers(0, 5), ""),
    "computed": (lambda x: x * torch.bernoulli(torch.sigmoid(2 * x)), gated(1.5), "probability of a random mask"),
    "uniform for a boolean": (paths, drop_path(0.3), ""),
    "categories": (sampled, categorical(-1), ""),
    "one mask twice": (mask_once, one_key(other=True), ""),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_as_likely_matches(name: str) -> None:
    report = check(*RIGHT[name])
    assert report.verdict == "match", str(report)


@pytest.mark.parametrize(
    "name",
    some(
        WRONG, WRONG.keys() - {"one mask twice", "what to drop", "uniform for a boolean", "integers from elsewhere on"}
    ),
)
def test_another_distribution_does_not(name: str) -> None:
    original, port, cause = WRONG[name]
    report = check(original, port)
    assert report.verdict == "mismatch", str(report)
    found = [each.cause.name for each in (report.divergence, *report.others) if each and each.cause]
    assert (cause in found) or not cause, found


def test_the_numbers_of_both_sides_are_named() -> None:
    report = check(dropout, kept(0.7))
    assert report.divergence is not None
    assert report.divergence.cause is not None
    assert "with probability 0.8, and jax.random.bernoulli with probability 0.7" in report.divergence.cause.explanation
    assert report.divergence.cause.fix == "jax.random.bernoulli(key, 0.8, shape)"
    assert report.divergence.jax.startswith("test_draw_parameters.py:")


@pytest.mark.parametrize(("keep", "verdict"), first([(0.8, "match"), (0.9, "mismatch")]))
def test_a_layout_that_shapes_leave_open(keep: float, verdict: str) -> None:
    """The JAX side has the batch first and torch has time first, and both are equally long."""

    def swapped(inputs: Any, target: Any) -> Any:
        return inputs.swapaxes(0, 1), target

    def port(h: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h / keep, 0).swapaxes(0, 1)

    report = check(dropout, port, SQUARE, batch=swapped)
    assert report.verdict == verdict, str(report)


def torch_program() -> Any:
    model = Original(dropout)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(state: Any, batch: Any) -> Any:
        del state
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return {"model": model, "optimizer": optimizer}, step


def jax_program(noise: JaxNoise) -> Callable[[], Any]:
    def loss(params: Any, x: Any, key: Any) -> Any:
        h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        return jnp.mean((noise(h, key) @ params["second"]["kernel"] + params["second"]["bias"]) ** 2)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        key, own = jax.random.split(state["key"])
        value, gradients = jax.value_and_grad(loss)(state["params"], batch, own)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], gradients)
        return {"params": params, "key": key}, {"loss": value}

    return lambda: ({"params": PARAMS, "key": jax.random.key(0)}, step)


@pytest.mark.parametrize(
    ("noise", "verdict"),
    first([(kept(0.8), "match"), (dropped(0.2), "match"), (kept(0.3), "mismatch"), (dropped(0.3), "mismatch")], 3),
    ids=["kept", "dropped", "wrongly kept", "wrongly dropped"],
)
def test_programs(noise: JaxNoise, verdict: str) -> None:
    programs = compare.TorchProgram(torch_program), compare.JaxProgram(jax_program(noise))
    report = compare.check(*programs, [BATCH[0]], steps=2, device="cpu")
    assert report.verdict == verdict, str(report)


def with_categories(h: torch.Tensor) -> torch.Tensor:
    return h + torch.distributions.Categorical(logits=h).sample()[..., None]


def categories(logits: Callable[[jax.Array], jax.Array]) -> JaxNoise:
    return lambda h, key: h + jax.random.categorical(key, logits(h))[..., None]


def test_probabilities_of_categories_are_compared() -> None:
    """They are the operand of an addition: neither `categorical` nor `choice` is an operation of a traced program."""
    for right in (
        categories(lambda h: h),
        categories(jax.nn.log_softmax),
        lambda h, key: h + jnp.argmax(h + jax.random.gumbel(key, h.shape), -1)[..., None],
    ):
        assert check(with_categories, right).verdict == "match"
    wrong = check(with_categories, categories(jax.nn.softmax)).divergence
    assert wrong is not None
    assert wrong.cause is not None
    assert wrong.cause.name == "probabilities of categories"
    assert "logits" in wrong.cause.fix
    warmer = check(with_categories, categories(lambda h: h / 2)).divergence
    assert warmer is not None
    assert warmer.cause is not None
    assert (warmer.cause.name, warmer.cause.fix) == ("probabilities of categories", "")
