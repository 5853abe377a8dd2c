"""Finds gradients that are stopped on one side only: a `detach` of torch that the port lacks, or one too many.

Such a port computes the same and trains otherwise. A stop at one place changes the gradients of all parameters before
it, so it is proved by all gradients of the step at once, and not by the one at which the sides first differ.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compare.diagnosis.rewriting import Rerun
from compare.diagnosis.structure.budget import Budget
from compare.diagnosis.structure.by_gradients import Elsewhere, Proved, agreeing, leaves
from compare.diagnosis.structure.edit import FLAT, Context, Edit, Kind
from compare.diagnosis.structure.editing import operations
from compare.diagnosis.structure.graph import FAILURES, Node, Operation, Path
from compare.diagnosis.structure.recording import recorded
from compare.diagnosis.structure.step import changes
from compare.diagnosis.structure.told import told
from compare.verdict.divergence import Cause, Part
from compare.verdict.first_difference import Found

STOP = "jax.lax.stop_gradient"

Uses = list[tuple[Node, Path]]
"""The operations that use a value, each with the argument that it is."""


def stopped(found: Found, rerun: Rerun, elsewhere: Sequence[Elsewhere], budget: Budget) -> Proved:
    """Find the stops with which torch's gradients are all those of the JAX side.

    Args:
        found: What differs: its pairing reads all gradients as one vector.
        rerun: The torch side's step.
        elsewhere: Other steps.
        budget: What the search may cost.

    """
    assert found.target is not None
    budget.start()
    try:
        context = _opened(rerun)
        for edits in _tried(found, rerun, context, budget) if context else ():
            if context is None or not budget.left():
                break
            if (apart := leaves(found, rerun, edits, context, elsewhere)) is not None:
                fits = functools.partial(leaves, found, rerun, context=context, elsewhere=elsewhere)
                fitting = [edits, *_stopped_instead(edits, fits, context, budget)]
                return Proved(told(fitting, apart), operations(changes(edits), context.graph))
    finally:
        budget.stop()
    return Proved(None if found.target.any() else _nothing_reaches())


def _stopped_instead(
    edits: Sequence[Edit], fits: Callable[[Sequence[Edit]], float | None], context: Context, budget: Budget
) -> Iterator[Sequence[Edit]]:
    """Give a stop that the port may have added, where it seems to lack one: both may leave the same gradients.

    In `y + (round(y) - y).detach()` no gradient is left without the detach, and none with a second one around `y`.
    """
    if not all(compute in (_as_it_is, _with_gradient) for edit in edits for _, compute in edit.at):
        return
    for _, stop in _stops(context):
        if not budget.left():
            return
        if fits([stop]) is not None:
            yield [dataclasses.replace(stop, does=f"it {stop.does}")]
            return


def _nothing_reaches() -> Cause:
    says = "no gradient reaches any parameter of the JAX side: all are zero"
    fix = (
        f"check what is between the parameters and the loss: {STOP}, or a function without a gradient such as jnp.round"
    )
    return Cause(Kind.STOPPED, f"{Kind.STOPPED}: {says}", fix, parts=(Part(Kind.STOPPED, says, fix),))


def _opened(rerun: Rerun) -> Context | None:
    try:
        step = recorded(rerun)
    except FAILURES:
        return None
    return Context(step.graph, step.graph.nodes, step.ports, step.names, given=step.given)


def _tried(found: Found, rerun: Rerun, context: Context, budget: Budget) -> Iterator[list[Edit]]:
    """List single stops, the likely pairs, and the pairs of which one stop alone explains some gradients."""
    yield from _listed(context)
    stops = [edit for _, edit in _stops(context)]
    # Of two stops one after the other, the later one alone makes the gradients of the layers between them right. So
    # there is no need to try all pairs, of which there are as many as the square of a step's operations.
    best, most = None, agreeing(found, rerun, (), context)
    for edit in stops:
        if not budget.left():
            return
        right = agreeing(found, rerun, [edit], context)
        if right.sum() > most.sum() and not (most & ~right).any():
            best, most = edit, right
    if best is not None and not most.all():
        yield from ([best, other] for other in stops if _apart(best, other))


def _listed(context: Context) -> Iterator[list[Edit]]:
    """List single stops, all of torch's, and two: a gradient that goes straight through may be at another place."""
    through, by_uses = list(_attached(context)), list(_stops(context))
    stops = [edit for _, edit in by_uses]
    yield from (
        [each] for each in (*through, *stops, *_at_all_calls(context), *_at_each_call(context, through, by_uses))
    )
    if len(through) > 2:
        yield through
    pairs = (*itertools.combinations(through, 2), *itertools.product(through, stops))
    yield from ([one, other] for one, other in pairs if _apart(one, other))


def _apart(one: Edit, other: Edit) -> bool:
    return {number for number, _ in one.at}.isdisjoint(number for number, _ in other.at)


def _attached(context: Context) -> Iterator[Edit]:
    """List what torch stops: a `detach`, and what it computes under `no_grad`."""
    for node in context.nodes:
        if node.name == "detach" and node.inputs:
            what = context.named(node.inputs[0][1])
            does = f"lets the gradient through {what}, where torch has detach ({node.line})"
            fix = f"apply {STOP} to {what}{context.before_its_user(node)}, as torch's detach does"
            yield Edit(Kind.STOPPED, ((node.number, _as_it_is),), does, fix)
    # What is copied without gradients is state, such as the weights that the step starts from.
    nodes = [node for node in context.nodes if node.name != "copy"]
    for without, group in itertools.groupby(nodes, key=lambda node: node.stopped):
        if without:
            every = list(group)
            at = tuple((node.number, _with_gradient) for node in every)
            lines = " to ".join(dict.fromkeys((every[0].line, every[-1].line)))
            does = f"lets the gradient through what torch computes under no_grad ({lines})"
            yield Edit(Kind.STOPPED, at, does, f"apply {STOP} to its result, as torch's no_grad does")


def _as_it_is(operation: Operation) -> Any:
    return operation.args[0]


def _with_gradient(operation: Operation) -> Any:
    import torch

    with torch.enable_grad():
        return operation.run()


def _stops(context: Context) -> Iterator[tuple[Uses, Edit]]:
    """List where the JAX side may stop the gradient: at a value wherever it is used, or at one of its uses."""
    for number in sorted(_differentiable(context)):
        users = _uses(context, number)
        if not users:
            continue
        what = context.named(number)
        at = tuple((user.number, _detaching(paths)) for user, paths in _grouped(users))
        does = f"stops the gradient of {what}, and torch does not"
        yield users, Edit(Kind.STOPPED, at, does, f"leave out {STOP} around {what}")
        for user, path in users if len(users) > 1 else ():
            where = f"{what} as an operand of {user.name} ({user.line})"
            does = f"stops the gradient of {where}, and torch does not"
            at = ((user.number, _detaching([path])),)
            yield [(user, path)], Edit(Kind.STOPPED, at, does, f"leave out {STOP} around {where}")


def _at_all_calls(context: Context) -> Iterator[Edit]:
    """List stops of what a module gives at each of its calls."""
    by_module: dict[str, list[int]] = {}
    for port, number in context.ports.items():
        if port.kind == "output" and port.path:
            by_module.setdefault(port.path, []).append(number)
    differentiable = _differentiable(context)
    for path, numbers in by_module.items():
        users = [(user, place) for number in numbers for user, place in _uses(context, number)]
        if len(set(numbers)) > 1 and users and differentiable.issuperset(numbers):
            at = tuple((user.number, _detaching(paths)) for user, paths in _grouped(users))
            does = f"stops the gradient of the output of {path} at each call, and torch does not"
            yield Edit(Kind.STOPPED, at, does, f"leave out {STOP} around the output of {path}")


def _at_each_call(context: Context, through: Sequence[Edit], stops: Sequence[tuple[Uses, Edit]]) -> Iterator[Edit]:
    """List the same at each call of its lines, such as those of a module that runs twice."""
    by_lines: dict[Any, list[Edit]] = {}
    for edit in through:
        sites = tuple(context.graph.nodes[number].site for number, _ in edit.at)
        by_lines.setdefault((edit.kind, sites), []).append(edit)
    for users, edit in stops:
        by_lines.setdefault(tuple((user.site, user.name, path) for user, path in users), []).append(edit)
    for alike in by_lines.values():
        if len(alike) > 1:
            at, does = (
                tuple(pair for edit in alike for pair in edit.at),
                f"{alike[0].does}, at each of {len(alike)} calls",
            )
            yield dataclasses.replace(alike[0], at=at, does=does)


def _uses(context: Context, number: int) -> Uses:
    users = context.users.get(number, [])
    every = [(user, path) for user in users for path, other in user.inputs if other == number]
    return [(user, path) for user, path in every if user.name != "detach"]


def _grouped(users: Sequence[tuple[Node, Path]]) -> Iterator[tuple[Node, list[Path]]]:
    ordered = sorted(users, key=lambda each: each[0].number)
    for _, group in itertools.groupby(ordered, key=lambda each: each[0].number):
        (node, path), *others = group
        yield node, [path, *(other for _, other in others)]


def _detaching(paths: Sequence[Path]) -> Callable[[Operation], Any]:
    def compute(operation: Operation) -> Any:
        detached = ((path, operation.at(path).detach()) for path in paths)
        return functools.reduce(lambda whole, each: whole.having(*each), detached, operation).run()

    return compute


def _differentiable(context: Context) -> set[int]:
    """Name the values that a parameter's gradient goes through."""
    found = set(context.parameters)
    for node in context.nodes:
        through = node.name not in ("detach", *FLAT) and not node.stopped
        if through and any(number in found for _, number in node.inputs):
            found |= {number for number in node.outputs if context.value(number).is_floating_point()}
    return {number for number in found if context.value(number).is_floating_point()}
