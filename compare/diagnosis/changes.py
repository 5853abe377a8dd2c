"""Changes of torch's calls, one or several at once, and their descriptions."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from compare.diagnosis.conventions.reductions import MEAN_OR_SUM
from compare.diagnosis.conventions.settings import CONSTANT
from compare.diagnosis.counterfactuals import BOUNDS, Counterfactual
from compare.diagnosis.optimizers.told import with_distinct_digits
from compare.diagnosis.rewriting import Rewrite
from compare.numerics.distance import distance
from compare.verdict.divergence import Cause

Observe = Callable[[dict[int, Rewrite]], np.ndarray | None]
"""Runs a step with some of torch's calls changed; None where a change does not apply."""

Changed = tuple[list[Counterfactual], float | None]
"""The same change of several calls, with the value that was fitted if it has one."""


def combined(changed: Sequence[Changed]) -> dict[int, Rewrite]:
    """Rewrite calls, in several ways one within the other where it is the same call."""
    rewrites: dict[int, Rewrite] = {}
    for group, value in changed:
        for each in group:
            inner, outer = rewrites.get(each.number), _rewrite(each, value)
            rewrites[each.number] = outer if inner is None else _nested(outer, inner)
    return rewrites


def _nested(outer: Rewrite, inner: Rewrite) -> Rewrite:
    return lambda call: outer(dataclasses.replace(call, within=inner))


def identity(each: Counterfactual) -> tuple[int, str, str, str]:
    """Identify the same change at another step."""
    return each.number, each.call.name, each.name, each.jax_does


def together(candidates: Sequence[Counterfactual]) -> Iterator[list[Counterfactual]]:
    """Group what is the same change of several calls: of all, then of those that one expression of the user's makes."""

    def kind(each: Counterfactual) -> tuple[str, str, float | None]:
        return each.name, each.jax_does, each.value

    # An expression makes several calls for several micro-batches, or in several layers of one class.
    for _, group in itertools.groupby(sorted(candidates, key=lambda each: str(kind(each))), kind):
        members, sites = list(group), dict[tuple[int, int], list[Counterfactual]]()
        for each in members:
            sites.setdefault(each.call.site, []).append(each)
        groups = [members, *sites.values()] if len(sites) > 1 else [members]
        yield from (several for several in groups if len(several) > 1)


def in_turns(groups: Iterable[list[Counterfactual]]) -> Iterator[list[Counterfactual]]:
    """Give one group of each kind of change and function, then the next of each.

    The runs of a search are limited. A large step has hundreds of calls of one function, and they must not keep the
    single call of another function from being tried.
    """
    kinds: dict[tuple[str, str], list[list[Counterfactual]]] = {}
    for group in groups:
        kinds.setdefault((group[0].name, group[0].call.name), []).append(group)
    for turn in itertools.zip_longest(*kinds.values()):
        yield from filter(None, turn)


def are_terms(group: Sequence[Counterfactual], observe: Observe, ours: np.ndarray | None) -> bool:
    """Tell whether sums that become means in several expressions of the user's are terms, and not a quotient.

    A mean for each of two terms is one mistake, made twice. Both operands of a quotient give what they gave, unless
    something between them, such as a bound of the divisor, takes over.
    """
    sites = {each.call.site for each in group}
    if group[0].name != MEAN_OR_SUM or len(sites) == 1 or ours is None:
        return True
    parts = [[each for each in group if each.call.site == site] for site in sites]
    observed = [observe(combined([(part, None)])) for part in (list(group), *parts)]
    effects = [each - ours for each in observed if each is not None and each.shape == ours.shape]
    return len(effects) == len(observed) and distance(np.sum(effects[1:], axis=0), effects[0]) < _ADDED


_ADDED = 1e-6
"""How near the effects of several changes add up to their effect together."""


def _rewrite(each: Counterfactual, value: float | None) -> Rewrite:
    return each.rewrite if each.of is None or value is None else each.of(value)


def in_words(each: Counterfactual, value: float | None) -> str:
    """Say what the JAX side does."""
    if each.of is None:
        return f"the JAX side {each.jax_does}"
    own, other = with_distinct_digits(each.value, value)
    if each.name == BOUNDS:
        around = each.jax_does
        return f"torch clamps to {around} {own}, and the JAX side computes what torch would with {around} {other}"
    constant = each.name == CONSTANT
    if leaves_nothing(each, value):
        has, says = f"torch multiplies a term by {own}", "it leaves it out, or it is zero there"
        return f"{has}, and the JAX side computes what torch would without this term: {says}"
    function = each.call.name.removeprefix("r")
    has = f"torch's {function} has the constant {own}" if constant else f"torch has {each.jax_does}={own}"
    return f"{has}, and the JAX side computes what torch would with {other}"


def leaves_nothing(each: Counterfactual, value: float | None) -> bool:
    """Tell whether what a constant multiplies is nothing on the JAX side: the constant itself may be right there."""
    return each.name == CONSTANT and each.call.name in ("mul", "rmul") and value == 0


def either(causes: Sequence[Cause]) -> Cause:
    """Say all causes that fit equally well."""
    if len(causes) == 1:
        return causes[0]
    return Cause(
        " or ".join(dict.fromkeys(cause.name for cause in causes)),
        ", or ".join(dict.fromkeys(cause.explanation for cause in causes)),
        "; or ".join(dict.fromkeys(cause.fix for cause in causes if cause.fix)),
        ", ".join(dict.fromkeys(cause.source for cause in causes if cause.source)),
    )


def is_written(value: float) -> bool:
    """Tell whether a fitted number may come from an expression of short ones: 3 / 7, 1 / sqrt(96), log(1e4) / 32.

    What comes from data, such as a count times a sum, is fitted as well, and is no constant of the port.
    """
    sizes = range(1, LARGEST_SIZE + 1)
    roots = (abs(value), value**2, abs(value) / math.pi, value**2 * math.pi)
    exponents = [size * value for size in sizes if abs(size * value) < LARGEST_EXPONENT]
    return any(is_short(size * each) for each in roots for size in sizes) or any(
        is_short(math.exp(x)) for x in exponents
    )


LARGEST_SIZE = 128
"""The largest divisor of a constant that is tried, such as the size of a layer."""

LARGEST_EXPONENT = 50.0


def is_short(value: float) -> bool:
    """Tell whether a fitted number is one of at most four digits, as far as it is known."""
    return abs(shortened(value) - value) <= 1e-9 * abs(value)


def shortened(value: float) -> float:
    """Give the nearest number of four digits."""
    return float(f"{value:.4g}")


def is_one_expression(group: Sequence[Counterfactual], value: float | None) -> bool:
    """Tell whether a change is one expression's, with a number as a user writes one."""
    return len({one.call.site for one in group}) == 1 and (value is None or is_written(value))


def are_short(changed: Sequence[Changed]) -> bool:
    """Tell whether all numbers are such as a user writes."""
    return all(value is None or is_short(value) for _, value in changed)
