"""Finds what the JAX side does differently to some parameters only: masks, frozen parameters, parameter groups."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.optimizers.evidence import Evidence, Result
from compare.diagnosis.optimizers.fit import Fit, Fitter
from compare.diagnosis.optimizers.settings import numbers_of
from compare.diagnosis.optimizers.trial import Trial
from compare.numerics.distance import norm
from compare.torch_side.rates import has_rate, rate_of
from compare.weights.links import named

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Treatment:
    """What may be done to a parameter. No number in it is fitted."""

    kind: str
    """"as torch", "decay", "frozen", "raw gradient", "without a gradient", "setting" or "group"."""
    change: Callable[[Trial], None]
    setting: str = ""
    value: float = 0.0


AS_TORCH = Treatment("as torch", lambda trial: None)


@dataclass(frozen=True)
class Assignment:
    """Which treatment explains each parameter, at every step."""

    fit: Fit
    """What holds for all parameters besides, with the rates."""
    treatments: dict[str, Treatment]
    """By the JAX side's path, for each that differs from torch."""
    torch_names: dict[str, str]


def treatments(evidence: Evidence) -> Iterator[Treatment]:
    """List what may be done to some parameters."""
    yield AS_TORCH

    def freeze(trial: Trial) -> None:
        trial.updates.append(lambda _, update: update * 0)

    # optax.masked passes the updates of masked-out parameters through unchanged. If no other transformation handles
    # them, optax.apply_updates adds the gradient itself to the parameter.
    def raw(trial: Trial) -> None:
        given = trial.gradients or trial.step.given

        def pass_on(name: str, update: "torch.Tensor") -> "torch.Tensor":
            gradient = given[name]
            return update * 0 if gradient is None else gradient.to(update)

        trial.updates.append(pass_on)

    # torch.optim skips a parameter whose gradient is None. jax.grad gives zeros for it, so that optax still applies
    # weight decay and momentum to it.
    def zero(trial: Trial) -> None:
        for name, start in trial.step.parameters.items():
            gradient = trial.gradients.get(name, trial.step.given[name])
            trial.gradients[name] = start * 0 if gradient is None and start is not None else gradient

    yield Treatment("frozen", freeze)
    yield Treatment("raw gradient", raw)
    if any(gradient is None for step in evidence.steps for gradient in step.given.values()):
        yield Treatment("without a gradient", zero)
    groups = evidence.steps[0].groups
    values = {name: {numbers_of(group).get(name, value) for group in groups} for name, value in _numbers(evidence)}
    values.setdefault("weight_decay", set()).add(0.0)
    for name, several in values.items():
        for value in sorted(several) if len(several) > 1 or name == "weight_decay" else ():
            if name in numbers_of(groups[0]):
                yield Treatment("decay" if name == "weight_decay" else "setting", _setter(name, value), name, value)
    for rate in sorted({rate_of(group) for group in groups if has_rate(group)}) if len(groups) > 1 else ():
        yield Treatment("setting", _setter("lr", rate), "lr", rate)
    # Groups may differ in several settings, and the JAX side have those of one group for all.
    for number, group in enumerate(groups) if len(groups) > 1 else ():
        yield Treatment("group", _as_in(group), value=number)


def _as_in(group: dict[str, Any]) -> Callable[[Trial], None]:
    def change(trial: Trial) -> None:
        trial.settings.update(settings_of(group))

    return change


def settings_of(group: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a parameter group, and its learning rate."""
    return {**numbers_of(group), **({"lr": rate_of(group)} if has_rate(group) else {})}


def _numbers(evidence: Evidence) -> list[tuple[str, float]]:
    return list(numbers_of(evidence.steps[0].groups[0]).items())


def _setter(name: str, value: float) -> Callable[[Trial], None]:
    def change(trial: Trial) -> None:
        trial.settings[name] = value

    return change


def assigned(fitter: Fitter, fit: Fit) -> Assignment | None:
    """Find the change of each parameter in addition to a fit for all; None if some are not explained.

    Each parameter must be explained by one treatment at every step. With a learning rate that is the JAX side's own,
    all must be explained by the same one.
    """
    every = list(treatments(fitter.evidence))
    rates: list[list[float | None]] = [[None] * len(fitter.evidence.steps)]
    largest = max(
        (r for r in fitter.evidence.differing[0].results if r.differs and not r.is_state),
        key=lambda r: r.jax.size,
        default=None,
    )
    # If every parameter has another treatment and the rate differs too, no single update shows the rate.
    # Each treatment in turn is supposed to hold for the largest parameter, which then gives the rate of
    # every step.
    if largest is not None:
        for treatment in every:
            if treatment.setting != "lr" and (own := _rates_by(fitter, fit, treatment, largest)):
                rates.append(own)
    # With a rate of its own, the JAX side has none of torch's groups.
    own_rate = [treatment for treatment in every if treatment.setting != "lr" and treatment.kind != "group"]
    for rate in rates:
        if found := _assigned(fitter, fit, every if rate is rates[0] else own_rate, rate):
            return found
    other = _other_rate(fitter, fit)
    return _assigned(fitter, fit, [*every, other], rates[0]) if other else None


def _other_rate(fitter: Fitter, fit: Fit) -> Treatment | None:
    """Fit another learning rate by the first parameter that differs; it must explain all of its steps, and others."""
    first = next((r for r in fitter.evidence.differing[0].results if r.differs and not r.is_state), None)
    own = None if first is None else _rates_by(fitter, fit, AS_TORCH, first)
    if own is None or len(own) < 2 or any(rate is None for rate in own):
        return None
    factors = [(rate or 0.0) / step.rate for rate, step in zip(own, fitter.evidence.steps, strict=True) if step.rate]
    if not factors or max(factors) - min(factors) > 1e-9 * max(factors):
        return None
    factor = _short(factors[0]) if factors[0] else 0.0

    def scale(trial: Trial) -> None:
        trial.updates.append(lambda _, update: factor * update)

    return Treatment("rate", scale, value=factor)


def _rates_by(fitter: Fitter, fit: Fit, treatment: Treatment, like: Result) -> list[float | None] | None:
    """Fit the rate of each step by one parameter alone."""
    found: list[float | None] = []
    for step in fitter.evidence.steps:
        rows = np.array([result.pairing is like.pairing for result in step.results])
        if not rows.any() or fitter.spent:
            return None
        given, rate = fitter.rated(step, fit, rows, treatment.change)
        index = int(np.argmax(rows))
        if given is None or norm(given[index] - step.results[index].jax) > step.results[index].near:
            return None
        found.append(None if abs(rate - step.rate) <= 1e-9 * abs(step.rate) else _short(rate))
    return None if all(each is None for each in found) else found


def _short(rate: float) -> float:
    return next(s for d in range(17) if abs((s := float(f"{rate:.{d}e}")) - rate) <= 1e-11 * abs(rate))


def _assigned(fitter: Fitter, fit: Fit, every: Sequence[Treatment], rates: Sequence[float | None]) -> Assignment | None:
    explains: dict[str, list[Treatment]] = {}
    names: dict[str, str] = {}
    holds: dict[str, bool] = {}
    for treatment in every:
        if fitter.spent:
            return None
        holds = {}
        for step, rate in zip(fitter.evidence.steps, rates, strict=True):
            given = fitter.made(step, fit, rate, treatment.change)
            for number, result in enumerate(step.results):
                path = _path(result)
                if not result.is_state:
                    names[path] = result.pairing.subjects(0)[0]
                near = given is not None and norm(given[number] - result.jax) <= result.near
                holds[path] = holds.get(path, True) and near
        for path, held in holds.items():
            if held:
                explains.setdefault(path, []).append(treatment)
    if not set(holds) <= set(explains):
        return None
    chosen = _fewest(explains)
    own = None if all(rate is None for rate in rates) else rates
    steps = fitter.evidence.steps
    whole = fit.rates if own is None else tuple(s.rate if r is None else r for s, r in zip(steps, own, strict=True))
    left = {path: treatment for path, treatment in chosen.items() if treatment is not AS_TORCH}
    leaves = {path.partition("[")[0]: treatment for path, treatment in chosen.items()}
    if any(leaves[path.partition("[")[0]] is not treatment for path, treatment in chosen.items()):
        return None  # an optax mask decides on whole arrays: two parts of one cannot be treated differently
    return Assignment(Fit(fit.hypotheses, fit.numbers, whole), left, names) if left else None


def _fewest(explains: dict[str, list[Treatment]]) -> dict[str, Treatment]:
    """Choose for each parameter torch's own treatment where it holds, else what explains most of the others."""
    chosen = {path: AS_TORCH for path, each in explains.items() if AS_TORCH in each}
    left = {path: each for path, each in explains.items() if path not in chosen}
    while left:
        # The greedy algorithm for set cover: few treatments, each of many parameters. A parameter whose
        # gradient is zero is explained by many of them, and should follow its neighbours.
        options = [treatment for each in left.values() for treatment in each]
        best = max(options, key=options.count)
        for path in [path for path, each in left.items() if best in each]:
            chosen[path] = best
            del left[path]
    return chosen


def _path(result: Result) -> str:
    """Return the JAX side's path of the parameter that a result belongs to."""
    return named(result.pairing.link, "jax") if result.pairing.link else result.pairing.jax
