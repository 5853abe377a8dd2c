"""Edits of losses that the user's step differentiates and does not show, as that of a second optimizer often is.

Neither side shows such a loss: what it leads to, the gradients, is what an edit is held against. All gradients of the
step are taken together, so that an edit without a free number is proved by as many numbers as there are weights.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from compare.diagnosis.held_out import MARGIN
from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.edit import Context, Edit, Kind
from compare.diagnosis.structure.editing import operations
from compare.diagnosis.structure.graph import FAILURES
from compare.diagnosis.structure.listing import listed
from compare.diagnosis.structure.recording import Recorded, recorded
from compare.diagnosis.structure.step import changes
from compare.diagnosis.structure.stops import Stopped, leaves
from compare.diagnosis.structure.told import plainer, told, worth_telling
from compare.step.observation import Port
from compare.verdict.first_difference import Found

SHARE = 0.8
"""Of the budget, at most: each edit costs a step."""


def in_hidden_losses(
    found: Found,
    rerun: Rerun,
    elsewhere: Sequence[tuple[Rerun, np.ndarray]],
    budget: Budget,
    given: Collection[Port],
) -> Stopped:
    """Find the edit of a loss that is not shown with which torch's gradients are all those of the JAX side.

    Args:
        found: What differs: its pairing reads all gradients as one vector.
        rerun: The torch side's step.
        elsewhere: Other steps of torch, and the JAX side's gradients there.
        budget: What the search may cost.
        given: Torch's inputs and outputs of modules at which the JAX side has torch's values.

    """
    assert found.target is not None
    budget.start()
    try:
        step = recorded(rerun)
        contexts = list(_hidden(step, given))
        for context in contexts:
            fitting: list[list[Edit]] = []
            for edit in itertools.takewhile(lambda _: budget.left(SHARE), listed(context)):
                apart = leaves(found, rerun, [edit], context, found.target)
                if apart <= MARGIN * found.limit and all(
                    leaves(found, other, [edit], context, theirs) <= MARGIN**2 * found.limit
                    for other, theirs in elsewhere
                ):
                    fitting.append([edit])
                    if edit.kind == Kind.LEFT_OUT:  # nothing says it more plainly
                        break
            if fitting:
                best = functools.reduce(lambda one, two: two if plainer(two, one) else one, worth_telling(fitting))
                cause = told([best], leaves(found, rerun, best, context, found.target))
                return Stopped(cause, operations(changes(best), context.graph))
    except FAILURES:
        pass
    finally:
        budget.stop()
    return Stopped(None)


def _hidden(step: Recorded, given: Collection[Port]) -> Iterator[Context]:
    """Give what each loss that is not shown is computed of, from what the JAX side has as torch does."""
    every = (step.seen.loss, *step.seen.shown.values())
    shown = [float(each) for each in every if each is not None and each.numel() == 1]
    cut = {number for port, number in step.ports.items() if port in given}
    for root in dict.fromkeys(step.roots):
        nodes, loss = step.graph.cone(root, cut), step.graph.values[root]
        if loss.numel() == 1 and float(loss) not in shown and nodes:
            yield Context(step.graph, nodes, step.ports, step.parameters, names=step.names, given=step.given)
