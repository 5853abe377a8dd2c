"""The schedules of `torch.optim.lr_scheduler` as calls of optax, and common mistakes in porting them.

Every call is compared with the rates that torch took (`gives`) before it is printed: a row that is wrong, or a
scheduler that was used in an unusual way, leads to no fix and not to a wrong one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.diagnosis.optimizers.calls import Call, Recounted
from compare.diagnosis.optimizers.lambda_schedules import schedule_of_function
from compare.torch_side.rates import rate_of


class Mistake(NamedTuple):
    """A call of optax that looks like the schedule, and is another one."""

    says: str
    """What the JAX side does, as a clause."""
    call: Call


class Scheduler(NamedTuple):
    """One class of torch's schedulers."""

    name: str
    right: Callable[[Any, float], Call | Recounted | None]
    """Gives optax's call, for a scheduler and the learning rate that it began with; None where there is none."""
    mistakes: Callable[..., Iterator[Mistake]] = lambda scheduler, rate: iter(())
    per_epoch: Callable[[Any, float, int], Call] | None = None
    """For a schedule that changes at few steps: its call where torch's scheduler is stepped once in so many steps. The
    mistakes take that number too. The others' calls are given another count."""


def _step(s: Any, lr: float, every: int = 1) -> Call:
    # lr * gamma ** floor(count / step_size); without staircase, optax does not round down.
    return Call("optax.exponential_decay", (lr, s.step_size * every, s.gamma), {"staircase": True})


def _step_mistakes(s: Any, lr: float, every: int = 1) -> Iterator[Mistake]:
    yield Mistake(
        "the JAX side's exponential_decay falls at every step: it lacks staircase=True",
        Call("optax.exponential_decay", (lr, s.step_size * every, s.gamma)),
    )


def _cosine(s: Any, lr: float) -> Call:
    alpha = {"alpha": s.eta_min / lr} if s.eta_min else {}
    return Call("optax.cosine_decay_schedule", (lr, s.T_max), alpha)


def _cosine_mistakes(s: Any, lr: float) -> Iterator[Mistake]:
    if s.eta_min:
        yield Mistake(
            "the JAX side passes eta_min as alpha, which is a fraction of the first rate",
            Call("optax.cosine_decay_schedule", (lr, s.T_max), {"alpha": s.eta_min}),
        )
        yield Mistake("the JAX side's cosine ends at 0", Call("optax.cosine_decay_schedule", (lr, s.T_max)))
    yield Mistake(
        "the JAX side's cosine stays at its end after T_max, and torch's rises again",
        _cosine(s, lr),
    )


def _linear(s: Any, lr: float) -> Call:
    return Call("optax.linear_schedule", (s.start_factor * lr, s.end_factor * lr, s.total_iters))


def _linear_mistakes(s: Any, lr: float) -> Iterator[Mistake]:
    yield Mistake(
        "the JAX side's warm-up starts at 0, and torch's at start_factor",
        Call("optax.linear_schedule", (0.0, s.end_factor * lr, s.total_iters)),
    )


def _milestones(s: Any, lr: float, every: int = 1) -> Call:
    # torch keeps the milestones in a Counter: one that is listed twice multiplies the rate by gamma twice.
    falls = {int(at) * every: s.gamma**count for at, count in sorted(s.milestones.items())}
    return Call("optax.piecewise_constant_schedule", (lr, falls))


def _milestone_mistakes(s: Any, lr: float, every: int = 1) -> Iterator[Mistake]:
    for by, says in ((1, "one step later"), (-1, "one step earlier")):
        falls = {int(at) * every + by: s.gamma**count for at, count in sorted(s.milestones.items())}
        yield Mistake(
            f"the JAX side's rate falls {says} than torch's", Call("optax.piecewise_constant_schedule", (lr, falls))
        )
    if s.milestones:
        yield Mistake(
            "the JAX side passes rates where optax expects factors",
            Call(
                "optax.piecewise_constant_schedule",
                (lr, {int(at) * every: s.gamma * lr for at in sorted(s.milestones)}),
            ),
        )


def _polynomial(s: Any, lr: float) -> Call:
    return Call("optax.polynomial_schedule", (lr, 0.0, s.power, s.total_iters))


def _constant(s: Any, lr: float) -> Call:
    # torch multiplies by factor until total_iters. optax multiplies by its values at their boundaries: 1
    # / factor undoes it.
    return Call("optax.piecewise_constant_schedule", (s.factor * lr, {s.total_iters: 1 / s.factor}))


def _restarts(s: Any, lr: float) -> Call | Recounted:
    alpha = {"alpha": s.eta_min / lr} if s.eta_min else {}
    if s.T_mult == 1:
        return Recounted(Call("optax.cosine_decay_schedule", (lr, s.T_0), alpha), period=s.T_0)
    # Cycle n has T_0 * T_mult^n steps, and join_schedules counts each part from 0.
    cycles = [int(s.T_0 * s.T_mult**number) for number in range(4)]  # the last of them does not end
    parts = [Call("optax.cosine_decay_schedule", (lr, cycle), alpha) for cycle in cycles]
    return Call("optax.join_schedules", (parts, [sum(cycles[: number + 1]) for number in range(len(cycles) - 1)]))


def _one_cycle(s: Any, lr: float) -> Call | None:
    group = s.optimizer.param_groups[0]
    return _two_phases(s, group["initial_lr"], group["max_lr"], group["min_lr"])


def _two_phases(s: Any, first: float, middle: float, last: float) -> Call | None:
    """Return OneCycleLR's two phases. The first ends at pct_start * total_steps - 1, which must be a whole number."""
    ends = [each["end_step"] for each in vars(s).get("_schedule_phases", ())]
    # OneCycleLR ends its first phase at pct_start * total_steps - 1, which may be a fraction; an optax
    # boundary is a step.
    if len(ends) != 2 or ends[0] != int(ends[0]) or not ends[0] or not first or not middle:
        return None
    cosine = vars(s).get("_anneal_func_type", "cos") == "cos"

    def part(start: float, end: float, length: int) -> Call:
        if cosine:
            return Call("optax.cosine_decay_schedule", (start, length), {"alpha": end / start})
        return Call("optax.linear_schedule", (start, end, length))

    up, down = int(ends[0]), int(ends[1] - ends[0])
    return Call("optax.join_schedules", ([part(first, middle, up), part(middle, last, down)], [up]))


def _one_cycle_mistakes(s: Any, lr: float) -> Iterator[Mistake]:
    group = s.optimizer.param_groups[0]
    ends = [each["end_step"] for each in vars(s).get("_schedule_phases", ())]
    # The inverse of torch's formula for the end of the first phase; 0.3 is the default of both
    # frameworks.
    share = (ends[0] + 1) / s.total_steps if ends else 0.3
    factors = (group["max_lr"] / group["initial_lr"], group["initial_lr"] / group["min_lr"])
    for name in ("optax.cosine_onecycle_schedule", "optax.linear_onecycle_schedule"):
        pcts = (share,) if name == "optax.cosine_onecycle_schedule" else (share, 0.85)
        yield Mistake(
            f"{name.removeprefix('optax.')} has its peak at pct_start * steps, and torch one step earlier",
            Call(name, (s.total_steps, group["max_lr"], *pcts, *factors)),
        )


def _sequential(s: Any, lr: float) -> Call | None:
    parts = [right_call(each) for each in vars(s).get("_schedulers", ())]
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts) or not all(isinstance(part, Call) for part in known):
        return None
    return Call("optax.join_schedules", (known, [int(each) for each in vars(s).get("_milestones", ())]))


def _function(s: Any, lr: float) -> Call | None:
    return schedule_of_function(s.lr_lambdas[0], lr)


def _function_mistakes(s: Any, lr: float) -> Iterator[Mistake]:
    """List warm-ups that start at 0, where torch's start with their first share."""
    call = _function(s, lr)
    start = call.arguments[0][0] if call and call.function == "optax.join_schedules" else call
    if isinstance(start, Call) and start.function == "optax.linear_schedule" and start.arguments[0]:
        _, end, steps = start.arguments
        for longer in (0, 1):
            warm_up = Call("optax.linear_schedule", (0.0, end, steps + longer))
            rest = [] if call is start or call is None else [call.arguments[0][1]]
            mistake = Call("optax.join_schedules", ([warm_up, *rest], [steps + longer])) if rest else warm_up
            yield Mistake("the JAX side's warm-up starts at 0, and torch's does not", mistake)


SCHEDULERS = (
    Scheduler("StepLR", _step, _step_mistakes, _step),
    Scheduler("ExponentialLR", lambda s, lr: Call("optax.exponential_decay", (lr, 1, s.gamma))),
    Scheduler("CosineAnnealingLR", _cosine, _cosine_mistakes),
    Scheduler("CosineAnnealingWarmRestarts", _restarts),
    Scheduler("LinearLR", _linear, _linear_mistakes),
    Scheduler("ConstantLR", _constant),
    Scheduler("MultiStepLR", _milestones, _milestone_mistakes, _milestones),
    Scheduler("PolynomialLR", _polynomial),
    Scheduler("OneCycleLR", _one_cycle, _one_cycle_mistakes),
    Scheduler("SequentialLR", _sequential),
    Scheduler("LambdaLR", _function, _function_mistakes),
)


def row_of(scheduler: Any) -> Scheduler | None:
    """Find the row of a scheduler's class."""
    return next((row for row in SCHEDULERS if row.name == type(scheduler).__name__), None)


def base_rate(scheduler: Any) -> float:
    """Return the learning rate that a scheduler began with, in the first parameter group."""
    group = scheduler.optimizer.param_groups[0]
    return float(vars(scheduler).get("base_lrs", [group.get("initial_lr", rate_of(group))])[0])


def right_call(scheduler: Any) -> Call | Recounted | None:
    """Return optax's call for a scheduler of torch; None where none is known."""
    row = row_of(scheduler)
    return row.right(scheduler, base_rate(scheduler)) if row else None


def moved_setting(schedulers: Sequence[Any], values: Sequence[float]) -> Call | None:
    """Return the schedule of a momentum that OneCycleLR moves, if it gives the values of all steps."""
    if len(schedulers) != 1 or type(schedulers[0]).__name__ != "OneCycleLR":
        return None
    group = schedulers[0].optimizer.param_groups[0]
    highest, lowest = group.get("max_momentum"), group.get("base_momentum")
    if not highest or not lowest:
        return None
    call = _two_phases(schedulers[0], highest, lowest, highest)
    return call if call and gives(call, values, range(len(values))) else None


SAME = 1e-5
"""Relative difference of rates up to which a schedule is the same: optax computes its own in float32."""


def gives(call: Call | Recounted, rates: Sequence[float], counts: Sequence[int]) -> bool:
    """Return whether a schedule gives these rates at these counts."""
    try:
        schedule = call.made()
        given = [float(schedule(count)) for count in counts]
    except (TypeError, ValueError, ZeroDivisionError):
        return False
    size = max(map(abs, rates), default=0.0)
    # Relative, as rates span orders of magnitude; absolute only for rates near zero, where a cosine
    # cancels: 1 + cos(pi).
    return bool(np.allclose(given, rates, rtol=SAME, atol=SAME * 1e-2 * size))
