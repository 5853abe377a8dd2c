"""Why two optimizers differ, proved on every step that was taken.

At each step both optimizers start from the same parameters, gradients and state. A hypothesis is tried by making
torch's updates again with something changed; it is a cause if it gives the JAX side's updates and state at all steps,
and explains more numbers than it was fitted to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compare.diagnosis.optimizers.calls import Call, Code
from compare.diagnosis.optimizers.evidence import Evidence, OptimizerRun
from compare.diagnosis.optimizers.families import Family, families, told_family
from compare.diagnosis.optimizers.fit import Fit, Fitter
from compare.diagnosis.optimizers.names import optimizer_call
from compare.diagnosis.optimizers.rates import Rates, fitted_rates, rates_of
from compare.diagnosis.optimizers.schedules import told_rates
from compare.diagnosis.optimizers.search import SEVERAL, Search, Searcher
from compare.diagnosis.optimizers.some_parameters import Assignment, assigned
from compare.diagnosis.optimizers.told import Told, rates_in_words
from compare.diagnosis.optimizers.told_of_some import decay_mask
from compare.diagnosis.optimizers.told_of_some import told as told_some
from compare.diagnosis.optimizers.trial import Bench
from compare.verdict.divergence import Cause, Detail, DetailKind


@dataclass(frozen=True)
class Explained:
    """What is known of why two optimizers differ."""

    cause: Cause | None = None
    details: tuple[Detail, ...] = ()
    """What is known where no cause is."""
    rounding: bool = False
    """Whether it is only a learning rate that was rounded to float32."""


def explain_update(evidence: Evidence | None, start: Callable[[str], OptimizerRun]) -> Explained:
    """Find what brings torch's updates to the JAX side's.

    Args:
        evidence: The steps of both sides.
        start: Starts a run of the torch side in a precision. One is used up.

    """
    if evidence is None or not evidence.differing:
        return Explained()
    if len({tuple(len(group["params"]) for group in step.groups) for step in evidence.steps}) > 1:
        return Explained()  # the user has given the optimizer more parameters in between
    fitter = Fitter(evidence, Bench(start("float64")))
    if not _repeats(fitter):
        return Explained()
    searcher = Searcher(fitter)
    for size in range(1, SEVERAL + 1):
        search = searcher.explained(size)
        if search.found and fitter.goes_on(search.found):
            return _explained(searcher, search.found)
        if search.undecided:
            return Explained(details=_undecided(fitter, search))
        if some := _of_some(searcher, size - 1):
            return _explained(searcher, some.fit, some)
        if size == 1 and (other := families(evidence)):
            return _of_another_optimizer(evidence, other)
        if fitter.spent:
            break
    return Explained(details=_known_rates(fitter))


def _of_another_optimizer(evidence: Evidence, found: list[Family]) -> Explained:
    told = [told_family(evidence, family) for family in found]
    if len(found) > 1:  # optax.rmsprop and optax.adagrad are the same at some gradients
        first = f"one of {len(told)} optimizers, which these steps cannot distinguish: take more steps"
        candidates = (Detail(DetailKind.CANDIDATE, each.says) for each in told)
        return Explained(details=(Detail(DetailKind.UNDECIDED, first), *candidates))
    return Explained(_cause(evidence, told, f"is {found[0].left:.1e}"))


def _repeats(fitter: Fitter) -> bool:
    """Return whether torch's update is reproduced without a change; otherwise no changed update proves anything."""
    for step in fitter.evidence.steps:
        given = fitter.made(step, Fit(()))
        if given is None:
            return False
        for array, result in zip(given, step.results, strict=True):
            if abs(array - result.torch).max(initial=0.0) > result.near:
                return False
    return True


def _of_some(searcher: Searcher, size: int) -> Assignment | None:
    """Look for changes of some parameters, in addition to what explains the state of all, or to one change."""
    fitter = searcher.fitter
    states = [fit for number in range(size + 1) for fit in searcher.state_fits(number)]
    beside = [Fit(()), *(fit for fit in states if fit.hypotheses)]
    if size:
        beside += [Fit((each,), ((),)) for each in (*searcher.of_state, *searcher.of_update) if not each.free]
    for fit in beside:
        if len(fit.hypotheses) == size and (found := assigned(fitter, fit)):
            return found
    return None


def _explained(searcher: Searcher, fit: Fit, some: Assignment | None = None) -> Explained:
    fitter, evidence, rates = searcher.fitter, searcher.evidence, rates_of(searcher.evidence, fit)
    if not any(each.place == "gradient" for each in fit.hypotheses) and _differ_by_clipping(evidence, rates):
        ours, theirs = rates_in_words(list(rates.torch), list(rates.jax))
        says = f"the JAX side steps as torch would with the learning rates {theirs} for {ours}: it may clip otherwise"
        return Explained(details=(Detail(DetailKind.VALUES, says),))
    known = zip(fit.hypotheses, fit.numbers, strict=True)
    in_order = sorted(known, key=lambda pair: searcher.order[id(pair[0])])
    parts = [each.tell(evidence, numbers) for each, numbers in in_order]
    if rates.differ:
        of_gradient = sum(each.place == "gradient" for each in fit.hypotheses)
        parts.insert(of_gradient, told_rates(evidence, rates))
    if some:
        parts += told_some(evidence, some, rates)
    left = "falls to rounding" if some else f"is {fitter.worst(fit):.1e}"
    rounding = rates.differ and rates.rounded and len(parts) == 1
    return Explained(_cause(evidence, parts, left), rounding=rounding)


def _differ_by_clipping(evidence: Evidence, rates: Rates) -> bool:
    """Tell whether the JAX side's rates are no schedule: they change only where torch clips.

    A gradient that is clipped to another norm, as where torch counts two biases and the port one, is scaled by another
    factor at each of these steps, which a learning rate of its own explains as well.
    """
    if len(set(rates.torch)) != 1:
        return False
    clips = [step.clips for step in evidence.steps]
    others = [rate for rate, clipped in zip(rates.jax, clips, strict=True) if not clipped]
    return any(clips) and not rates.constant and np.ptp(others or [0.0]) <= 1e-9 * rates.torch[0]


def _cause(evidence: Evidence, parts: Sequence[Told], left: str) -> Cause:
    name = " and ".join(dict.fromkeys(part.name for part in parts))
    says = ". Besides, ".join(part.says for part in parts)
    count = len(evidence.steps)
    over = f", at all {count} steps" if count > 1 else ""
    mask = decay_mask(evidence)
    fixes = fixes_of(evidence.kind, parts, mask)
    changes = fixes_of(evidence.kind, [replace(part, others={}) for part in parts], mask)
    return Cause(
        name,
        f"{name}: {says}. With this change on the torch side, the difference {left}{over}",
        "; ".join(dict.fromkeys(map(str, fixes))),
        ", ".join(dict.fromkeys(part.source for part in parts if part.source)),
        tuple(change.code() for change in changes if isinstance(change, Call)),
    )


def fixes_of(kind: str, parts: Sequence[Told], mask: Code | None = None) -> list[Call | str]:
    """Write what mends all parts: one call, as far as it goes, and what no call does.

    Args:
        kind: The class of torch's optimizer.
        parts: What differs.
        mask: Of what torch decays, where it does not decay all.

    """
    arguments = {key: value for part in parts for key, value in part.arguments.items()}
    if mask is not None and arguments.get("weight_decay"):
        arguments = arguments | {"mask": arguments.get("mask", mask)}
    before = [part.before for part in parts if part.before]
    function = next((part.function for part in parts if part.function), "")
    fixes: list[Call | str] = []
    if arguments or before or function:
        others = {key: value for part in parts for key, value in part.others.items()}
        rate = {key: value for key, value in arguments.items() if key == "learning_rate"}  # it is printed first
        call = optimizer_call(kind, rate | others | arguments)
        # A call with the learning rate is printed with all that differs from optax's defaults. Where torch decays some
        # parameters only, the mask belongs to that: without it, the rest is what the port has.
        whole = "learning_rate" in arguments and (mask is None or "mask" in arguments)
        call = Call(function or call.function, () if whole else call.arguments, call.keywords)
        fixes.append(Call("optax.chain", (*before, call)) if before else call)
    return fixes + [part.fix for part in parts if part.fix]


def _undecided(fitter: Fitter, search: Search) -> tuple[Detail, ...]:
    """List causes of which each alone explains these steps."""
    lines = []
    # One of each kind: with and without an epsilon, a fitted clipping looks the same.
    for fit in {tuple(each.name for each in fit.hypotheses): fit for fit in search.undecided}.values():
        rates = rates_of(fitter.evidence, fit)
        parts = [each.tell(fitter.evidence, numbers) for each, numbers in zip(fit.hypotheses, fit.numbers, strict=True)]
        parts += [told_rates(fitter.evidence, rates)] if rates.differ else []
        lines.append(" and ".join(f"{part.name}: {part.says}" for part in parts))
    says = f"these steps cannot decide between {len(lines)} causes: take more steps"
    return Detail(DetailKind.UNDECIDED, says), *(Detail(DetailKind.CANDIDATE, line) for line in lines)


def _known_rates(fitter: Fitter) -> tuple[Detail, ...]:
    """Return both sides' learning rates, where one rate explains every step."""
    fit = fitted_rates(fitter, Fit(()))
    if fit is None or fit.rates is None:
        return ()
    rates = rates_of(fitter.evidence, fit)
    ours, theirs = rates_in_words(list(rates.torch), list(rates.jax))
    return (Detail(DetailKind.VALUES, f"learning rate: torch {ours}, optax {theirs}"),)
