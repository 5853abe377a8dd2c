"""Tries edits of torch's step: how far both sides agree with each of them."""

import itertools
import math
import time
from collections.abc import Iterable, Sequence

from compare.alignment.pairings import Pairing
from compare.comparison.suggested_edits import Reach, Steps, hidden_by, is_hidden, placed, read
from compare.comparison.weighing import Weighing
from compare.diagnosis.steps.edit import ALL, Edit
from compare.errors import InputError, InternalError, NondeterministicError
from compare.step.stage import Stage
from compare.verdict.following import Followed

FAILURES = (RuntimeError, InputError, InternalError, NondeterministicError)
"""What is raised where torch refuses an edited step."""

SECONDS = 60.0
"""The processor's time for which edits are tried in one place."""


def reach_of(followed: Followed, steps: Steps, edits: Sequence[Edit]) -> Reach | None:
    """Find where both sides first differ with these edits; None if they do not."""
    weighing = Weighing(followed, fitted=any(edit.free for edit in edits))
    hidden = hidden_by(edits)
    both = read(followed, edits, steps.both(edits))
    for step, (_, torch, jax) in zip(range(followed.steps), both, strict=False):
        # In order of computation: the first place that differs is the one that the others may follow from.
        for place, pairing in weighing.differing(torch, jax):
            if not is_hidden(pairing, hidden):
                return Reach(step, place)
    return None


def best_of(
    candidates: Iterable[Edit], followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach
) -> list[Edit]:
    """Give the edits with which both sides agree farthest; with those in force already, they agree up to `reach`.

    Of edits with equal reach all are given, unless one of them has no fitted number: it then explains as much with
    less.
    """
    best: list[Edit] = []
    differing: set[int] | None = None
    farthest = reach
    end = time.process_time() + SECONDS
    for edit in candidates:
        if time.process_time() > end:
            break
        try:
            now = reach_of(followed, steps, [*edits, edit])
        except FAILURES:  # torch refuses the edited step
            continue
        agrees = (followed.steps if now is None else now.step) - reach.step
        partly = agrees < edit.agrees and (now is not None or edit.free)
        if partly and (edit.agrees == ALL or not (now and _holds(followed, steps, [*edits, edit], reach, now))):
            continue
        if now is not None and _goes_on(followed, reach, now):
            continue
        # A place that agrees without the edit, and differs with it, refutes it.
        if now is not None and now.step == reach.step and now > reach:
            differing = differing_at(followed, steps, edits, reach.step) if differing is None else differing
            if now.place not in differing:
                continue
        now = now or Reach(followed.steps, 0)
        if now > farthest:
            best, farthest = [edit], now
        elif now == farthest and best:
            best.append(edit)
    # A fitted number can imitate what needs none: a rate of one half is half of the gradients. What needs none is
    # meant.
    fewest = min((edit.free for edit in best), default=0)
    return [edit for edit in best if edit.free == fewest]


def differing_at(followed: Followed, steps: Steps, edits: Sequence[Edit], step: int) -> set[int]:
    """Return the numbers of the deciding quantities that differ at a step with these edits."""
    weighing, found = Weighing(followed, fitted=any(edit.free for edit in edits)), set[int]()
    for _, torch, jax in itertools.islice(read(followed, edits, steps.both(edits)), step + 1):
        found = {place for place, _ in weighing.differing(torch, jax)}
    return found


def _holds(followed: Followed, steps: Steps, edits: Sequence[Edit], reach: Reach, now: Reach) -> bool:
    """Tell whether the last edit holds at all steps, each from torch's weights, up to what differs later in a step.

    A second fault in the step, such as of its optimizer, leaves no whole step that agrees. Up to where it shows, every
    step proves the first one, as it starts from other weights. What comes after an update is not reached that way: it
    depends on what the port's own optimizers remember.
    """
    end = next((place for place, pairing in enumerate(followed.pairings) if pairing.after_update), now.place)
    end = min(end, now.place)
    if now.step != reach.step or end <= reach.place:
        return False
    proved, free = 0, edits[-1].free
    with_it, without = (Weighing(followed, end) for _ in range(2))
    mended, as_before = (read(followed, edits, steps.from_torch(each)) for each in (edits, edits[:-1]))
    runs = zip(range(followed.steps), mended, as_before, strict=False)
    for _, (_, torch, jax), (_, other, other_jax) in runs:
        if any(True for _ in with_it.differing(torch, jax)):
            return False
        # A list, since each quantity must see each step.
        proved += bool(list(without.differing(other, other_jax)))
    return proved >= max(2, 2 * free + 1)


def _goes_on(followed: Followed, reach: Reach, now: Reach) -> bool:
    """Whether the same thing still differs with an edit: at a later step, or in another moment of the same update.

    The edit then delays the difference, or it changes what one tensor alone does not show: a bound that its gradient
    never reaches. And where the loss still differs, gradients may follow from that.
    """
    before, after = followed.pairings[reach.place], followed.pairings[now.place]
    if before.stage == Stage.GRADIENT and now.step == reach.step and after.stage in (Stage.LOSS, Stage.SHOWN):
        return True
    roots = [pairing.torch.partition(".")[0] for pairing in (before, after)]
    later = now.step > reach.step or (is_slot(before) and is_slot(after))
    return later and before.stage == after.stage and roots[0] == roots[1]


def is_slot(pairing: Pairing) -> bool:
    """Tell whether it is what an optimizer remembers."""
    return pairing.stage == Stage.UPDATE and pairing.operands is None


def place_after(followed: Followed, steps: Steps, edits: Sequence[Edit], edit: Edit, *, reach: Reach) -> float:
    """Number the next place of the step that differs with an edit; -1 where it makes something differ that agreed."""
    try:
        after = placed(followed, steps, [*edits, edit], reach)
        now = reach_of(followed, steps, [*edits, edit])
    except FAILURES:
        return -1
    # As in `best_of`: what agrees without the edit, and differs with it, refutes it.
    refuted = now and now.step == reach.step and now.place not in differing_at(followed, steps, edits, reach.step)
    return -1 if refuted else math.inf if after is None else after.number
