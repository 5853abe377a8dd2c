"""Chooses among several replays of the same draws by trying them on the first steps.

What is drawn independently is as likely in any order of its axes, a boolean of probability p is as likely as the
complement of one of 1 - p, and a new order is as likely as one that is shuffled again. So a port that draws in another
layout, draws what to drop where torch draws what to keep, or draws each order anew, is right; and a replay that gives
it torch's draws as they are would make it look wrong. Where the two sides differ, such replays are tried, and the one
is taken under which they agree for longest. A fault may show before a draw does: of replays under which they agree for
equally long, the one is taken under which most quantities agree. None of them hides a fault, since each gives the JAX
side numbers that it may draw itself.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from compare.comparison.draw_parameters import both_parameters
from compare.jax_side.draw_matching import match
from compare.jax_side.keys import SiteRead, StepKeys
from compare.step.draws import Draw, Hints, Site
from compare.step.layouts import draw_layouts, ordered
from compare.verdict.first_difference import first_divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR

_MOST = 8
"""The maximum number of replays to try: each is compiled separately."""


class _Change(NamedTuple):
    """What may be otherwise in a replay."""

    reflected: frozenset[int] = frozenset()
    layouts: tuple[tuple[tuple[int, ...], str], ...] = ()
    composed: bool = False
    by_leaf: bool = False

    def of(self, hints: Hints) -> Hints:
        """Give the hints with this change."""
        reflected = hints.reflected ^ self.reflected
        composed = hints.composed or self.composed
        by_leaf = hints.by_leaf or self.by_leaf
        layouts = (*hints.layouts, *self.layouts)
        return hints._replace(reflected=reflected, layouts=layouts, composed=composed, by_leaf=by_leaf)


class Agreement(NamedTuple):
    """How far both sides agree under a replay: of two, the larger one is better."""

    unreplayed: int
    """Minus the number of draws without a partner."""
    reached: float
    """The position of what differs first; infinity where nothing does."""
    agreeing: int
    """How many quantities agree at all steps."""


class Pair(Protocol):
    """What is replayed by its hints: a pair of models or of programs."""

    hints: Hints


def settle(
    pair: Pair, keys: StepKeys, draws: Sequence[Draw], first_steps: Callable[[], tuple[Followed, list[str]]]
) -> bool:
    """Give a pair the hints under which both sides agree for longest at the first steps; tell whether they are others.

    Args:
        pair: Both sides.
        keys: What the JAX side draws with at the first step.
        draws: What torch drew there.
        first_steps: Follows both sides through the first steps under the hints that the pair has then, and tells what
            was drawn on one side only.

    """
    before = found = pair.hints

    def agreement(hints: Hints) -> Agreement:
        pair.hints = hints
        followed, unreplayed = first_steps()
        # What the first layers take of a batch in another order agrees whatever the weights are.
        agreeing = sum(not (quantity.ratio > FACTOR).any() for quantity in followed.quantities)
        if (first := first_divergence(followed)) is None:
            return Agreement(-len(unreplayed), np.inf, agreeing)
        reached = first.divergence.step * len(followed.pairings) + followed.pairings.index(first.pairing)
        return Agreement(-len(unreplayed), reached, agreeing)

    try:
        found = settled(before, keys, draws, agreement)
    finally:
        pair.hints = found
    return found != before


def settled(hints: Hints, keys: StepKeys, draws: Sequence[Draw], agreement: Callable[[Hints], "Agreement"]) -> Hints:
    """Give the hints under which both sides agree for longest.

    Args:
        hints: Those under which they do not.
        keys: What the first step draws with.
        draws: What torch drew at the first step.
        agreement: How far both sides agree under some hints.

    """
    drawn = [draw for draw in draws if not draw.backward]
    repeated = _repeated(keys)
    before = hints._replace(repeated=repeated)
    changes = list(itertools.islice(_changes(before, keys, drawn), _MOST))
    if not repeated and not changes:
        return hints
    best = agreement(hints)
    if repeated and (reached := agreement(before)) > best:
        hints, best = before, reached
    for change in changes:
        if best[:2] == (0, np.inf):
            break
        changed = change.of(hints)
        if (reached := agreement(changed)) > best:
            hints, best = changed, reached
    return hints


def _changes(hints: Hints, keys: StepKeys, draws: Sequence[Draw]) -> Iterator[_Change]:
    matching = match([Site(draw.kind, draw.value.shape) for draw in draws], keys.sites, hints)
    pairs = [(found.draw, site) for found, site in zip(matching.placed, keys.sites, strict=True) if found]
    orders = [len(draw.value) for draw in draws if draw.kind == "randperm"]
    if len(set(orders)) < len(orders):
        yield _Change(composed=True)
    shapes = [draw.value.shape for draw in draws]
    weights = [weight for model in hints.weights if len(model) > 1 for weight in model if weight.torch in shapes]
    if weights:
        # With both at once: where all weights have one shape, neither alone makes anything more agree.
        yield _Change(by_leaf=True, layouts=tuple((weight.torch, ordered(weight.axes).name) for weight in weights))
    certain, possible = _complements(hints, keys, draws, pairs)
    for numbers in dict.fromkeys((certain, certain | possible, *(frozenset({each}) for each in sorted(possible)))):
        if numbers:
            yield _Change(numbers)
    others = {
        (draws[found.draw].value.shape, layout.name): None
        for found, site in zip(matching.placed, keys.sites, strict=True)
        if found
        for layout in draw_layouts(draws[found.draw].value.shape, site.shape, hints)
        if layout.name != found.layout.name
    }
    for shape, name in others:
        yield _Change(layouts=((shape, name),))


def _complements(
    hints: Hints, keys: StepKeys, draws: Sequence[Draw], pairs: Sequence[tuple[int, Site]]
) -> tuple[frozenset[int], frozenset[int]]:
    """List the draws of which JAX draws the complement by its probability, and those of which it may."""
    certain, possible = set[int](), set[int]()
    for each in both_parameters(keys, draws, hints):
        if each.site.kind == "bernoulli" and each._replace(torch=1 - each.torch).equal:
            (possible if each.equal else certain).add(each.draw)
    # A uniform variable is compared with a probability from below or from above.
    possible |= {number for number, site in pairs if "uniform" in (draws[number].kind, site.kind)}
    return frozenset(certain), frozenset(possible)


def _repeated(keys: StepKeys) -> tuple[tuple[int, int], ...]:
    """List the places that draw what an earlier one has drawn, since they have its key and its parameters."""
    first: dict[tuple[Site, bytes], int] = {}
    repeated = []
    for number, (site, read) in enumerate(zip(keys.sites, keys.reads, strict=True)):
        if read is None:
            continue
        earlier = first.setdefault((site._replace(place="", branches=()), _bytes(read)), number)
        if earlier != number:
            repeated.append((number, earlier))
    return tuple(repeated)


def _bytes(read: SiteRead) -> bytes:
    return b"".join(np.asarray(each).tobytes() for each in (read.key, *read.parameters))
