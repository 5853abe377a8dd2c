"""Edits of losses that the user's step differentiates and does not show, as that of a second optimizer often is.

Neither side shows such a loss: what it leads to, the gradients, is what an edit is held against. All gradients of the
step are taken together, so that an edit without a free number is proved by as many numbers as there are weights.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence

from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.by_gradients import CONFIRMATIONS, Elsewhere, Proved, leaves
from compare.diagnosis.structure.edit import Context, Edit, Kind
from compare.diagnosis.structure.editing import operations
from compare.diagnosis.structure.graph import FAILURES
from compare.diagnosis.structure.listing import listed
from compare.diagnosis.structure.recording import Recorded, recorded
from compare.diagnosis.structure.step import changes, numbers_of
from compare.diagnosis.structure.told import plainer, told, worth_telling
from compare.step.observation import Port
from compare.verdict.first_difference import Found

SHARE = 0.8
"""Of the budget, at most: each edit costs a step."""


def in_hidden_losses(
    found: Found,
    rerun: Rerun,
    elsewhere: Sequence[Elsewhere],
    budget: Budget,
    given: Collection[Port],
) -> Proved:
    """Find the edit of a loss that is not shown with which torch's gradients are all those of the JAX side.

    Args:
        found: What differs: its pairing reads all gradients as one vector.
        rerun: The torch side's step.
        elsewhere: Other steps. Without `CONFIRMATIONS` of them nothing is proved.
        budget: What the search may cost.
        given: Torch's inputs and outputs of modules at which the JAX side has torch's values.

    """
    if len(elsewhere) < CONFIRMATIONS:  # a loss may be of one weight, whose gradient is one number
        return Proved(None)
    budget.start()
    try:
        for context in _hidden(recorded(rerun), given):
            fitting: list[list[Edit]] = []
            distances: list[float] = []
            for edit in itertools.takewhile(lambda _: budget.left(SHARE), listed(context)):
                if (apart := leaves(found, rerun, [edit], context, elsewhere)) is not None:
                    fitting.append([edit])
                    distances.append(apart)
                    if edit.kind == Kind.LEFT_OUT:  # nothing says it more plainly
                        break
            if fitting:
                best = functools.reduce(lambda one, two: two if plainer(two, one) else one, worth_telling(fitting))
                cause = told([best], distances[fitting.index(best)])
                return Proved(cause, operations(changes(best), context.graph))
    except FAILURES:
        pass
    finally:
        budget.stop()
    return Proved(None)


def _hidden(step: Recorded, given: Collection[Port]) -> Iterator[Context]:
    """Give what each loss that is not shown is computed of, from what the JAX side has as torch does."""
    # What is shown agrees, if gradients differ first: what it is computed of is not what is otherwise.
    every = (step.seen.loss, *step.seen.shown.values())
    shown = {number for each in every if each is not None for number in numbers_of(step.graph, each)}
    cut = shown | {number for port, number in step.ports.items() if port in given}
    for root in dict.fromkeys(step.roots):
        if nodes := step.graph.cone(root, cut):
            yield Context(step.graph, nodes, step.ports, step.parameters, names=step.names, given=step.given)
