"""Pairs the random numbers that torch has drawn with the places where the JAX side draws."""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.jax_side.distributions import Conversion, conversions
from compare.step.draws import NO_HINTS, Hints, Site
from compare.step.layouts import Layout, draw_layouts, ordered


class Placed(NamedTuple):
    """What takes the place of what JAX draws somewhere."""

    draw: int
    """The position of torch's draw."""
    layout: Layout
    conversion: Conversion
    before: bool = False
    """Whether the complement is that of torch's uniform variable, and not of what it becomes."""
    reflected: bool = False
    """Whether JAX draws the complement."""

    def of(self, value: Any, *parameters: Any) -> Any:
        """Give what JAX draws there, of what torch drew and its parameters."""
        if self.reflected and self.before:
            value = _complement(value)
        value = self.laid_out(self.conversion.convert(value, *parameters))
        return _complement(value) if self.reflected and not self.before else value

    def laid_out(self, value: Any) -> Any:
        """Lay an array out as JAX does there."""
        return self.layout.to_jax(value)

    def parameters(self, *parameters: Any) -> Sequence[Any]:
        """Give torch's parameters as those of what JAX draws there; none where a replay does not hide them."""
        found = self.conversion.parameters(*parameters) if self.conversion.parameters else ()
        return [_complement(np.asarray(each)) for each in found] if self.reflected else found


class Matching(NamedTuple):
    """Which draw goes where."""

    placed: list[Placed | None]
    """For each site what takes its place; None where nothing fits."""
    unreplayed: list[str]
    """Each site without a draw and each draw without a site, and why."""
    guessed: list[str]
    """Each draw that fits its site in more than one layout, and the one taken."""


def match(draws: Sequence[Site], sites: Sequence[Site], hints: Hints = NO_HINTS) -> Matching:
    """Pair draws and sites in their order, as many as fit by kind and shape.

    Both sides run the same program, so that usually the n-th draw belongs to the n-th site. Where one side has a draw
    that the other lacks, the longest common subsequence keeps the others paired; what is left over is `unreplayed`.
    `draws` are torch's, by kind and shape.
    """
    # Each of these functions deals with one hint, or with one property of the sites, and calls `match` with the rest.
    # `repeated` numbers all sites, so it must be used before `_with_unused` and `_with_branches` remove some.
    if hints.given:
        return _without_given(draws, sites, hints)
    if hints.repeated:
        return _with_repeated(draws, sites, hints)
    if hints.by_leaf:
        return _with_leaves(draws, sites, hints)
    if any(site.unused for site in sites):
        return _with_unused(draws, sites, hints)
    if any(site.branches and not site.obstacle for site in sites):
        return _with_branches(draws, sites, hints)

    @functools.cache
    def fits(draw: Site, site: Site) -> list[tuple[Conversion, Layout]]:
        for serving in () if site.obstacle else conversions(draw.kind, site.kind):
            if serving.axes > len(draw.shape):
                continue
            layouts = draw_layouts(draw.shape[: len(draw.shape) - serving.axes], site.shape, hints)
            if not layouts and not serving.axes:
                layouts = _of_categories(draw, site.shape)
            if layouts:
                return [(serving, layout) for layout in layouts]
        return []

    options = [[fits(draw, site) for site in sites] for draw in draws]
    pairs = _longest(options, len(sites))
    ranks = [len(draw.shape) for draw in draws]
    # A port has one layout for all of its images: a draw that allows one layout only shows it for the
    # others.
    usual = Counter((ranks[i], options[i][j][0][1].name) for i, j in pairs if len(options[i][j]) == 1)
    placed: list[Placed | None] = [None] * len(sites)
    guessed = []
    for i, j in pairs:
        # Of several layouts, the one that is certain for other draws of this rank; else the first.
        likely = "channels last" if hints.channels_last else ""
        given = dict(hints.layouts).get(draws[i].shape)
        # A hint has a weight of one half, less than a single draw that fits in one layout only.
        counts = [usual[ranks[i], layout.name] or (layout.name == (given or likely)) / 2 for _, layout in options[i][j]]
        serving, layout = options[i][j][counts.index(max(counts))]
        placed[j] = Placed(i, layout, serving, draws[i].kind == "uniform", i in hints.reflected)
        if len(counts) > 1 and not max(counts):
            fitting = " or ".join(layout.name for _, layout in options[i][j])
            guessed.append(
                f"torch's draw {i}, {draws[i]}, fits the JAX side {fitting}: the first is used. With a batch "
                "whose sizes all differ, only one layout fits"
            )
    return Matching(placed, _left_over(draws, sites, pairs), guessed)


def _with_unused(draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair the draws with the places of which something is computed."""
    used = [j for j, site in enumerate(sites) if not site.unused]
    found = match(draws, [sites[j] for j in used], hints)
    placed = dict(zip(used, found.placed, strict=True))
    return found._replace(placed=[placed.get(j) for j in range(len(sites))])


def _with_branches(draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair the draws with the places in those branches whose places they fit best.

    Which branch is taken is not known before the step is run. If the draws fit the places of several branches equally
    well, they are given to all of these: only one is run.
    """
    inside = {number: dict(site.branches) for number, site in enumerate(sites)}
    conditionals: dict[tuple[int, ...], dict[int | None, None]] = {}
    for branches in inside.values():
        for place, branch in branches.items():
            conditionals.setdefault(place, {None: None})[branch] = None  # the first: a branch that draws nothing
    tried = []
    for numbers in itertools.islice(itertools.product(*conditionals.values()), _MOST_BRANCHES):
        choice = dict(zip(conditionals, numbers, strict=True))
        running = [number for number, branches in inside.items() if branches.items() <= choice.items()]
        found = match(draws, [sites[number]._replace(branches=()) for number in running], hints)
        tried.append((len(found.unreplayed), dict(zip(running, found.placed, strict=True)), found))
    fewest = min(count for count, _, _ in tried)
    best = [each for each in tried if each[0] == fewest]
    placed = dict(best[0][1])
    for _, others, _ in best[1:]:
        if all(_same(placed[number], each) for number, each in others.items() if number in placed):
            placed |= others
    return best[0][2]._replace(placed=[placed.get(number) for number in range(len(sites))])


def _same(one: Placed | None, other: Placed | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.draw, one.layout.name) == (other.draw, other.layout.name)


_MOST_BRANCHES = 64
"""The maximum number of ways through a program's conditionals that are tried."""


def _of_categories(draw: Site, wanted: tuple[int, ...]) -> list[Layout]:
    """List the layouts of a draw of categories in which these have another axis than torch's, the last."""
    count = len(draw.shape) if draw.kind == "race" else 0
    orders = ((*range(at), count - 1, *range(at, count - 1)) for at in range(count - 1))
    return [ordered(axes) for axes in orders if tuple(draw.shape[axis] for axis in axes) == wanted]


def _without_given(draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair those draws that the JAX side does not have already."""
    left = [number for number in range(len(draws)) if number not in hints.given]
    return _in_order(left, draws, sites, hints._replace(given=frozenset()))


def _with_leaves(draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair the draws after those for a model's weights are put in the order of JAX's leaves."""
    order = list(range(len(draws)))
    for weights in hints.weights:
        shapes, places = [weight.torch for weight in weights], [weight.place for weight in weights]
        start = 0
        while start + len(weights) <= len(draws):
            run = range(start, start + len(weights))
            if [draws[number].shape for number in run] == shapes and len({draws[number].kind for number in run}) == 1:
                order[run.start : run.stop] = [run[number] for number in np.argsort(places)]
                start = run.stop
            else:
                start += 1
    return _in_order(order, draws, sites, hints._replace(by_leaf=False))


def _in_order(order: Sequence[int], draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair some draws, in another order than that in which torch makes them."""
    reflected = frozenset(place for place, number in enumerate(order) if number in hints.reflected)
    found = match([draws[number] for number in order], sites, hints._replace(reflected=reflected))
    return found._replace(placed=[each and each._replace(draw=order[each.draw]) for each in found.placed])


def _with_repeated(draws: Sequence[Site], sites: Sequence[Site], hints: Hints) -> Matching:
    """Pair the places with new draws; a place that repeats an earlier one gets the same draw."""
    earlier = dict(hints.repeated)
    anew = [j for j in range(len(sites)) if j not in earlier]
    found = match(draws, [sites[j] for j in anew], hints._replace(repeated=()))
    placed = dict(zip(anew, found.placed, strict=True))
    return found._replace(placed=[placed[earlier.get(j, j)] for j in range(len(sites))])


def _complement(array: Any) -> Any:
    return ~array if array.dtype == bool else 1 - array


def _longest(options: Sequence[Sequence[Sequence[Any]]], m: int) -> list[tuple[int, int]]:
    """The longest common subsequence, as positions in both: dynamic programming over the ends of both sequences."""
    n = len(options)
    # The usual case, and without the n · m table: a diffusion model in a scan may draw thousands of
    # times.
    if n == m and all(options[i][i] for i in range(n)):
        return [(i, i) for i in range(n)]
    lengths = np.zeros((n + 1, m + 1), int)
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            skip = max(lengths[i + 1, j], lengths[i, j + 1])
            lengths[i, j] = max(skip, lengths[i + 1, j + 1] + 1) if options[i][j] else skip
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        if options[i][j] and lengths[i, j] == lengths[i + 1, j + 1] + 1:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        # Of two equally long ways torch's draw is skipped first: a draw that JAX lacks is the likelier
        # mistake.
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _left_over(draws: Sequence[Site], sites: Sequence[Site], pairs: list[tuple[int, int]]) -> list[str]:
    """Explain what has no partner; draws and sites between the same two pairs probably belong together."""
    messages = []
    ends = [(-1, -1), *pairs, (len(draws), len(sites))]
    for (i, j), (next_i, next_j) in itertools.pairwise(ends):
        left, right = list(range(i + 1, next_i)), list(range(j + 1, next_j))
        for draw, site in zip(left, right, strict=False):
            messages.append(
                f"torch draws {draws[draw]} where JAX draws {sites[site]}: {_reason(draws[draw], sites[site])}"
            )
        messages += [f"torch draws {draws[draw]} (draw {draw}), JAX does not" for draw in left[len(right) :]]
        messages += [
            f"JAX draws {sites[site]} (draw {site}), torch does not"
            + (f"; {why}" if (why := sites[site].obstacle) else "")
            for site in right[len(left) :]
        ]
    return messages


_BEFORE = "To compare them, draw before the step, and pass the numbers to both sides as an input"


def _reason(draw: Site, site: Site) -> str:
    if site.obstacle:
        return f"{site.obstacle}. {_BEFORE}"
    if not conversions(draw.kind, site.kind):
        return f"these are different kinds of random numbers. {_BEFORE}"
    fewer = all(theirs in (1, ours) for ours, theirs in zip(draw.shape, site.shape, strict=False))
    if len(draw.shape) == len(site.shape) and draw.shape != site.shape and fewer:
        # Flax's attention broadcasts its dropout mask over batch and heads by default, torch's does not.
        return (
            "JAX draws one number for all elements along the axes of length one; for Flax's attention, set "
            "broadcast_dropout=False"
        )
    return "these shapes do not fit"
