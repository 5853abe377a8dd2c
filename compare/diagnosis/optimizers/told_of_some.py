"""Says what the JAX side does differently to some parameters only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.optimizers.calls import Call, Code, written
from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.masks import mask_of
from compare.diagnosis.optimizers.names import COMBINING, DECOUPLED, TRANSFORMATIONS, in_words
from compare.diagnosis.optimizers.rates import Rates
from compare.diagnosis.optimizers.settings import groups_call, multi_transform, number_of
from compare.diagnosis.optimizers.some_parameters import Assignment, Treatment, settings_of
from compare.diagnosis.optimizers.told import Told
from compare.torch_side.rates import rate_of


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
        return _told_rate(evidence, found, treatment.value, paths)
    if treatment.kind == "group":
        return _told_group(evidence, found, evidence.steps[0].groups[int(treatment.value)], paths)
    argument = in_words(treatment.setting)
    of_steps = [[number_of(group, treatment.setting, 0.0) for group in step.groups] for step in evidence.steps]
    fix: Call | str = f"give {some} the {argument} that torch's group has for it at each step"
    if all(of_groups == of_steps[0] for of_groups in of_steps):
        own = _of_groups(evidence, found.torch_names, treatment.setting)
        values = dict.fromkeys(own[path] for path in paths)
        each = (f"give {', '.join(p for p in paths if own[p] == value)} the {argument} {value:g}" for value in values)
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


def _told_rate(evidence: Evidence, found: Assignment, factor: float, paths: Sequence[str]) -> Told:
    """Say how many times torch's learning rate some parameters have, and both rates where each side has one."""
    some = _listed(paths)
    steps = [tuple(rate_of(group) for group in step.groups) for step in evidence.steps]
    own = {rate for path, rate in _of_groups(evidence, found.torch_names, "lr").items() if path in paths}
    says, fix = f"the JAX side's learning rate of {some} is {factor:g} times torch's at every step", ""
    if len(own) == 1:
        (rate,) = own
        at = "" if len(set(steps)) == 1 else f" at step {evidence.steps[0].number}"
        says = (
            f"the JAX side has a learning rate of {factor * rate:g} for {some}, and torch {rate:g}{at}: it is "
            f"{factor:g} times torch's at every step"
        )
        fix = "" if at else f"give {some} the learning rate {written(rate)}"
    return Told(
        "learning rate of some parameters",
        says,
        fix=fix or f"divide the learning rate of {some} by {factor:g}",
        source=COMBINING,
    )


def _told_group(evidence: Evidence, found: Assignment, group: dict[str, Any], paths: Sequence[str]) -> Told:
    """Say which settings of another group the JAX side has for some parameters."""
    theirs, ours = settings_of(group), {path: dict[str, float]() for path in paths}
    for name, value in theirs.items():
        for path, own in _of_groups(evidence, found.torch_names, name).items():
            if path in ours and own != value:
                ours[path][name] = own
    names = dict.fromkeys(name for own in ours.values() for name in own)
    has = ", ".join(f"{in_words(name)} {theirs[name]:g}" for name in names)
    kinds = dict.fromkeys(tuple(own.items()) for own in ours.values())
    fixes = (
        f"give {', '.join(path for path in paths if tuple(ours[path].items()) == kind)} "
        + " and ".join(f"the {in_words(name)} {value:g}" for name, value in kind)
        for kind in kinds
    )
    return Told(
        "parameter groups",
        f"the JAX side has {has} for {_listed(paths)}, which torch has for another parameter group",
        fix=f"{'; '.join(fixes)}: optax.multi_transform with an optimizer for each",
        source=COMBINING,
    )


def _told_without_gradient(evidence: Evidence, found: Assignment, paths: list[str]) -> Told:
    """Say what torch's optimizer skips: where a gradient is None at some steps alone, the moments decay at these."""
    some, them = _listed(paths), "it" if len(paths) == 1 else "them"
    names = list(dict.fromkeys(found.torch_names[path].partition("[")[0] for path in paths))
    if all(step.given.get(name) is None for step in evidence.steps for name in names):
        says = f"torch does not update {some} without a gradient, and the JAX side does: weight decay shrinks {them}"
        fix: Call | str = multi_transform(evidence, found.torch_names, paths)
    else:
        says = left_out_at_some_steps(names)
        fix = KEPT_WITHOUT_GRADIENT
    return Told(WITHOUT_GRADIENT, says, fix=fix, source=COMBINING)


WITHOUT_GRADIENT = "parameters without a gradient"
"""The name of the cause."""

KEPT_WITHOUT_GRADIENT = "at these steps, leave them unchanged, and the optimizer's state of them"


def left_out_at_some_steps(names: Sequence[str]) -> str:
    """Say which of torch's parameters its optimizer leaves out where a layer does not run."""
    them = "it" if len(names) == 1 else "them"
    return (
        f"torch's optimizer leaves out {_listed(names)} at the steps at which torch has no gradient of {them}, as of a "
        "layer that does not run, and the JAX side's takes a gradient of zero"
    )


def _told_decay(evidence: Evidence, found: Assignment, paths: list[str], every: list[str]) -> Told:
    """Say which parameters each side decays."""
    decays = [_of_groups(evidence, found.torch_names, "weight_decay", number) for number in range(len(evidence.steps))]
    decay = decays[0]
    if any(each[path] != decay[path] for each in decays for path in paths):
        return _told_changing_decay(found, decays, paths)
    by_torch = [path for path in every if decay.get(path)]
    by_jax = [p for p in every if (found.treatments[p].value if p in found.treatments else decay.get(p))]
    value = max((decay.get(path, 0.0) for path in every), default=0.0)
    says = f"torch decays {_listed(by_torch) or 'nothing'}, and the JAX side {_listed(by_jax) or 'nothing'}"
    if by_torch and by_jax and set(by_torch) != set(by_jax) and max(len(by_torch), len(by_jax)) > _MOST:
        alone = [path for path in by_torch if path not in by_jax], [path for path in by_jax if path not in by_torch]
        ours, theirs = map(_listed, alone)
        says = "; ".join(
            [
                *([f"torch decays {ours}, and the JAX side does not"] if ours else []),
                *([f"the JAX side decays {theirs}, and torch does not"] if theirs else []),
            ]
        )
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


def _told_changing_decay(found: Assignment, decays: Sequence[Mapping[str, float]], paths: list[str]) -> Told:
    """Say that torch's weight decay changes from step to step, and the JAX side's does not."""
    theirs = ", ".join(f"{value:g}" for value in dict.fromkeys(found.treatments[path].value for path in paths))
    ours = "; ".join(dict.fromkeys(", ".join(f"{each[path]:.6g}" for each in decays) for path in paths))
    return Told(
        "weight decay from step to step",
        f"torch's weight decay of {_listed(paths)} is {ours}, from step to step, and the JAX side has {theirs} at "
        "every step",
        fix=f"give optax.inject_hyperparams(...) a weight_decay that changes as torch's: {ours}",
        source="https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html#optax.inject_hyperparams",
    )


def _of_groups(evidence: Evidence, torch_names: Mapping[str, str], setting: str, number: int = 0) -> dict[str, float]:
    """Return a number of torch's group for each parameter at one of the steps, by the JAX side's path."""
    step = evidence.steps[number]
    order = [index for group in step.groups for index in group["params"]]
    numbers = [number_of(group, setting, 0.0) for group in step.groups for _ in group["params"]]
    by_index = dict(zip(order, numbers, strict=True))
    names = evidence.parameter_names
    by_name = {names[index]: number for index, number in by_index.items() if index < len(names)}
    return {path: by_name.get(name.partition("[")[0], 0.0) for path, name in torch_names.items()}


_MOST = 4
"""So many names are listed."""


def _listed(paths: Sequence[str], most: int = _MOST) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
