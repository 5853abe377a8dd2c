"""Compares the distributions that both sides draw from, which a replay of torch's draws does not show.

Means, scales and where a range begins are the JAX side's in a replay, so that wrong ones show in what is computed. The
probability of a mask and the number of integers to draw from do not: a mask that torch has drawn says nothing of the
probability that JAX would have used. They are read from the JAX program, and compared with torch's.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare.jax_side.distributions import PARAMETERS
from compare.jax_side.draw_matching import match
from compare.jax_side.keys import StepKeys
from compare.numerics.distance import distance
from compare.step.draws import Draw, Hints, Site
from compare.step.stage import Stage
from compare.verdict.divergence import Cause, Divergence

DOCS = "https://docs.jax.dev/en/latest/_autosummary/jax.random.{}.html"

RATE, CATEGORIES = "probability of a random mask", "probabilities of categories"
"""The names of causes."""

COMPUTED = 1e-4
"""A probability that a network computes in float32 has that much rounding at most, as long as its weights are equal."""


class Parameter(NamedTuple):
    """A parameter of one draw, on both sides."""

    site: Site
    name: str
    """Its name in `jax.random`."""
    draw: int
    torch: np.ndarray
    """As many numbers as JAX's, in its layout."""
    jax: np.ndarray
    written: bool
    """Whether torch's is a number in the user's code, and not computed by tensors."""

    @property
    def equal(self) -> bool:
        """Whether both are equal up to rounding."""
        if self.site.kind == "randint":
            return bool(np.array_equal(self.torch, self.jax))
        if not self.written:
            return distance(self.jax.astype(np.float64), self.torch) < COMPUTED
        # 1 - rate in float32 is off by a rounding of each number; what has fewer bits is off by more.
        return bool(np.all(np.abs(self.torch - self.jax) <= 4 * _epsilon(self.jax) * np.maximum(1, self.torch)))


def _epsilon(array: np.ndarray) -> float:
    import jax.numpy as jnp

    # In the float64 run, too, a rate may come from the user's float32.
    return max(float(jnp.finfo(dtype).eps) for dtype in (array.dtype, np.float32))


def other_parameter(steps: Sequence[StepKeys], draws: Sequence[Sequence[Draw]], hints: Hints) -> Divergence | None:
    """Find the first draw that the JAX side makes from another distribution than torch's.

    Args:
        steps: What each step draws with.
        draws: What torch drew at each step.
        hints: What is known of the layouts of draws.

    """
    for number, (keys, drawn) in enumerate(zip(steps, draws, strict=False)):
        for each in both_parameters(keys, drawn, hints):
            # Weights that rounding has moved apart compute another probability: the first step alone decides.
            if not each.equal and (each.written or number == 0):
                return _finding(number, each)
    return None


def comes_first(more: Divergence, found: Divergence) -> bool:
    """Tell whether a parameter may be what another finding without a cause comes from."""
    is_cause = more.cause is not None and more.cause.name == CATEGORIES
    return is_cause and found.cause is None and more.step <= found.step


def known(more: Divergence, *found: Divergence | None) -> bool:
    """Tell whether a probability that differs is the rate of a dropout that is a finding already."""
    names = [each.cause.name for each in found if each and each.cause]
    return more.cause is not None and more.cause.name == RATE and "dropout rate" in names


def both_parameters(keys: StepKeys, draws: Sequence[Draw], hints: Hints) -> Iterator[Parameter]:
    """List the parameters of all draws that have a partner, of those kinds whose replay hides them."""
    replayed = [draw for draw in draws if not draw.backward]
    matching = match([Site(draw.kind, draw.value.shape) for draw in replayed], keys.sites, hints)
    for site, read, found in zip(keys.sites, keys.reads, matching.placed, strict=True):
        if found is None or read is None or not read.parameters:
            continue
        draw = replayed[found.draw]
        written = all(isinstance(each, float) for each in draw.parameters)
        ours = found.parameters(*draw.parameters) if draw.parameters else ()
        for name, torch, jax in zip(PARAMETERS[site.kind], ours, read.parameters, strict=bool(ours)):
            shape = draw.value.shape[: draw.value.ndim - found.conversion.axes]
            laid_out = found.laid_out(np.broadcast_to(np.asarray(torch, np.float64), shape))
            yield Parameter(site, name, found.draw, np.asarray(laid_out), np.asarray(jax), written)


def _finding(step: int, found: Parameter) -> Divergence:
    from scipy.special import softmax

    ours, theirs, kind = _shown(found.torch), _shown(found.jax), found.site.kind
    fix = ""
    if kind == "randint":
        name = "range of random integers"
        says = f"torch draws one of {ours} integers, and jax.random.randint one of {theirs}"
        fix = f"jax.random.randint(key, shape, low, low + {ours}), with torch's low"
    elif kind == "bernoulli":
        name = RATE
        says = f"torch draws True with probability {ours}, and jax.random.bernoulli with probability {theirs}"
        fix = f"jax.random.bernoulli(key, {ours}, shape)" if found.written else ""
    elif kind == "gumbel":
        name = CATEGORIES
        says = f"torch draws categories with probabilities {ours}, and the JAX side with probabilities {theirs}"
        if distance(found.jax.astype(np.float64), softmax(found.torch, axis=-1)) < COMPUTED:
            fix = (
                "take the logarithms of the probabilities: jax.random.categorical, or a sum with Gumbel variables, "
                "needs logits"
            )
    else:
        name = "parameter of a random draw"
        says = f"torch draws with {found.name} = {ours}, and jax.random.{kind} with {found.name} = {theirs}"
        if found.written and len(PARAMETERS[kind]) == 1:
            fix = f"jax.random.{kind}(key, {ours}, shape)"
    place = found.site.place or str(found.site)
    given = "JAX was given torch's draws, so that the numbers of the step do not depend on it"
    if kind == "randint":
        given = (
            "JAX was given torch's draws, counted from its own minval. With another minval, the step differs as well"
        )
    if name == CATEGORIES:
        given = "They are read from both programs. Other categories are drawn with them"
    explanation = f"{says}, {place}. {given}"
    cause = Cause(name, explanation, fix, DOCS.format(kind))
    apart = distance(found.jax.astype(np.float64), found.torch)
    return Divergence(step, Stage.FORWARD, f"draw {found.draw}, {found.site}", place, apart, 0.0, 0.0, cause)


def _shown(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if f"{low:.6g}" == f"{high:.6g}" else f"between {low:.6g} and {high:.6g}"
