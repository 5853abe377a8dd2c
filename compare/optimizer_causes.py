"""Why two optimizers differ: one update of the torch side, from the recorded gradients, with something changed.

Every number in a `torch.optim.Optimizer`'s parameter groups is a setting that can be fitted, whatever the optimizer:
what the JAX side steps by is then known, whether or not it calls it the same. Conventions that no setting of torch
expresses are formulas, in `compare.conventions.optimizers`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.alignment import to_numpy
from compare.conventions.optimizers import CONVENTIONS, DOCS, Convention
from compare.engine import Target
from compare.fitting import ITERATIONS, fitted
from compare.optimizer_update import BOUND, GRADIENT, Updates
from compare.report import Cause
from compare.verdict import distance

if TYPE_CHECKING:
    import torch

OPTAX = {
    "SGD": "optax.sgd",
    "Adam": "optax.adam",
    "AdamW": "optax.adamw",
    "NAdam": "optax.nadam",
    "RAdam": "optax.radam",
    "Adamax": "optax.adamax",
    "Adagrad": "optax.adagrad",
    "Adadelta": "optax.adadelta",
    "RMSprop": "optax.rmsprop",
    "Rprop": "optax.rprop",
    "Adafactor": "optax.adafactor",
    "Muon": "optax.contrib.muon",
}
"""What optax calls each optimizer of `torch.optim`."""

NAMES = {
    "lr": ("learning rate", "learning_rate"),
    "betas[0]": ("first moment's decay", "b1"),
    "betas[1]": ("second moment's decay", "b2"),
    "eps": ("epsilon", "eps"),
    "weight_decay": ("weight decay", "weight_decay"),
    "momentum": ("momentum", "momentum"),
    "alpha": ("decay", "decay"),
    "rho": ("decay", "rho"),
    "initial_accumulator_value": ("initial accumulator", "initial_accumulator_value"),
    "nesterov": ("Nesterov momentum", "nesterov"),
    "centered": ("centring", "centered"),
}
"""For settings of torch: what they are, and optax's argument. Others keep their names."""

_TRANSFORMATIONS = "https://optax.readthedocs.io/en/latest/api/transformations.html"

FLAGS = ("nesterov", "centered", "amsgrad", "maximize", "decoupled_weight_decay")


def explain_update(updates: Updates, rates: Sequence[float]) -> Cause | None:
    """Find what brings torch's update to the JAX side's.

    Args:
        updates: Makes torch's update.
        rates: The learning rates of torch's steps, up to this one.

    """
    updates({})
    rates = [*rates, updates.optimizer.param_groups[0].get("lr", 0.0)]
    if (clipped := _other_gradient(updates)) and clipped.name == "clipping":
        return clipped
    for changed, convention, apart in _candidates(updates):
        if apart <= 1:
            return _told(updates, changed, convention, rates)
    if cause := _other_parameters(updates) or clipped or _clipped_by_value(updates):
        return cause
    for changed, convention, apart in _several(updates):
        if apart <= 1:
            return _told(updates, changed, convention, rates)
    return None


Changed = dict[str, Any]


def _candidates(updates: Updates) -> Iterator[tuple[Changed, Convention | None, float]]:
    """Try what may be otherwise, one thing after the other."""
    now = updates.settings
    for name in FLAGS:
        if isinstance(updates.group.get(name), bool):
            flag = {name: not updates.group[name]}
            yield flag, None, updates.apart(updates(flag))
    for convention in _conventions(updates):
        yield {}, convention, updates.apart(updates({}, convention))
    for name, value in now.items():

        def run(other: float, name: str = name) -> np.ndarray | None:
            return updates({name: other})

        apart, other = fitted(value, run, updates.target, updates.apart)
        yield {name: other}, None, apart


def _several(updates: Updates) -> Iterator[tuple[Changed, Convention | None, float]]:
    """Try what may be otherwise, several things at once."""
    now = updates.settings
    flags: list[Changed] = [{n: not updates.group[n]} for n in FLAGS if isinstance(updates.group.get(n), bool)]
    for flag, convention in itertools.product([{}, *flags], [None, *_conventions(updates)]):
        changed, apart = _jointly(updates, convention, flag, now)
        if len(changed) + (convention is not None) <= SEVERAL:
            yield changed, convention, apart
    # A first step hardly tells a scaled gradient from another decay of the moments: fit few numbers beside it.
    unclipped = updates.size / (updates.stepped_on or 1.0)
    for others in itertools.chain(*(itertools.combinations(now, size) for size in range(1, SEVERAL))):
        changed, apart = _jointly(updates, None, {}, {GRADIENT: unclipped} | {name: now[name] for name in others})
        yield changed, None, apart


SEVERAL = 3
"""Causes at once, at most: with more numbers to fit, anything could be explained."""


def _conventions(updates: Updates) -> list[Convention]:
    return [each for each in CONVENTIONS if updates.kind in each.optimizers]


def _jointly(
    updates: Updates, convention: Convention | None, flag: Changed, now: Mapping[str, float]
) -> tuple[Changed, float]:
    """Fit the settings that are `now` as given, all at once, by Gauss-Newton steps."""
    values = np.array(list(now.values()))

    def at(numbers: np.ndarray) -> np.ndarray | None:
        return updates({**dict(zip(now, numbers.tolist(), strict=True)), **flag}, convention)

    best = (np.inf, values)
    # The state comes first: from a wrong one, an update tells little of what made it.
    for rows in (updates.of_state, np.full(updates.target.shape, True)):
        given = at(values) if rows.any() else None
        for _ in range(ITERATIONS):
            if given is None:
                break
            best = min(best, (updates.apart(given), values), key=lambda pair: pair[0])
            left = (updates.target - given)[rows]
            if best[0] <= 1 or np.linalg.norm(left) <= 1:
                break
            columns = []
            for i, value in enumerate(values):
                h = max(1e-5 * abs(value), 1e-9)
                moved = at(values + h * np.eye(len(values))[i])
                columns.append(np.zeros_like(left) if moved is None else (moved - given)[rows] / h)
            jacobian = np.stack(columns, axis=1)
            sizes = np.linalg.norm(jacobian, axis=0)
            sizes[sizes == 0] = 1
            if not np.isfinite([*sizes, np.linalg.norm(left)]).all():  # with a setting that overflows
                break
            fresh = values + np.linalg.lstsq(jacobian / sizes, left, rcond=1e-10)[0] / sizes
            values = np.where((values >= 0) & (fresh < 0), values / 10, fresh)
            given = at(values)
    apart, values = best
    changed = dict(zip(now, values.tolist(), strict=True))
    if apart > 1:
        return changed, apart
    for name in now:  # what need not be otherwise is not
        fewer = {key: value for key, value in changed.items() if key != name}
        if (left := updates.apart(updates({**fewer, **flag}, convention))) <= 1:
            changed, apart = fewer, left
    for digits in range(7):
        short = {name: float(f"{value:.{digits}e}") for name, value in changed.items()}
        short = {name: value for name, value in short.items() if value != updates.settings.get(name)}
        if (left := updates.apart(updates({**short, **flag}, convention))) <= 1:
            changed, apart = short, left
            break
    return {**changed, **flag}, apart


def _told(updates: Updates, changed: Changed, convention: Convention | None, rates: Sequence[float]) -> Cause:
    now = updates.settings | {name: updates.group.get(name) for name in FLAGS}
    optax = OPTAX.get(updates.kind, f"the port of {updates.kind}")
    names: list[str] = []
    says: list[str] = []
    arguments: list[str] = []
    fixes: list[str] = []
    sources: list[str] = []
    for name, value in changed.items():
        if name == GRADIENT:
            for parts, part in zip((names, says, fixes, sources), _gradient(updates, value), strict=True):
                parts.append(part)
            continue
        called, argument = NAMES.get(name, (name.replace("_", " "), name))
        if len(several := updates.values(name)) > 1:
            names.append("parameter groups")
            says.append(
                f"torch's parameter groups have {name} {', '.join(f'{each:g}' for each in several)}, and the JAX side "
                f"steps as torch would with {value:g} for all"
            )
            fixes.append(f"optax.multi_transform, with {argument} of its own for each group")
            sources.append("https://optax.readthedocs.io/en/latest/api/combining_optimizers.html")
            continue
        if name == "lr" and len(set(rates)) > 1:
            names.append("schedule")
            shift = _shift(value, rates)
            says.append(
                f"the JAX side's learning rate is {value:g}{f', that of torch at its {shift} step' if shift else ''}, "
                f"and torch's is {now[name]:g}"
            )
            count = f"at count {len(rates) - 2}, from 0, the schedule must give {now[name]:g}"
            fixes.append(f"count the schedule's steps as torch does: {count}" if shift else count)
            sources.append("https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html")
            continue
        if name == "decoupled_weight_decay":
            called = "decoupled weight decay"
            fixes.append(
                "optax.adamw(..., weight_decay=...)"
                if now[name]
                else f"optax.chain(optax.add_decayed_weights({now['weight_decay']:g}), optax.adam(...))"
            )
        else:
            arguments.append(f"{argument}={now[name]:g}" if not isinstance(value, bool) else f"{argument}={now[name]}")
        names.append(called)
        has, shown = _apart(now[name], value)
        says.append(f"torch.optim.{updates.kind} has {name}={has}, and the JAX side steps as torch would with {shown}")
        sources.append(DOCS)
    if arguments:
        fixes.insert(0, f"{optax}(..., {', '.join(arguments)})")
    if convention is not None:
        names.append(convention.name)
        says.append(f"the JAX side {convention.jax_does}")
        fixes.append(convention.fix.format(optax=optax, **{k: v for k, v in now.items() if k.isidentifier()}))
        sources.append(convention.source)
    name = " and ".join(names)
    left = updates.difference(updates(changed, convention))
    return Cause(
        name,
        f"{name}: {', and '.join(says)}. With that on the torch side the difference is {left:.1e}",
        "; ".join(fixes),
        ", ".join(dict.fromkeys(sources)),
    )


def _apart(now: Any, value: Any) -> tuple[str, str]:
    """Show two numbers with as many digits as tell them apart."""
    if isinstance(value, bool):
        return str(now), str(value)
    digits = next(n for n in range(6, 18) if n == 17 or f"{now:.{n}g}" != f"{value:.{n}g}")
    return f"{now:.{digits}g}", f"{value:.{digits}g}"


def _shift(rate: float, rates: Sequence[float]) -> str:
    """Tell whether a learning rate is that of the step before, or of the step after."""
    *_, now, after = rates
    before = rates[-3] if len(rates) > 2 else now
    for other, name in ((before, "previous"), (after, "next")):
        if other != now and abs(rate - other) <= 1e-6 * abs(other):
            return name
    return ""


def _other_parameters(updates: Updates) -> Cause | None:
    """Find out whether the JAX side decays, or trains, other parameters."""

    def masked(some: Callable[["torch.Tensor"], bool]) -> Callable[[Updates], None]:
        def change(updates: Updates) -> None:
            groups: list[dict[str, Any]] = []
            for group in updates.optimizer.param_groups:
                parts: tuple[list[Any], list[Any]] = ([], [])
                for param in group["params"]:
                    parts[some(param)].append(param)
                groups += [{**group, "params": parts[0]}, {**group, "params": parts[1], "weight_decay": 0.0}]
            updates.optimizer.param_groups[:] = [group for group in groups if group["params"]]

        return change

    original = list(updates.optimizer.param_groups)
    apart = updates.apart(updates({}, change=masked(lambda param: param.dim() < 2)))
    updates.optimizer.param_groups[:] = original
    if apart <= 1:
        return Cause(
            "weight decay mask",
            "weight decay mask: the JAX side decays no biases and scales, and torch all of a parameter group. "
            "With that on the torch side the difference falls to rounding",
            "leave out the mask: torch decays every parameter of a group",
            "https://docs.pytorch.org/docs/stable/optim.html",
        )
    moved = [target for target in updates.targets if target.pairing.stage == "update" and target.pairing.operands]
    still = [target.pairing for target in moved if not target.array.any()]
    wrong = [target for target in moved if updates_differ(updates, target)]
    if still and {id(target.pairing) for target in wrong} <= {id(pairing) for pairing in still}:
        names = ", ".join(pairing.jax for pairing in still[:3])
        return Cause(
            "frozen parameters",
            f"frozen parameters: the JAX side does not update {names}, and torch does",
            "take them out of optax.set_to_zero() or of the mask, or freeze them in torch: requires_grad=False",
            _TRANSFORMATIONS,
        )
    untouched = [target.pairing.jax for target in wrong if not _torch_update(updates, target).any()]
    if untouched and len(untouched) == len(wrong):
        return Cause(
            "frozen parameters",
            f"frozen parameters: torch does not update {', '.join(untouched[:3])}, which get no gradient, and the JAX "
            "side does: weight decay shrinks them",
            "give them to optax.set_to_zero() by optax.multi_transform",
            _TRANSFORMATIONS,
        )
    return None


def _torch_update(updates: Updates, target: Target) -> np.ndarray:
    given = updates({})
    assert given is not None
    ends = np.cumsum([each.array.size for each in updates.targets])
    return np.split(given, ends[:-1])[[id(each) for each in updates.targets].index(id(target))]


def updates_differ(updates: Updates, target: Target) -> bool:
    """Tell whether torch's update of one parameter is another than the JAX side's."""
    size = float(np.linalg.norm(target.array)) or 1.0
    mine = _torch_update(updates, target).reshape(target.array.shape) * size * target.limit
    return distance(target.array, mine) > target.limit


def _other_gradient(updates: Updates) -> Cause | None:
    """Find out whether the JAX side's optimizer sees the gradient scaled: clipped, averaged, or not."""
    apart, factor = fitted(1.0, lambda value: updates({GRADIENT: value}), updates.target, updates.apart)
    if apart > 1 or not factor:  # an optimizer that steps by no gradient at all clips nothing
        return None
    name, says, fix, source = _gradient(updates, factor)
    return Cause(name, f"{name}: {says}. With that on the torch side the difference falls to rounding", fix, source)


def _clipped_by_value(updates: Updates) -> Cause | None:
    """Find out whether the JAX side clips each element of the gradient, and not the gradient's norm."""
    gradients = [gradient for gradient in updates.gradients.values() if gradient is not None]
    if not gradients:
        return None
    elements = np.concatenate([np.abs(to_numpy(gradient)).ravel() for gradient in gradients])
    start = float(np.median(elements))  # some are above it, and some below
    apart, bound = fitted(start, lambda value: updates({BOUND: value}), updates.target, updates.apart)
    if apart > 1 or not bound:
        return None
    updates({})
    size, clipped, largest = updates.size, updates.stepped_on, updates.largest
    jax_does = f"clips each of its elements to ±{bound:g}" if bound < elements.max() else "does not clip it"
    if clipped >= size * (1 - 1e-9):
        torch_does, fix = "does not clip the gradient", "leave out optax.clip"
    elif abs(np.linalg.norm(np.minimum(elements, largest)) / clipped - 1) < 1e-9:
        torch_does, fix = (
            f"clips each element of the gradient to ±{largest:g}",
            f"optax.chain(optax.clip({largest:g}), ...)",
        )
    else:
        most = clipped * (size + 1e-6) / size  # clip_grad_norm_ scales by max_norm / (norm + 1e-6)
        torch_does, fix = (
            f"clips the gradient's norm to {clipped:g}",
            f"optax.chain(optax.clip_by_global_norm({most:g}), ...)",
        )
    return Cause(
        "clipping",
        f"clipping: torch {torch_does}, and the JAX side {jax_does}. With that on the torch side the "
        "difference falls to rounding",
        fix,
        _TRANSFORMATIONS,
    )


def _gradient(updates: Updates, factor: float) -> tuple[str, str, str, str]:
    """Tell what it is that scales the gradient: the cause's name, what each side does, the fix and the source."""
    updates({})
    size = updates.size
    clipped = updates.stepped_on
    if abs(factor * size / (size + 1e-6) - 1) < 1e-3 * 1e-6 / size:
        return (
            "clipping",
            f"torch clips by max_norm / (norm + 1e-6) and the JAX side by max_norm / norm, at a norm of {size:g}",
            "scale by max_norm / (norm + 1e-6): optax.clip_by_global_norm has no epsilon",
            "https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html",
        )
    if clipped < size * (1 - 1e-9):
        return (
            "clipping",
            f"the gradient's norm is {size:g}; torch clips it to {clipped:g}, and the JAX side "
            + ("not at all" if abs(factor * clipped / size - 1) < 1e-6 else f"to {factor * clipped:g}"),
            # clip_grad_norm_ scales by max_norm / (norm + 1e-6)
            f"optax.chain(optax.clip_by_global_norm({clipped * (size + 1e-6) / size:g}), ...)",
            _TRANSFORMATIONS,
        )
    says = f"the JAX side's optimizer sees torch's gradient times {factor:g}"
    if factor < 1 and updates.kind != "SGD":
        says += f", of norm {factor * size:g} where torch's is {size:g}"
        return "clipping", says, "clip on both sides, or on neither", _TRANSFORMATIONS
    return "gradient scale", says, "scale the gradient as torch does, before the optimizer sees it", _TRANSFORMATIONS
