"""What torch draws from a distribution takes the place of what JAX draws, by that distribution or by another one."""

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributions as D  # noqa: N812
from test_randomness import compared
from torch.nn import functional as F  # noqa: N812


def key(number: int = 0) -> Any:
    return jax.random.key(number)


SHAPE = (3, 5, 8)
NUMPY: Any = np.random
WEIGHTS = np.arange(1.0, 9.0, dtype=np.float32)


def torch_concentration(x: torch.Tensor) -> torch.Tensor:
    return D.Gamma(F.softplus(x) + 0.1, 2.0).rsample()


def jax_concentration(x: Any) -> Any:
    return jax.random.gamma(key(), jax.nn.softplus(x) + 0.1) / 2


def torch_indices(x: torch.Tensor) -> torch.Tensor:
    return x[..., torch.multinomial(torch.from_numpy(WEIGHTS), 8, replacement=True)]


def jax_student(x: Any) -> Any:
    return x + jax.random.t(key(), 5.0, SHAPE)


DISTRIBUTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], Any]]] = {
    "beta": (
        lambda x: x * D.Beta(0.4, 0.7).sample((3, 1, 1)),
        lambda x: x * jax.random.beta(key(), 0.4, 0.7, (3, 1, 1)),
    ),
    "chi square": (
        lambda x: x + D.Chi2(4.0).sample(SHAPE),
        lambda x: x + jax.random.chisquare(key(), 4.0, shape=SHAPE),
    ),
    "concentration": (torch_concentration, jax_concentration),
    "dirichlet": (
        lambda x: x * D.Dirichlet(torch.ones(8)).sample((3, 5)),
        lambda x: x * jax.random.dirichlet(key(), jnp.ones(8), (3, 5)),
    ),
    "dirichlet of gamma": (
        lambda x: x * D.Dirichlet(torch.ones(8)).sample((3, 5)),
        lambda x: x * (g := jax.random.gamma(key(), 1.0, SHAPE)) / g.sum(-1, keepdims=True),
    ),
    "log gamma": (
        lambda x: x + D.Gamma(2.0, 1.0).sample(SHAPE).log(),
        lambda x: x + jax.random.loggamma(key(), 2.0, SHAPE),
    ),
    "poisson": (lambda x: x * torch.poisson(x.exp()), lambda x: x * jax.random.poisson(key(), jnp.exp(x))),
    "student": (lambda x: x + D.StudentT(5.0).rsample(SHAPE), jax_student),
    "cauchy": (lambda x: D.Cauchy(x, 0.5).rsample(), lambda x: x + 0.5 * jax.random.cauchy(key(), SHAPE)),
    # Of the same uniform variable, JAX's has the other sign. A check finds that out by itself.
    "laplace": (lambda x: D.Laplace(x, 0.5).rsample(), lambda x: x - 0.5 * jax.random.laplace(key(), SHAPE)),
    "log normal": (
        lambda x: x * torch.empty(SHAPE).log_normal_(0.1, 0.3),
        lambda x: x * jnp.exp(0.1 + 0.3 * jax.random.normal(key(), SHAPE)),
    ),
    "weibull": (
        lambda x: x * D.Weibull(2.0, 3.0).rsample(SHAPE),
        lambda x: x * jax.random.weibull_min(key(), 2.0, 3.0, SHAPE),
    ),
    "gumbel of uniform": (
        lambda x: x - torch.log(-torch.log(torch.rand(SHAPE))),
        lambda x: x + jax.random.gumbel(key(), SHAPE),
    ),
    "exponential of uniform": (
        lambda x: x - torch.log1p(-torch.rand(SHAPE)),
        lambda x: x + jax.random.exponential(key(), SHAPE),
    ),
    "uniform of exponential": (
        lambda x: x + torch.empty(SHAPE).exponential_(),
        lambda x: x - jnp.log1p(-jax.random.uniform(key(), SHAPE)),
    ),
    "uniform of cauchy": (
        lambda x: x + torch.empty(SHAPE).cauchy_(),
        lambda x: x + jnp.tan(jnp.pi * (jax.random.uniform(key(), SHAPE) - 0.5)),
    ),
    "uniform of boolean": (
        lambda x: x * torch.bernoulli(torch.full(SHAPE, 0.3)),
        lambda x: x * (jax.random.uniform(key(), SHAPE) < 0.3),
    ),
    "categories": (
        torch_indices,
        lambda x: x[..., jax.random.categorical(key(), jnp.log(WEIGHTS), shape=(8,))],
    ),
    "choice": (torch_indices, lambda x: x[..., jax.random.choice(key(), 8, (8,), p=WEIGHTS / WEIGHTS.sum())]),
    "rows of categories": (
        lambda x: x + D.Categorical(logits=x).sample((4,)).sum(0)[..., None],
        lambda x: x + jax.random.categorical(key(), x, shape=(4, 3, 5)).sum(0)[..., None],
    ),
    "categories without replacement": (
        lambda x: x[..., torch.multinomial(torch.from_numpy(WEIGHTS), 3)],
        lambda x: x[..., jax.random.choice(key(), 8, (3,), replace=False, p=WEIGHTS / WEIGHTS.sum())],
    ),
    "categories along another axis": (
        lambda x: x[0] * torch.multinomial(torch.softmax(x[0], -1), 1),
        lambda x: x[0] * jax.random.categorical(key(), x[0].T, axis=0)[:, None],
    ),
    "categories of uniform": (
        lambda x: x[0] * torch.multinomial(torch.softmax(x[0], -1), 1),
        lambda x: x[0] * jnp.argmax(x[0] - jnp.log(-jnp.log(jax.random.uniform(key(), (5, 8)))), -1)[:, None],
    ),
    "categories of uniform along another axis": (
        lambda x: x[0] * torch.multinomial(torch.softmax(x[0], -1), 1),
        lambda x: x[0] * jnp.argmax(x[0].T - jnp.log(-jnp.log(jax.random.uniform(key(), (8, 5)))), 0)[:, None],
    ),
    "numpy": (
        # As training scripts have it: NumPy's global generator.
        lambda x: x * NUMPY.beta(0.4, 0.4) + NUMPY.normal(1.0, 2.0) * NUMPY.randint(3, 9),
        lambda x: (
            x * jax.random.beta(key(), 0.4, 0.4)
            + (1 + 2 * jax.random.normal(key(1))) * jax.random.randint(key(2), (), 3, 9)
        ),
    ),
    "python": (lambda x: x * random.uniform(1, 3), lambda x: x * jax.random.uniform(key(), minval=1, maxval=3)),
}
"""What torch draws from a distribution, and a port that draws it as it is, or by another one."""


DRAWS_BETA = "_beta" in str(jax.make_jaxpr(lambda key: jax.random.beta(key, 2.0, 2.0))(jax.random.key(0)))
"""Whether `jax.random.beta` is one function in a traced program; before, it is two draws of a gamma distribution."""

needs_beta = pytest.mark.skipif(not DRAWS_BETA, reason="in this version of JAX, beta is two draws of gamma")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_beta] * (name in ("beta", "numpy"))) for name in DISTRIBUTIONS]
)
def test_distributions(name: str) -> None:
    (error32, error64), unreplayed, _ = compared(*DISTRIBUTIONS[name])
    assert unreplayed == []
    assert error32 < 1e-4
    assert error64 < 1e-13


@pytest.mark.parametrize("rate", [0.29, 0.31])
def test_a_boolean_shows_another_probability(rate: float) -> None:
    """However near it is, in a mask of a few elements that JAX makes of uniform variables."""
    errors, unreplayed, _ = compared(
        lambda x: x * torch.bernoulli(torch.full(SHAPE, 0.3)),
        lambda x: x * (jax.random.uniform(key(), SHAPE) < rate),
    )
    assert unreplayed == []
    assert errors[1] > 0.1


def test_categories_show_other_probabilities() -> None:
    other = WEIGHTS + 0.5
    for port in (
        lambda x: x[..., jax.random.choice(key(), 8, (8,), p=other / other.sum())],
        lambda x: x[..., jax.random.categorical(key(), jnp.log(WEIGHTS[::-1]), shape=(8,))],
    ):
        errors, unreplayed, _ = compared(torch_indices, port)
        assert unreplayed == []
        assert errors[1] > 0.1


def test_a_few_categories_show_other_probabilities() -> None:
    """Of so few draws, most would be the same by chance: the port takes probabilities for their logarithms."""
    errors, unreplayed, _ = compared(
        lambda x: x + D.Categorical(logits=x[..., :3]).sample()[..., None],
        lambda x: x + jax.random.categorical(key(), jax.nn.softmax(x[..., :3]))[..., None],
    )
    assert unreplayed == []
    assert errors[1] > 0.1
