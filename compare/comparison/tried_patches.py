"""Tries the patches of a report: the port takes a step with them, before they are printed.

That a cause is right on the torch side does not tell that the patch changes the right expression: two modules may share
the line, or an expression like it may stand beside the one that is meant.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from compare.alignment.pairings import Pairing, shown
from compare.errors import InputError, UserCodeError
from compare.mending.in_memory import in_force
from compare.mending.syntax import Edit, read
from compare.numerics.distance import distance, norm
from compare.report.groups import Group
from compare.report.report import Report
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.verdict.divergence import REFUTED, Divergence, Line, Role
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR

MOST = 4
"""How many patches of a report are tried."""

LARGEST = 10_000_000
"""Number of parameters up to which patches are tried: each takes another compiled step."""

SLACK = 100.0
"""A patched port computes in another order: it agrees within this many times what rounding explained before."""

UNCHANGED = 1e-9
"""A patch that changes the distance between both sides by no more than this has no effect on the step."""

_INDEPENDENT = frozenset({Stage.UPDATE, Stage.STATE, Stage.SHOWN})
"""Stages whose tensors do not follow from one another: one that a patch spoils need not come before its place."""


def without_refuted(found: Report, trial: Callable[[], "Trial"]) -> Report:
    """Take the patches from a report that do not do what their causes say.

    Args:
        found: A report of a mismatch.
        trial: Makes what tries patches, if there are any.

    """
    first_step = (group for group in found.groups if group.step == 0)
    groups = sorted(first_step, key=lambda group: group.first.number)[:MOST]
    if not any(group.patch for group in groups):
        return found
    tried, edits, whole, wrong = trial(), list[Edit](), True, list[Divergence]()
    known = {each.number for group in found.groups for each in group.findings}
    for group in groups:
        cause = group.first.cause
        # Of two mistakes at one place, one may be another layer's too, and is mended with that.
        whole = whole and group.patch is not None and cause is not None and group.parts in ((), cause.parts)
        if group.patch is None:
            continue
        refuted = tried.refuted([*edits, *group.patch.edits], group, known, first=whole)
        if refuted is False:
            edits += group.patch.edits
            continue
        whole = False
        if refuted:
            wrong += group.findings

    def marked(each: Divergence) -> Divergence:
        return dataclasses.replace(each, details=(*each.details, REFUTED)) if each in wrong else each

    first = found.divergence and marked(found.divergence)
    return dataclasses.replace(found, divergence=first, others=[*map(marked, found.others)])


class Trial:
    """Takes the first step of a patched port.

    Args:
        followed: What following both sides has found.
        torch: Torch's first step in float64.
        before: The JAX side's first step in float64, without a patch.
        step: Takes the same step of the JAX side, built and traced anew.
        lines: Gives the lines of the user's code that something comes from.

    """

    def __init__(
        self,
        followed: Followed,
        torch: Observation,
        before: Observation,
        step: Callable[[], Observation],
        lines: Callable[[Pairing], Iterable[Line]],
    ) -> None:
        self._followed, self._torch, self._step, self._lines = followed, torch, step, lines
        self._before = self._distances(before)
        """The distance between both sides of everything that is compared, without a patch."""

    def refuted(self, edits: Sequence[Edit], group: Group, known: Collection[int], *, first: bool) -> bool | None:
        """Tell whether a patch is wrong; None if that cannot be found out.

        Args:
            edits: Of this patch, and of those before it that are right.
            group: What the patch is for.
            known: The numbers of all findings.
            first: Whether nothing differs before it, or what does is mended by the edits.

        """
        with in_force(edits) as ready:
            if not ready:
                return None
            try:
                now = self._distances(self._step())
            except InputError as error:  # the step was taken without the patch, and did not raise
                imports = isinstance(error, UserCodeError) and isinstance(error.error, NameError)
                return None if imports else True
        # Another compilation may round otherwise.
        if np.allclose(now, self._before, rtol=UNCHANGED, atol=UNCHANGED, equal_nan=True):
            return None
        spoiled, agrees = self._agreeing(self._before) & ~self._agreeing(now), self._agreeing(now)
        place, stages = group.first.number, [each.stage for each in self._followed.pairings]
        alike = [stage in _INDEPENDENT and stage == stages[place] for stage in stages]
        if spoiled[:place].any() or (spoiled & alike).any() or (first and not agrees[place]):
            return True
        return first and not agrees.all() and self._comes_from(edits, int(np.argmin(agrees)), known)

    def _comes_from(self, edits: Sequence[Edit], place: int, known: Collection[int]) -> bool:
        """Tell whether what differs first is no finding, and is computed by a line that the edits have changed."""
        pairing = self._followed.pairings[place]
        if place in known or pairing.stage != Stage.FORWARD:
            return False
        changed = {(edit.file, number) for edit in edits for number in _numbers(edit)}
        computed = (line.source for line in self._lines(pairing) if line.side == "jax" and line.role in _COMPUTING)
        return any((source.file, source.line) in changed for source in computed)

    def _distances(self, seen: Observation) -> np.ndarray:
        found = []
        for pairing in self._followed.pairings:
            ours, theirs = shown(pairing.torch_array, self._torch), shown(pairing.jax_array, seen)
            if ours is None or theirs is None:
                # Optax names what it keeps by its place in a chain, which a patch may have made longer.
                renamed = ours is not None and pairing.stage == Stage.UPDATE and pairing.operands is None
                found.append(0.0 if ours is theirs or renamed else np.inf)
                continue
            whole = pairing.operands(self._torch) if pairing.operands else ours
            found.append(distance(theirs, ours, otherwise=norm(np.asarray(whole, np.float64))))
        return np.array(found)

    def _agreeing(self, distances: np.ndarray) -> np.ndarray:
        limits = [SLACK * FACTOR * float(each.expected[0]) for each in self._followed.quantities]
        return distances <= np.array(limits)


_COMPUTING = (Role.COMPUTED, Role.CALLED, Role.GIVEN)


def _numbers(edit: Edit) -> range:
    """Number the lines that an edit changes, from 1."""
    text = read(edit.file)
    return range(text.count("\n", 0, edit.start) + 1, text.count("\n", 0, edit.end) + 2)
