"""Searches the cause of a difference: changes the torch side in one way after another until the difference is gone.

A change that removes it is a hypothesis. It is a cause only if it holds at other steps too: see
`compare.diagnosis.held_out`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from compare.diagnosis.changes import either
from compare.diagnosis.experiment import rerun_at, whole_step, window_of
from compare.diagnosis.held_out import STEPS, HeldOut
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Repeatable, Rerun
from compare.diagnosis.search import Search
from compare.diagnosis.searched import Searched
from compare.diagnosis.structure.by_gradients import CONFIRMATIONS, Elsewhere, Proved
from compare.diagnosis.structure.coins import COINS, is_by_chance
from compare.diagnosis.structure.edit import Kind as Structure
from compare.diagnosis.structure.hidden_losses import in_hidden_losses
from compare.diagnosis.structure.search import StructureSearch
from compare.diagnosis.structure.stops import stopped
from compare.diagnosis.structure.surroundings import Gradients, Surroundings
from compare.numerics.relations import Kind as Relation
from compare.step.draws import Draw
from compare.step.observation import Port
from compare.step.stage import COMPUTED, Stage
from compare.verdict.divergence import AT_EACH_CALL, Cause, Detail
from compare.verdict.first_difference import Found
from compare.verdict.ratio import FACTOR


def explain(
    found: Found,
    run: Repeatable,
    batch: Any,
    draws: Sequence[Draw],
    place: Place,
    held_out: Iterable[HeldOut] = (),
    surroundings: Surroundings | None = None,
    *,
    beside_tables: bool = False,
) -> Searched:
    """Look for the cause of a divergence.

    Args:
        found: The divergence. `found.target` is what the JAX side gives from the torch side's values.
        run: The torch side in float64, before the step at which the two differ.
        batch: The step's.
        draws: Its random numbers.
        place: What the JAX side has there.
        held_out: Other steps of both sides, at which a cause must hold too; they are asked for one by one.
        surroundings: What is known around the divergence, for a change of several operations.
        beside_tables: Whether the limit of `found` allows for the rounding of tables: then all numbers that are fitted
            are rounded to four digits.

    """
    # In float32 only one side is finite: anything would be near enough.
    if not np.isfinite(found.limit) or found.divergence.stage in (Stage.UPDATE, Stage.PARAMETERS):
        return Searched()
    return _Explaining(found, (run, batch, draws), place, held_out, surroundings, beside_tables).searched()


class _Explaining:
    """One search for the cause of a divergence. The arguments are those of `explain`."""

    def __init__(
        self,
        found: Found,
        step: tuple[Repeatable, Any, Sequence[Draw]],
        place: Place,
        held_out: Iterable[HeldOut],
        surroundings: Surroundings | None,
        beside_tables: bool,
    ) -> None:
        self._found, self._step, self._place = found, step, place
        self._surroundings, self._beside_tables = surroundings, beside_tables
        self._rerun = rerun_at(found, *step)
        own, others, within, self._again, self._once_more, self._others = itertools.tee(held_out, 6)
        tables = 0.0 if surroundings is None else surroundings.tables
        self._search = Search(found, self._rerun, place, own, tables, beside_tables=beside_tables)
        self._known = Searched()
        """What another search has found, from a wider limit or from all gradients."""
        self._gradients_elsewhere: list[Elsewhere] = []
        self._structure: StructureSearch | None = None
        self._within: StructureSearch | None = None
        """The same within torch's own losses, with their operations written out."""
        if self._is_of_values and surroundings is not None and not self._search.is_data:
            self._structure = StructureSearch(found, self._rerun, surroundings, _reruns(found, others))
            self._within = StructureSearch(found, self._rerun, surroundings, _reruns(found, within), written_out=True)

    @property
    def _is_of_values(self) -> bool:
        return self._found.divergence.stage in COMPUTED

    def searched(self) -> Searched:
        """Try the searches in turn; the first cause that is confirmed is taken."""
        search = self._search
        searches = [] if self._is_of_values and self._is_zero() else self._searches()
        if search.differs and (cause := next(filter(None, (each() for each in searches)), None)):
            if self._is_by_chance():
                return Searched()
            return self._known if self._known.cause else self._confirmed(cause)
        # Where the two agree from the same weights, as behind a difference that the user accepts, all that leaves equal
        # rows as they are would fit.
        if search.agrees or self._beside_tables:
            return Searched()
        cause, details = search.related()
        if cause and self._is_refuted(cause):
            return Searched(None, details)
        return Searched(cause, details, multiple=search.multiple if cause else None)

    def _is_zero(self) -> bool:
        """Tell whether the JAX side has zero, here and at other steps: then all that gives zero fits."""
        others = itertools.islice(self._others, CONFIRMATIONS)
        return not self._search.target.any() and not any(each.target.any() for each in others)

    def _is_refuted(self, factor: Cause) -> bool:
        """Tell whether a multiple of torch's value is an accident: a gradient agrees that would be a multiple too.

        Two terms may be equal, and only one of them have another weight. A gradient of zero says nothing.
        """
        later = self._surroundings.later if self._surroundings is not None else ()
        if not factor.name.endswith(Relation.FACTOR) or not any(each.theirs.any() for each in later):
            return False
        seen = whole_step(*self._step)
        return any(each.theirs.any() and each.agrees(seen) for each in later)

    def _factor(self, search_for: Callable[[], Cause | None]) -> Cause | None:
        cause = search_for()
        return None if cause is None or self._is_refuted(cause) else cause

    def _is_by_chance(self) -> bool:
        """Tell whether the sides may differ by what a few random booleans decide: then no cause is proved."""
        if self._structure is None or all(draw.value.size >= COINS for draw in self._step[2]):
            return False
        step = self._structure.opened()
        return step is not None and is_by_chance(step)

    def _searches(self) -> list[Callable[[], Cause | None]]:
        """List the searches, from the most to the least specific.

        First come changes without a free number, then a function's own setting, such as the scale of attention, then
        edits of single operations, and last pairs of changes. A later search has more candidates, so more of them fit
        by accident.
        """
        search, structure = self._search, self._structure
        if self._beside_tables:
            of_structure = [structure.norms, structure.one] if structure else []
            return [search.exact, search.settings, *of_structure, search.constants]
        if structure is None:
            searches = [search.exact, search.settings, search.constants, search.two]
        else:
            # Behind an update, a factor that was fitted to the result may be an accident: an operation is tried first.
            single: list[Callable[[], Cause | None]] = [functools.partial(self._factor, search.factor), structure.one]
            single = [*(reversed(single) if self._found.pairing.after_update else single)]
            single += [functools.partial(self._factor, search.sign)]
            exact = [search.exact, structure.norms, search.settings, *single, self._within_losses]
            beyond = search.is_far_beyond(FACTOR * self._found.divergence.expected64)
            looser = [self._beside] if beyond else []
            searches = [*exact, *looser, search.constants, search.two, structure.two]
        return [searches[0], *self._of_all_gradients(), *searches[1:]]

    def _within_losses(self) -> Cause | None:
        has_losses = self._structure is not None and self._structure.has_losses
        return self._within.one() if self._within is not None and has_losses else None

    def _beside(self) -> Cause | None:
        """Look for changes with short numbers within what the rounding of tables would explain too."""
        found = self._found
        wider = found._replace(limit=FACTOR * found.divergence.expected64)
        self._known = explain(wider, *self._step, self._place, self._again, self._surroundings, beside_tables=True)
        return self._known.cause

    def _of_all_gradients(self) -> list[Callable[[], Cause | None]]:
        """List the searches whose causes all gradients of a step prove: stopped gradients, and losses within others."""
        around = self._surroundings
        if around is None or around.gradients is None:
            return []
        search = functools.partial(self._of_gradients, around.gradients)
        return [
            functools.partial(search, stopped, around.budget),
            functools.partial(search, in_hidden_losses, around.budget, around.given),
        ]

    def _of_gradients(self, gradients: Gradients, search_in: Callable[..., Proved], *known_there: Any) -> Cause | None:
        for each in itertools.islice(gradients.held_out, CONFIRMATIONS - len(self._gradients_elsewhere)):
            other = rerun_at(gradients.found, each.run, each.batch, each.draws)
            self._gradients_elsewhere.append(Elsewhere(other, each.target))
        proved = search_in(gradients.found, self._rerun, self._gradients_elsewhere, *known_there)
        self._known = Searched(proved.cause, edited=proved.edited)
        return self._known.cause

    def _confirmed(self, cause: Cause) -> Searched:
        """Tell what else a cause explains."""
        around = self._surroundings
        is_forward = self._found.divergence.stage == Stage.FORWARD
        outputs = around.outputs() if is_forward and around is not None else []
        structure = self._within if self._within is not None and self._within.cause else self._structure
        if structure is None or not structure.cause:
            return _of_changes(self._search, cause, outputs)
        if all(edit.kind == Structure.ADDED for edit in structure.cause):
            # A factor that is added is another constant of what torch computes, too: the user's code has one of them.
            # Weights may have been changed before their layer is called.
            for where in (self._found, self._found._replace(outside=True)):
                beside_it = self._search
                if where is not self._found:
                    beside_it = Search(where, rerun_at(where, *self._step), self._place, self._once_more)
                if other := beside_it.constants():
                    cause = other if beside_it.is_short else either([other, cause])
                    return _of_changes(beside_it, cause, outputs)
        edited, everywhere = structure.operations(), structure.at_all_calls()
        whole, details = _whole(structure, outputs, repeats=bool(everywhere))
        known = Searched(cause, details, whole, structure.explains_held, edited=edited, at_all_calls=everywhere)
        return known._replace(several=len(structure.cause) > 1)


def _reruns(found: Found, held_out: Iterable[HeldOut]) -> Iterator[tuple[Rerun, np.ndarray]]:
    for other in itertools.islice(held_out, STEPS):
        yield rerun_at(found, other.run, other.batch, other.draws), other.target


def _of_changes(search: Search, cause: Cause, outputs: Sequence[tuple[Port, np.ndarray]]) -> Searched:
    whole, details = _whole(search, outputs, repeats=True)
    window = window_of(search.found)
    multiple = None if search.confirmed else search.multiple
    return Searched(cause, details, whole, search.explains, changed=search.confirmed, window=window, multiple=multiple)


def _whole(
    search: Search | StructureSearch, outputs: Sequence[tuple[Port, np.ndarray]], *, repeats: bool
) -> tuple[bool, tuple[Detail, ...]]:
    """Tell whether a cause explains the whole model, and say so if it does at every call of its lines alone.

    What is wrong in a loop of the user's is wrong in each turn, and one thing to mend.
    """
    if not outputs or search.explains(outputs):
        return bool(outputs), ()
    everywhere = repeats and search.explains(outputs, everywhere=True)
    return everywhere, (AT_EACH_CALL,) if everywhere else ()
