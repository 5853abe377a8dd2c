"""Finds random keys that the JAX side uses twice where torch draws new numbers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from compare.jax_side.draw_matching import match
from compare.jax_side.keys import StepKeys
from compare.numerics.distance import distance
from compare.step.draws import Draw, Hints, Site
from compare.step.stage import Stage
from compare.verdict.divergence import Cause, Divergence

DOCS = "https://docs.jax.dev/en/latest/random-numbers.html"


class _Use(NamedTuple):
    """One use of a key, and what torch drew for it."""

    step: int
    batch: int
    site: Site
    draw: int
    value: np.ndarray


def reused_key(
    steps: Sequence[StepKeys], draws: Sequence[Sequence[Draw]], batches: int, hints: Hints
) -> Divergence | None:
    """Find the first draw of the JAX side with a key that it has used before, where torch drew other numbers.

    Args:
        steps: The keys of each step.
        draws: What torch drew at each step.
        batches: How many batches there are. A key that a batch brings comes again with it, and is not the port's.
        hints: What is known of the layouts of draws.

    """
    seen: dict[bytes, list[_Use]] = {}
    for number, (keys, drawn) in enumerate(zip(steps, draws, strict=False)):
        for key, use in _uses(number, number % batches, keys, drawn, hints):
            before = [
                other
                for other in seen.setdefault(key, [])
                if not (keys.from_batch and other.step != use.step and other.batch == use.batch)
            ]
            # A port may use a key twice on purpose, for equal noise in two places; torch's two draws are then
            # equal as well.
            if different := [other for other in before if not _same(other.value, use.value)]:
                return _finding(different[0], use)
            seen[key].append(use)
    return None


def _uses(step: int, batch: int, keys: StepKeys, draws: Sequence[Draw], hints: Hints) -> Iterator[tuple[bytes, _Use]]:
    """List the draws of a step that have a partner on the torch side, with the key of each."""
    replayed = [draw for draw in draws if not draw.backward]
    matching = match([Site(draw.kind, draw.value.shape) for draw in replayed], keys.sites, hints)
    for site, read, found in zip(keys.sites, keys.reads, matching.placed, strict=True):
        if found is None or read is None:
            continue
        position, key, draw = found.draw, read.key, replayed[found.draw]
        value = np.asarray(found.of(draw.value, *draw.parameters))
        # Under vmap, a draw has one key for each place along its first axes.
        for place in np.ndindex(key.shape[:-1]):
            yield key[place].tobytes(), _Use(step, batch, site, position, value[place])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def _finding(before: _Use, use: _Use) -> Divergence:
    alike = before.value.shape == use.value.shape
    apart = distance(use.value.astype(np.float64), before.value.astype(np.float64)) if alike else np.inf
    ours = f"torch's draw {use.draw} of step {use.step} differs from its draw {before.draw} of step {before.step}"
    place, earlier = (each.site.place or str(each.site) for each in (use, before))
    if before.step != use.step:
        says = f"{place} has the same key at step {use.step} as at step {before.step}"
        fix = "make another key for each step: key = jax.random.fold_in(key, step)"
    else:
        says = f"{place} has the key of another draw" + (f", at {earlier}" if earlier != place else "")
        fix = "make another key for each draw: key, subkey = jax.random.split(key)"
    cause = Cause("random key used twice", f"{says}, so the JAX side draws the same numbers. {ours}", fix, DOCS)
    return Divergence(use.step, Stage.FORWARD, f"draw {use.draw}, {use.site}", place, apart, 0.0, 0.0, cause)
