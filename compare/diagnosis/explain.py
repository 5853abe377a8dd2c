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
from compare.diagnosis.experiment import rerun_at, window_of
from compare.diagnosis.held_out import STEPS, HeldOut
from compare.diagnosis.place import Place
from compare.diagnosis.rewriting import Repeatable, Rerun
from compare.diagnosis.search import Search
from compare.diagnosis.searched import Searched
from compare.diagnosis.structure.by_gradients import CONFIRMATIONS, Elsewhere, Proved
from compare.diagnosis.structure.edit import Kind as Structure
from compare.diagnosis.structure.hidden_losses import in_hidden_losses
from compare.diagnosis.structure.search import StructureSearch
from compare.diagnosis.structure.stops import stopped
from compare.diagnosis.structure.surroundings import Gradients, Surroundings
from compare.step.draws import Draw
from compare.step.observation import Port
from compare.step.stage import Stage
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
        beside_tables: Whether to look for changes without a free number alone, since the limit of `found` allows for
            the rounding of tables.

    """
    if not np.isfinite(found.limit):  # in float32 only one side is finite: anything would be near enough
        return Searched()
    stage = found.divergence.stage
    if stage in (Stage.UPDATE, Stage.PARAMETERS):
        return Searched()
    step = run, batch, draws
    rerun, (held_out, others, again, once_more, last) = rerun_at(found, *step), itertools.tee(held_out, 5)
    search = Search(found, rerun, place, held_out, 0.0 if surroundings is None else surroundings.tables)
    known = Searched()

    def beside() -> Cause | None:
        nonlocal known
        wider = found._replace(limit=FACTOR * found.divergence.expected64)
        known = explain(wider, run, batch, draws, place, again, surroundings, beside_tables=True)
        return known.cause

    gradients_elsewhere: list[Elsewhere] = []

    def of_gradients(search_in: Callable[..., Proved], gradients: Gradients, *known_there: Any) -> Cause | None:
        nonlocal known
        for each in itertools.islice(gradients.held_out, CONFIRMATIONS - len(gradients_elsewhere)):
            other = rerun_at(gradients.found, each.run, each.batch, each.draws)
            gradients_elsewhere.append(Elsewhere(other, each.target))
        proved = search_in(gradients.found, rerun, gradients_elsewhere, *known_there)
        known = Searched(proved.cause, edited=proved.edited)
        return known.cause

    searches = [search.exact] if beside_tables else [search.exact, search.settings, search.constants, search.two]
    structure: StructureSearch | None = None
    if stage in (Stage.FORWARD, Stage.LOSS, Stage.SHOWN) and surroundings is not None and not search.is_data:
        structure = as_called = StructureSearch(found, rerun, surroundings, _reruns(found, others))
        within = StructureSearch(found, rerun, surroundings, _reruns(found, last), written_out=True)

        def within_losses() -> Cause | None:
            return within.one() if as_called.has_losses else None

        # From the most to the least specific, since the first that is confirmed is taken: changes without a free
        # number, a function's own setting, such as the scale of attention, then edits of single operations, and last
        # pairs of changes. A later search has more candidates, so more of them fit by accident.
        # Behind an update, a factor that was fitted to the result may be an accident: an operation is tried first.
        single = [structure.one, search.factor] if found.pairing.after_update else [search.factor, structure.one]
        single += [search.sign, within_losses]
        exact = [search.exact, structure.norms, search.settings, *single]
        looser = [beside] if search.is_far_beyond(FACTOR * found.divergence.expected64) else []
        searches = [*exact, *looser, search.constants, search.two, structure.two]
        if beside_tables:
            searches = [search.exact, structure.norms, structure.one]
    if not beside_tables and surroundings is not None and surroundings.gradients is not None:
        gradients, budget = surroundings.gradients, surroundings.budget
        hidden = functools.partial(of_gradients, in_hidden_losses, gradients, budget, surroundings.given)
        searches[1:1] = [functools.partial(of_gradients, stopped, gradients, budget), hidden]
    if search.differs and (cause := next(filter(None, (each() for each in searches)), None)):
        if known.cause:
            return known
        outputs = surroundings.outputs() if stage == Stage.FORWARD and surroundings is not None else []
        structure = within if structure is not None and within.cause else structure
        if structure is not None and structure.cause:
            if all(edit.kind == Structure.ADDED for edit in structure.cause):
                # A factor that is added is another constant of what torch computes, too: the user's code has one of
                # them. Weights may have been changed before their layer is called.
                for where in (found, found._replace(outside=True)):
                    beside_it = search if where is found else Search(where, rerun_at(where, *step), place, once_more)
                    if other := beside_it.constants():
                        cause = other if beside_it.is_short else either([other, cause])
                        return _of_changes(beside_it, cause, outputs)
            edited, everywhere = structure.operations(), structure.at_all_calls()
            whole, details = _whole(structure, outputs, repeats=bool(everywhere))
            return Searched(cause, details, whole, structure.explains_held, edited=edited, at_all_calls=everywhere)
        return _of_changes(search, cause, outputs)
    # Where the two agree from the same weights, as behind a difference that the user accepts, all that leaves equal
    # rows as they are would fit.
    return Searched() if search.agrees or beside_tables else Searched(*search.related())


def _reruns(found: Found, held_out: Iterable[HeldOut]) -> Iterator[tuple[Rerun, np.ndarray]]:
    for other in itertools.islice(held_out, STEPS):
        yield rerun_at(found, other.run, other.batch, other.draws), other.target


def _of_changes(search: Search, cause: Cause, outputs: Sequence[tuple[Port, np.ndarray]]) -> Searched:
    whole, details = _whole(search, outputs, repeats=True)
    window = window_of(search.found)
    return Searched(cause, details, whole, search.explains, changed=search.confirmed, window=window)


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
