"""Explains why two training steps differ: edits of the torch step are tried until it computes the port's step.

An edit is in force from the first step of a run on. It is a cause if every tensor that decides then agrees up to and
beyond the place at which the two sides first differed: so it explains that place, and agrees with all that agreed. Of
several edits, the one with which the two sides agree longest is chosen. With this edit, the search continues at the
next place that differs.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence

from compare import bugs
from compare.comparison.made_up_for import next_place
from compare.comparison.suggested_edits import Known, Placed, Reach, Steps, of_early_weights, suggested, with_hidden
from compare.comparison.tried_edits import FAILURES, best_of, is_slot, place_after, reach_of
from compare.comparison.update_steps import other_steps
from compare.diagnosis.related import NOT_A_NUMBER
from compare.diagnosis.steps.edit import Edit, cause_of
from compare.diagnosis.steps.library_calls import NOT_DETACHED
from compare.diagnosis.steps.loops import UPDATE_LEFT_OUT
from compare.step.stage import COMPUTED, Stage
from compare.verdict.divergence import AT_EACH_CALL, Cause, Detail, DetailKind, Divergence, with_search_ended
from compare.verdict.following import Followed

SEVERAL = 4
"""Causes that are looked for in one comparison, at most."""


def explained(followed: Followed, first: Divergence, steps: Steps) -> list[Divergence]:
    """Give the first divergence and those that are left when it is mended, each with its cause if one is found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what an edit does, such as a schedule that is stepped too early
        return _explained(followed, first, steps)


def _explained(followed: Followed, first: Divergence, steps: Steps) -> list[Divergence]:
    found: list[Divergence] = []
    edits: list[Edit] = []
    # One cause after another: with the edits that are known in force, both sides agree up to the next place. So a
    # second fault is not blamed on the first, and one that only follows from the first is never met.
    while len(found) < SEVERAL:
        reach = reach_of(followed, steps, edits)
        if reach is None:
            break
        place = next_place(followed, steps, edits, reach)
        divergence = place.found.divergence if place else _divergence(followed, reach)
        if not found:
            same = (divergence.stage, divergence.torch) == (first.stage, first.torch)
            place = place if same else None
            divergence = first
        search = functools.partial(_cause_at, divergence, followed, steps, edits, reach, place)
        divergence, edit = bugs.attempt("the search for the cause", search) or (divergence, None)
        if edits and divergence.cause is not None and divergence.cause.name == NOT_A_NUMBER:
            # It may come from values that the port never has without the faults before it.
            found[-1] = with_search_ended(found[-1])
            break
        if edit is None:
            # With operations edited, torch's step need not be the port's everywhere: a difference without a cause may
            # follow from the first. And what a fitted number leaves of a difference by its last digits is none.
            exact = not any(each.of_operations or each.free for each in edits)
            if divergence.cause or not edits or not edits[-1].of_operations:
                found.append(divergence)
            found += steps.independent(followed, edits, found) if exact else []
            found[-1] = with_search_ended(found[-1])
            break
        found.append(divergence)
        edits.append(with_hidden(steps, edits, edit) if edit.of_operations else edit)
    return found or [first]


def _cause_at(
    divergence: Divergence, followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach, place: Placed | None
) -> tuple[Divergence, Edit | None]:
    """Look for the cause of one difference, and for the edit of the torch step with which the search goes on."""
    known, fitting, updated = Known(), list[Edit](), place is not None and place.found.pairing.after_update
    if place is not None:
        lines = steps.lines(place.found.pairing, reach.step, place.found.before)
        divergence = dataclasses.replace(divergence, lines=tuple(lines))
    # What is computed before any update is explained as in a check of models. A gradient that differs comes from the
    # loop as a rule, and what follows an update from that update: what the loop allows is tried before.
    before = divergence.stage in COMPUTED and not updated
    if before:
        fitting = best_of(of_early_weights(followed, steps, edits), followed, steps, edits, reach)
        known = Known() if fitting else _searched(followed, steps, edits, reach, place)
    if known.edit is None and not fitting:
        # Without an edit it is a cause of structure, and explains one place. A change of the loop explains steps.
        fitting = best_of(suggested(followed, steps, edits, reach), followed, steps, edits, reach)
        known = Known() if fitting else known
    # A stop is named with what it stops, and has no number that was fitted.
    vague = divergence.stage == Stage.GRADIENT and all(edit.free or edit == NOT_DETACHED for edit in fitting)
    if not before and (vague or not fitting) and divergence.stage in (*COMPUTED, Stage.GRADIENT, Stage.BUFFERS):
        known = _searched(followed, steps, edits, reach, place)
        known = known if known.searched.edited or not fitting else Known()
        # What follows an update may be in proportion to it by accident, as after Adam's first step; a shape is not.
        known = Known() if known.edit is None and updated and math.isfinite(divergence.error64) else known
    if known.searched.cause is not None:
        details = (*divergence.details, *known.searched.details)
        return dataclasses.replace(divergence, cause=known.searched.cause, details=details), known.edit
    explained = _with_cause(divergence, followed, steps, reach, fitting, edits)
    if fitting and (explained.cause is None or explained.cause == cause_of(fitting)):
        return explained, fitting[0]
    # It is the cause of an optimizer: what is independent of it is seen with the port's updates. An edit that fits as
    # well is not what was told, and may change more: a schedule that stands still keeps both momentum and rate.
    return explained, _updates_taken(followed, steps, reach, edits) if explained.cause else None


def _updates_taken(followed: Followed, steps: Steps, reach: Reach, edits: Sequence[Edit]) -> Edit | None:
    try:
        return steps.updates_taken(followed, followed.pairings[reach.place], edits)
    except FAILURES:  # as in `best_of`
        return None


def _with_cause(
    divergence: Divergence,
    followed: Followed,
    steps: Steps,
    reach: Reach,
    fitting: Sequence[Edit],
    edits: Sequence[Edit],
) -> Divergence:
    """Add the cause: of an update, what all steps of its optimizer prove, else the edits that fit."""
    pairing = followed.pairings[reach.place]
    unseen = _gradients_unseen(followed)
    # Where gradients are seen, the optimizer's own steps prove more, and give the call of optax that mends them. Of
    # updates that are not made, they say no more than a learning rate of 0.
    proved = fitting and not fitting[0].free and (unseen or fitting[0].name == UPDATE_LEFT_OUT)
    if pairing.stage == Stage.UPDATE and divergence.stage == Stage.UPDATE and not proved:
        known = steps.update_explained(followed, pairing, edits)
        if known.cause is not None and unseen:
            return dataclasses.replace(divergence, details=_or_gradients(known.cause))
        if known.cause is not None:
            return dataclasses.replace(divergence, cause=known.cause)
        if not fitting:
            divergence = dataclasses.replace(divergence, details=known.details)
    if fitting:
        return dataclasses.replace(divergence, cause=cause_of(fitting))
    return dataclasses.replace(divergence, cause=_other_steps(followed, steps, reach, edits))


def _other_steps(followed: Followed, steps: Steps, reach: Reach, edits: Sequence[Edit]) -> Cause | None:
    """Report if the two sides update at different steps. This does not show whether anything else differs."""
    pairing = followed.pairings[reach.place]
    # What is computed before the step's first update does not follow from it.
    if pairing.stage in (*COMPUTED, Stage.GRADIENT) and not pairing.after_update:
        return None
    other = other_steps(followed, steps, edits, reach)
    if other is None:
        return None

    def agrees(edit: Edit | None, *, always: bool = False) -> bool:
        if edit is None:
            return False
        now = reach_of(followed, steps, [*edits, edit])
        return now is None or (now > reach and not always)

    try:
        if not other.first and agrees(other.edit, always=True):
            return other.cause
        # A learning rate of 0 updates nothing either. It shows in what comes after the update in its step, such as a
        # module's second call, before it shows in the update.
        cause = steps.update_explained(followed, other.update, edits).cause
        if cause is not None:
            return cause if agrees(steps.updates_taken(followed, other.update, edits)) else None
        proved = agrees(other.edit, always=True) if other.edit is not None else other.agreed
    except FAILURES:  # as in `best_of`
        return None
    return other.cause if proved else None


def _gradients_unseen(followed: Followed) -> bool:
    """Tell whether nothing that is compared shows the JAX side's gradients: neither they, nor averages of them.

    Half the gradients and half the learning rate are then one and the same.
    """
    shows = (pairing.stage == Stage.GRADIENT or is_slot(pairing) for pairing in followed.pairings)
    return not any(shows)


def _or_gradients(cause: Cause) -> tuple[Detail, ...]:
    says = (
        'two causes fit, and the JAX step does not show which one is right: add {"gradients": ...} to what it returns'
    )
    gradients = "gradients: those of the JAX side differ by as much as the updates do"
    return (
        Detail(DetailKind.UNDECIDED, says),
        Detail(DetailKind.CANDIDATE, cause.explanation),
        Detail(DetailKind.CANDIDATE, gradients),
    )


def _searched(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach, place: Placed | None) -> Known:
    """Look for a cause as in a model; as an edit of the step, it must bring the two sides further."""
    if place is None or (found := bugs.attempt("the search at a place", lambda: steps.searched(place, edits))) is None:
        return Known()
    if found.edit is None:
        return found
    farther = functools.partial(place_after, followed, steps, edits, reach=reach)
    if found.wider is not None and (with_all := farther(found.wider)) > place.number:
        alone = () if farther(found.edit) >= with_all else (AT_EACH_CALL,)
        return Known(found.searched._replace(details=alone), found.wider)
    if farther(found.edit) > place.number and not (
        found.searched.several and _differs_at(followed, steps, [*edits, found.edit], reach.step)
    ):
        return Known(found.searched, found.edit)
    # A cause of structure is proved in the graph of one step. In a step that runs otherwise it may edit nothing.
    return Known(found.searched) if found.searched.edited and not found.searched.several else Known()


def _differs_at(followed: Followed, steps: Steps, edits: Sequence[Edit], step: int) -> bool:
    now = reach_of(followed, steps, edits)
    return now is not None and now.step <= step


def _divergence(followed: Followed, reach: Reach) -> Divergence:
    """Describe a place that differs once everything before it is right."""
    pairing, quantity = followed.pairings[reach.place], followed.quantities[reach.place]
    return Divergence(
        reach.step,
        pairing.stage,
        pairing.torch,
        pairing.jax,
        float(quantity.error64[reach.step]),
        float(quantity.rounding[reach.step]),
        float(quantity.expected[reach.step]),
        number=reach.place,
    )
