"""How random numbers of one distribution become those of another.

Torch and JAX draw the same distribution in different ways, and users write their own. What torch has drawn takes the
place of what JAX draws wherever one can be made of the other: a Gumbel variable of a uniform one, a Beta variable of a
Dirichlet one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

NEAR_CHANCE, NEAR_END = 1e-4, 0.05
"""How near a boundary a uniform variable is put, as a part of its interval: float32's sums of many probabilities are
not exact."""


class Conversion(NamedTuple):
    """Makes what JAX draws of what torch has drawn."""

    convert: Callable[..., Any]
    """Given the draw in its standard form and its parameters, gives that of the other kind."""
    axes: int = 0
    """How many of the last axes of a draw it takes away."""
    parameters: Callable[..., Sequence[Any]] | None = None
    """Makes the parameters of the other kind; None where there is nothing to hold against torch's."""


def _itself(value: Any, *_: Any) -> Any:
    return value


def _same(*parameters: Any) -> Sequence[Any]:
    return parameters


def _uniform_of_bernoulli(value: Any, chance: Any) -> Any:
    """Give uniform variables that are below the probability where True was drawn.

    Every other one lies next to the probability, so that another one gives another mask for certain. The rest are
    spread, so that such a mask is no plain one, as that which hides nothing.
    """
    import jax.numpy as jnp

    within = jnp.where(_number(value) % 2 == 0, NEAR_CHANCE, _spread(value))
    return jnp.where(value, chance * (1 - within), chance + (1 - chance) * within)


def _uniform_of_race(variables: Any, chances: Any) -> Any:
    """Give uniform variables from which the sums of the probabilities select what the race has selected.

    Of three, one lies next to each end of its interval, for the same reason. `jax.random.choice` searches the sums for
    1 - u.
    """
    import jax.numpy as jnp

    chances = chances / chances.sum(-1, keepdims=True)
    chosen = (chances / variables).argmax(-1)
    ends = jnp.broadcast_to(jnp.cumsum(chances, -1), variables.shape)
    own = jnp.broadcast_to(chances, variables.shape)
    end, width = (jnp.take_along_axis(each, chosen[..., None], -1)[..., 0] for each in (ends, own))
    third = _number(chosen) % 3
    within = jnp.where(third == 0, NEAR_END, jnp.where(third == 1, 1 - NEAR_END, _spread(chosen)))
    return 1 - (end - width * within)


def _uniform_of_gumbel_race(variables: Any, *_: Any) -> Any:
    """Give the uniform variables u of which -log(u) are those of the race; neither 0 nor 1, as of JAX."""
    import jax.numpy as jnp

    limits = jnp.finfo(jnp.float32)
    return jnp.clip(jnp.exp(-variables), limits.tiny, 1 - limits.epsneg)


def _number(value: Any) -> Any:
    """Number the elements of an array."""
    import jax.numpy as jnp

    return jnp.arange(value.size).reshape(value.shape)


def _spread(value: Any) -> Any:
    """Give numbers between 0 and 1 that look as if they were drawn, the same each time."""
    # The multiples of the golden ratio, modulo 1, are spread evenly over the interval (a Weyl sequence).
    return 0.01 + 0.98 * (_number(value) * 0.6180339887 % 1)


def _minus_log(value: Any, *_: Any) -> Any:
    import jax.numpy as jnp

    return -jnp.log(value)


def _gumbel_of_uniform(value: Any, *_: Any) -> Any:
    # The inverse of the Gumbel distribution function, exp(-exp(-x)).
    return _minus_log(_minus_log(value))


def _exponential_of_uniform(value: Any, *_: Any) -> Any:
    import jax.numpy as jnp

    # The inverse of the exponential distribution function, 1 - exp(-x).
    return -jnp.log1p(-value)


def _uniform_of_exponential(value: Any, *_: Any) -> Any:
    import jax.numpy as jnp

    return -jnp.expm1(-value)


def _uniform_of_cauchy(value: Any, *_: Any) -> Any:
    import jax.numpy as jnp

    # The distribution function of the standard Cauchy distribution.
    return 0.5 + jnp.arctan(value) / np.pi


def _first(value: Any, *_: Any) -> Any:
    return value[..., 0]


def _gamma_of_dirichlet(value: Any, *_: Any) -> Any:
    """Give Gamma variables whose shares these are; their sum may be any number, which a port divides by."""
    return value * _SUM


_SUM = 1.7


def _both(alpha: Any) -> Sequence[Any]:
    return np.asarray(alpha)[..., 0], np.asarray(alpha)[..., 1]


def _shares(chances: Any) -> Sequence[Any]:
    chances = np.asarray(chances)
    return (chances / chances.sum(-1, keepdims=True),)


_CONVERSIONS: dict[str, dict[str, Conversion | tuple[Conversion, ...]]] = {
    # What JAX draws, and what torch may draw there. A race is that of exponential variables, which gives categories.
    "gumbel": {
        "exponential": Conversion(_minus_log),
        "race": Conversion(_minus_log, parameters=_shares),
        "uniform": Conversion(_gumbel_of_uniform),
    },
    "exponential": {"uniform": Conversion(_exponential_of_uniform), "race": Conversion(_itself)},
    "permutation": {"randperm": Conversion(_itself)},
    # A boolean of `jax.random.bernoulli` is whether a uniform variable is below its probability.
    "bernoulli": {"uniform": Conversion(_itself)},
    "uniform": {
        "exponential": Conversion(_uniform_of_exponential),
        "cauchy": Conversion(_uniform_of_cauchy),
        "bernoulli": Conversion(_uniform_of_bernoulli),
        # `jax.random.choice` draws one for each choice, and a Gumbel variable that a port writes by hand needs as many.
        "race": (Conversion(_uniform_of_race, axes=1), Conversion(_uniform_of_gumbel_race)),
    },
    # torch.distributions.Beta draws a Dirichlet variable of two shares, and gives the first.
    "beta": {"dirichlet": Conversion(_first, axes=1, parameters=_both)},
    "gamma": {"dirichlet": Conversion(_gamma_of_dirichlet, parameters=_same)},
    "loggamma": {"gamma": Conversion(_itself, parameters=_same)},
}


def conversions(drawn: str, wanted: str) -> tuple[Conversion, ...]:
    """Tell how what torch has drawn may become what JAX draws, by their kinds; nothing where it does not."""
    if drawn == wanted:
        return (Conversion(_itself, parameters=_same),)
    found = _CONVERSIONS.get(wanted, {}).get(drawn, ())
    return (found,) if isinstance(found, Conversion) else found


PARAMETERS: dict[str, tuple[str, ...]] = {
    "bernoulli": ("p",),
    "randint": ("maxval - minval",),
    "gamma": ("a",),
    "loggamma": ("a",),
    "beta": ("a", "b"),
    "dirichlet": ("alpha",),
    "poisson": ("lam",),
    "gumbel": ("probabilities",),  # of the categories of which it chooses one
}
"""The parameters of a distribution which a replay does not show, by their names in `jax.random`."""
