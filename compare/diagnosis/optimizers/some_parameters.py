"""Finds what the JAX side does differently to some parameters only: masks, frozen parameters, parameter groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.optimizers.calls import Call, Code, written
from compare.diagnosis.optimizers.evidence import Evidence, Result
from compare.diagnosis.optimizers.fit import Fit, Fitter
from compare.diagnosis.optimizers.masks import mask_of
from compare.diagnosis.optimizers.names import COMBINING, DECOUPLED, TRANSFORMATIONS, in_words
from compare.diagnosis.optimizers.rates import Rates
from compare.diagnosis.optimizers.settings import groups_call, multi_transform, number_of, numbers_of
from compare.diagnosis.optimizers.told import Told
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
    """"as torch", "decay", "frozen", "raw gradient", "without a gradient" or "setting"."""
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

    def raw(trial: Trial) -> None:
        given = trial.gradients or trial.step.given

        def pass_on(name: str, update: "torch.Tensor") -> "torch.Tensor":
            gradient = given[name]
            return update * 0 if gradient is None else gradient.to(update)

        trial.updates.append(pass_on)

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
    for rate in rates:
        if found := _assigned(fitter, fit, every, rate):
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


def told(evidence: Evidence, found: Assignment, rates: Rates) -> Iterator[Told]:
    """Tell what is done to which parameters, one part for each treatment."""
    by_kind: dict[str, list[str]] = {}
    of: dict[str, Treatment] = {}
    for path, treatment in found.treatments.items():
        key = "decay" if treatment.kind == "decay" else f"{treatment.kind} {treatment.setting} {treatment.value}"
        by_kind.setdefault(key, []).append(path)
        of[key] = treatment
    for key, paths in by_kind.items():
        yield _told(evidence, found, of[key], paths)


def _told(evidence: Evidence, found: Assignment, treatment: Treatment, paths: list[str]) -> Told:
    some = _listed(paths)
    every = list(found.torch_names)
    if treatment.kind == "decay":
        return _told_decay(evidence, found, paths, every)
    if treatment.kind == "frozen":
        return Told(
            "frozen parameters",
            f"the JAX side does not update {some}, and torch does, at every step",
            fix=f"take {some} out of optax.set_to_zero() or of the mask, or freeze them in torch: requires_grad=False",
            source=TRANSFORMATIONS,
        )
    if treatment.kind == "raw gradient":
        return Told(
            "parameters outside of the mask",
            f"the JAX side adds the raw gradient to {some}: optax.masked passes the gradients outside its mask "
            "on unchanged, and no other transformation of the chain turns them into a step",
            # As words: the port's own chain has more than this call would replace.
            fix=str(multi_transform(evidence, found.torch_names, paths)),
            source=COMBINING,
        )
    if treatment.kind == "without a gradient":
        return _told_without_gradient(evidence, found, paths)
    if treatment.kind == "rate":
        rate = f"{treatment.value * evidence.steps[0].rate:g}"
        return Told(
            "learning rate of some parameters",
            f"the JAX side has a learning rate of {rate} for {some}, and torch {evidence.steps[0].rate:g}: it is "
            f"{treatment.value:g} times torch's at every step",
            fix=f"give {some} the learning rate {written(evidence.steps[0].rate)}",
            source=COMBINING,
        )
    argument = in_words(treatment.setting)
    of_steps = [[number_of(group, treatment.setting, 0.0) for group in step.groups] for step in evidence.steps]
    fix: Call | str = f"give {some} the {argument} that torch's group has for it at each step"
    if all(of_groups == of_steps[0] for of_groups in of_steps):
        own = _of_groups(evidence, found.torch_names, treatment.setting)
        values = dict.fromkeys(own[path] for path in paths)
        each = (f"give {_listed([p for p in paths if own[p] == value])} the {argument} {value:g}" for value in values)
        in_words_alone = f"{'; '.join(each)}: optax.multi_transform with an optimizer for each"
        # In a call, "..." stands for the learning rate too.
        is_rate = treatment.setting == "lr"
        fix = in_words_alone if is_rate else groups_call(evidence, treatment.setting, [*dict.fromkeys(of_steps[0])])
    return Told(
        "parameter groups",
        f"the JAX side has {argument} {treatment.value:g} for {some}, which torch has for another parameter group",
        fix=fix,
        source=COMBINING,
    )


def _told_without_gradient(evidence: Evidence, found: Assignment, paths: list[str]) -> Told:
    """Say what torch's optimizer skips: where a gradient is None at some steps alone, the moments decay at these."""
    some, them = _listed(paths), "it" if len(paths) == 1 else "them"
    names = {found.torch_names[path].partition("[")[0] for path in paths}
    lasts = all(step.given.get(name) is None for step in evidence.steps for name in names)
    kept = f"at the steps at which torch has no gradient, leave {them} unchanged, and the optimizer's state of {them}"
    does = f"weight decay shrinks {them}" if lasts else f"it updates {them} with a gradient of zero"
    return Told(
        "parameters without a gradient",
        f"torch does not update {some} without a gradient, and the JAX side does: {does}",
        fix=multi_transform(evidence, found.torch_names, paths) if lasts else kept,
        source=COMBINING,
    )


def _told_decay(evidence: Evidence, found: Assignment, paths: list[str], every: list[str]) -> Told:
    """Say which parameters each side decays."""
    decay = _torch_decay(evidence, found)
    by_torch = [path for path in every if decay.get(path)]
    by_jax = [p for p in every if (found.treatments[p].value if p in found.treatments else decay.get(p))]
    value = max((decay.get(path, 0.0) for path in every), default=0.0)
    says = f"torch decays {_listed(by_torch) or 'nothing'}, and the JAX side {_listed(by_jax) or 'nothing'}"
    keyword: dict[str, Any] = {} if set(by_torch) == set(every) else {"mask": Code(mask_of(by_torch, every))}
    if not keyword and by_jax:
        keyword = {"mask": None}  # the JAX side has one
    told = Told("weight decay mask", says, source=COMBINING)
    if not by_jax:
        told = replace(
            told, name="weight decay", says=f"torch decays weights by {value:g}, and the JAX side decays none"
        )
    if evidence.kind == "AdamW" or evidence.steps[0].groups[0].get("decoupled_weight_decay"):
        return replace(told, arguments={"weight_decay": value, **keyword}, function=DECOUPLED["AdamW"])
    return replace(told, before=Call("optax.add_decayed_weights", (value,), keyword))


def decay_mask(evidence: Evidence) -> Code | None:
    """Write the mask of what torch decays; None where its parameter groups have one weight decay."""
    if len({float(group.get("weight_decay", 0.0)) for group in evidence.steps[0].groups}) == 1:
        return None
    pairs = {each.pairing.jax: each.pairing.torch for each in evidence.steps[0].results if not each.is_state}
    decay = _of_groups(evidence, pairs, "weight_decay")
    return Code(mask_of([path for path in pairs if decay[path]], list(pairs)))


def _torch_decay(evidence: Evidence, found: Assignment) -> dict[str, float]:
    """Return torch's weight decay of each parameter, by the JAX side's path."""
    return _of_groups(evidence, found.torch_names, "weight_decay")


def _of_groups(evidence: Evidence, torch_names: Mapping[str, str], setting: str) -> dict[str, float]:
    """Return a number of torch's group for each parameter, by the JAX side's path."""
    step = evidence.steps[0]
    order = [index for group in step.groups for index in group["params"]]
    numbers = [number_of(group, setting, 0.0) for group in step.groups for _ in group["params"]]
    by_index = dict(zip(order, numbers, strict=True))
    names = evidence.parameter_names
    by_name = {names[index]: number for index, number in by_index.items() if index < len(names)}
    return {path: by_name.get(name.partition("[")[0], 0.0) for path, name in torch_names.items()}


def _listed(paths: Sequence[str], most: int = 4) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
