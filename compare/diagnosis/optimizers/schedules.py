"""Explains a difference of learning rates, and writes the optax schedule that fixes it."""

from collections.abc import Sequence

import numpy as np

from compare.diagnosis.optimizers.calls import Call, Recounted, written
from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.names import ARGUMENTS, OPTIMIZERS, named
from compare.diagnosis.optimizers.rates import Rates
from compare.diagnosis.optimizers.schedulers import SAME, base_rate, gives, right_call, row_of
from compare.diagnosis.optimizers.settings import numbers_of
from compare.diagnosis.optimizers.told import Told, rates_in_words, with_distinct_digits

DOCS = "https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html"


def told_rates(evidence: Evidence, rates: Rates) -> Told:
    """Return how the rates differ, with the schedule that torch has as the fix."""
    if rates.rounded:
        return _told_rounded(evidence, rates)
    if rates.constant and len(set(evidence.rates)) == 1:
        ours, theirs = with_distinct_digits(rates.torch[0], rates.jax[0])
        says = f"{named(evidence.kind)} has lr={ours}, and the JAX side steps as torch would with {theirs}"
        rate = {"learning_rate": rates.torch[0]}
        return Told("learning rate", says, rate, _other_arguments(evidence), source=OPTIMIZERS)
    ours, theirs = rates_in_words(list(rates.torch), list(rates.jax))
    said = [f"torch {ours}, optax {theirs}"]
    if how := how_they_differ(evidence, rates):
        said.append(how)
    schedule = schedule_of(evidence)
    if schedule is not None:
        return Told("schedule", "; ".join(said), {"learning_rate": schedule}, _other_arguments(evidence), source=DOCS)
    words = _in_words(evidence) or f"write an optax schedule with these rates, from count 0 on: {ours}"
    return Told("schedule", "; ".join(said), fix=words, source=DOCS)


def _in_words(evidence: Evidence) -> str:
    """Say how the function of a `LambdaLR` becomes a schedule, or what a plateau does; "" for other schedulers."""
    kind = type(evidence.schedulers[0]).__name__ if len(evidence.schedulers) == 1 else ""
    if kind == "ReduceLROnPlateau":
        plateau = evidence.schedulers[0]
        own = ", ".join(f"{name}={getattr(plateau, name)!r}" for name in ("mode", "factor", "patience", "threshold"))
        return (
            f"these rates follow from the values that torch's ReduceLROnPlateau({own}, ...) is given: make those of "
            "the JAX side follow in the same way, with the same arguments"
        )
    # There is nothing to name in code: torch's function takes an int, and often calls math or branches on it.
    every = _epoch(evidence.counts)
    if every is None or kind != "LambdaLR":
        return ""
    count = "count" if every == 1 else f"count // {every}"
    rate = written(base_rate(evidence.schedulers[0]))
    return (
        f"write the function of torch's LambdaLR with jnp, and make its value at {count}, times {rate}, the learning "
        "rate"
    )


def _told_rounded(evidence: Evidence, rates: Rates) -> Told:
    ours, theirs = rates_in_words(list(rates.torch), list(rates.jax))
    exact = [float(np.float32(rate)) == rate for rate in rates.torch]
    side = "torch's" if all(exact) else "one side's"
    return Told(
        "learning rate in float32",
        f"torch {ours}, optax {theirs}: {side} learning rate was rounded to float32, and the other's was not",
        fix="compute the schedule in float64 on both sides, or in float32 on both: the difference is rounding",
        source="docs/precision.md",
    )


def _other_arguments(evidence: Evidence) -> dict[str, object]:
    """Write the arguments but the learning rate that all groups share, where optax's defaults are not the same."""
    known = ARGUMENTS.get(evidence.kind, {})
    group = evidence.steps[0].groups[0]
    arguments: dict[str, object] = {}
    defaults = {
        "eps": {"Adagrad": 1e-7, "Adadelta": 1e-6}.get(evidence.kind, 1e-8),
        "betas[0]": 0.9,
        "betas[1]": 0.999,
        "momentum": 0.0,
        "alpha": 0.9,
        "rho": 0.9,
        "initial_accumulator_value": 0.1,
    }
    for name, value in numbers_of(group).items():
        moved = any(numbers_of(each).get(name) != value for step in evidence.steps for each in step.groups)
        if name in known and name in defaults and value != defaults[name] and not moved:
            arguments[known[name]] = value
    for name in ("nesterov", "centered"):
        if group.get(name) and name in known:
            arguments[known[name]] = True
    if evidence.kind == "RMSprop":
        arguments["eps_in_sqrt"] = False
    if evidence.kind == "AdamW" and len({float(each["weight_decay"]) for each in evidence.steps[0].groups}) == 1:
        arguments["weight_decay"] = float(group["weight_decay"])
    return arguments


def schedule_of(evidence: Evidence) -> Call | Recounted | None:
    """Write torch's schedule in optax, if it gives torch's rates at every step that was taken."""
    if len(evidence.schedulers) != 1:
        return None
    scheduler, every = evidence.schedulers[0], _epoch(evidence.counts)
    if every is None:
        return None
    row = row_of(scheduler)
    if every > 1 and row and row.per_epoch:
        slower = row.per_epoch(scheduler, base_rate(scheduler), every)
        return slower if gives(slower, evidence.rates, range(len(evidence.rates))) else None
    call = right_call(scheduler)
    # optax's call is only a fix if it gives the rates that torch really took, at every step: a scheduler
    # may have been changed by the user's code, or its formula may depend on how it is stepped.
    if call is None or not gives(call, evidence.rates, [count // every for count in range(len(evidence.rates))]):
        return None
    if every == 1:
        return call
    return Recounted(call, every) if isinstance(call, Call) else None


def _known_call(evidence: Evidence) -> Call | Recounted | None:
    return right_call(evidence.schedulers[0]) if len(evidence.schedulers) == 1 else None


def _epoch(counts: Sequence[int]) -> int | None:
    """Return the number of steps between two steps of torch's scheduler; None if these steps do not show it."""
    if not any(counts):
        return None
    every = next(number for number, count in enumerate(counts) if count)
    return every if list(counts) == [number // every for number in range(len(counts))] else None


def how_they_differ(evidence: Evidence, rates: Rates) -> str:
    """Say how the JAX side's rates come from torch's, where all of them agree with it; "" where nothing fits."""
    counts = [step.number for step in evidence.steps]
    torch = evidence.rates

    def equal(expected: Sequence[float | None]) -> bool:
        pairs = [(a, b) for a, b in zip(expected, rates.jax, strict=True) if a is not None]
        # Shifted by a step, a constant schedule equals itself. At least three different rates must agree.
        telling = {a for a, _ in pairs}
        return len(telling) > 2 and all(abs(a - b) <= SAME * max(abs(a), abs(b)) for a, b in pairs)

    every = _epoch(evidence.counts)
    if len(evidence.schedulers) == 1 and (row := row_of(evidence.schedulers[0])):
        slower = (every,) if every and every > 1 and row.per_epoch else ()
        for mistake in row.mistakes(evidence.schedulers[0], base_rate(evidence.schedulers[0]), *slower):
            if gives(mistake.call, rates.jax, counts):
                return mistake.says
    # torch's scheduler is stepped after the optimizer, optax's count grows after the update: both start
    # at 0. A port that counts from 1 is one step ahead.
    if equal([torch[count + 1] if count + 1 < len(torch) else None for count in counts]):
        return "the JAX side's schedule is one step ahead of torch's: shift its count or its boundaries by one"
    if equal([torch[max(count - 1, 0)] for count in counts]):
        return "the JAX side's schedule is one step behind torch's: shift its count or its boundaries by one"
    call = _known_call(evidence)
    if every and every > 1 and call and gives(call, rates.jax, counts):
        return f"torch's scheduler is stepped every {every} steps, and the JAX side's schedule moves at each"
    for every in range(2, len(counts)):
        if equal([torch[count // every] for count in counts]):
            return f"the JAX side's schedule moves every {every} steps, and torch's at each"
    if rates.factor is not None:
        return f"the JAX side's rates are torch's times {rates.factor:.6g}"
    if len(set(rates.jax)) == 1 and len(set(torch)) > 1:
        return "the JAX side's rate does not change"
    if not rates.jax[0] and rates.torch[0]:
        return "the JAX side's schedule starts at 0, and torch's does not"
    return ""
