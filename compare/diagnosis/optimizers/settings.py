"""Hypotheses about the settings of an optimizer: a number, a flag, a formula that no setting expresses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compare.diagnosis.conventions.optimizers import ADAGRAD_EPSILON, CONVENTIONS, Convention, root_added
from compare.diagnosis.optimizers.calls import ELLIPSIS, Call, Code, written
from compare.diagnosis.optimizers.evidence import Evidence
from compare.diagnosis.optimizers.hypothesis import Hypothesis, Numbers
from compare.diagnosis.optimizers.masks import labels_of, mask_of
from compare.diagnosis.optimizers.names import (
    ARGUMENTS,
    COMBINING,
    DECOUPLED,
    OPTAX,
    OPTIMIZERS,
    function_of,
    in_words,
    lacking,
    named,
    optimizer_call,
)
from compare.diagnosis.optimizers.schedulers import moved_setting
from compare.diagnosis.optimizers.told import Told, rates_in_words, with_distinct_digits
from compare.diagnosis.optimizers.trial import Trial
from compare.torch_side.rates import rate_of

FLAGS = ("nesterov", "centered", "amsgrad", "maximize", "decoupled_weight_decay")

_SCHEDULE = "https://optax.readthedocs.io/en/latest/api/optimizer_schedules.html"


def number_of(group: dict[str, Any], name: str, default: float) -> float:
    """Give one number of a parameter group, which may be the learning rate; a default where it has none."""
    return rate_of(group) if name == "lr" else numbers_of(group).get(name, default)


def numbers_of(group: dict[str, Any]) -> dict[str, float]:
    """List the numbers of a parameter group but the learning rate: "eps", "betas[0]"."""
    found: dict[str, float] = {}
    for name, value in group.items():
        if name in ("lr", "params") or name.startswith(("initial_lr", "max_", "min_", "base_")):
            continue  # what a scheduler keeps there
        several = isinstance(value, tuple)
        for key, part in {f"{name}[{i}]": each for i, each in enumerate(value)}.items() if several else [(name, value)]:
            number = part.item() if hasattr(part, "item") else part
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[key] = float(number)
    return found


def flags(evidence: Evidence) -> Iterator[Hypothesis]:
    """Turn each flag round."""
    group = evidence.steps[0].groups[0]
    for name in FLAGS:
        if isinstance(now := group.get(name), bool):
            yield Hypothesis(name, _set_flag(name, not now), _told_flag(name, now))
    # torch.optim.Adam is AdamW with decoupled_weight_decay=False, and optax.adamw decays by default: a
    # port of Adam by adamw differs in two settings of torch's at once.
    if group.get("decoupled_weight_decay") is False and not group.get("weight_decay"):
        yield _decay_where_torch_has_none()


def _decay_where_torch_has_none() -> Hypothesis:
    def change(trial: Trial, values: Numbers) -> None:
        trial.settings |= {"decoupled_weight_decay": True, "weight_decay": values[0]}

    def tell(evidence: Evidence, values: Numbers) -> Told:
        says = f"{named(evidence.kind)} has weight_decay=0, and the JAX side decays weights by {values[0]:g}"
        return Told("weight decay", says, fix=optimizer_call(evidence.kind), source=OPTIMIZERS)

    return Hypothesis("decoupled weight decay of its own", change, tell, (1e-3,))


def _set_flag(name: str, value: bool) -> Any:
    def change(trial: Trial, _: Numbers) -> None:
        trial.settings[name] = value

    return change


def _told_flag(name: str, now: bool) -> Any:
    def tell(evidence: Evidence, _: Numbers) -> Told:
        kind, first = evidence.kind, evidence.steps[0]
        says = f"{named(kind)} has {name}={now}, and the JAX side steps as torch would with {not now}"
        told = Told(in_words(name), says, source=OPTIMIZERS)
        if name == "decoupled_weight_decay":
            return mended_decay(told, kind, float(first.groups[0]["weight_decay"]), decoupled=now, rate=first.rate)
        if name == "amsgrad":
            return replace(told, fix=optimizer_call(kind) if not now else f"{_WRITTEN_OUT}: {_MAXIMUM}")
        if name == "maximize" and now:
            return replace(told, before=Call("optax.scale", (-1.0,)))
        if name == "maximize":
            uphill = "the JAX side steps along the gradient, and torch against it"
            return replace(told, says=uphill, fix="change the sign of the JAX side's step")
        if argument := ARGUMENTS.get(kind, {}).get(name):
            return replace(told, arguments={argument: now})
        return replace(told, fix=lacking(kind, name, str(now)))

    return tell


_WRITTEN_OUT = "write amsgrad out as docs/optimizers.md does"

_MAXIMUM = "optax.amsgrad takes the maximum after the bias correction, and torch before it"


def numbers(evidence: Evidence) -> Iterator[Hypothesis]:
    """Let each number be another one, the same at all steps and for all parameter groups."""
    first = evidence.differing[0]
    if any(group.get("weight_decay") for group in first.groups):  # left out: nothing has to be fitted

        def without(trial: Trial, _: Numbers) -> None:
            trial.settings["weight_decay"] = 0.0

        told = _told_number("weight_decay")
        yield Hypothesis("no weight decay", without, lambda evidence, _: told(evidence, (0.0,)), place="weight decay")
    for name, value in numbers_of(first.groups[0]).items():

        def change(trial: Trial, values: Numbers, name: str = name) -> None:
            trial.settings[name] = values[0]

        place = "weight decay" if name == "weight_decay" else ""
        yield Hypothesis(name, change, _told_number(name), (value,), place=place)


def _told_number(name: str) -> Any:
    def tell(evidence: Evidence, values: Numbers) -> Told:
        kind, value, first = evidence.kind, values[0], evidence.differing[0]
        now, called = numbers_of(first.groups[0])[name], in_words(name)
        argument = ARGUMENTS.get(kind, {}).get(name)
        of_groups = list(dict.fromkeys(numbers_of(group).get(name, now) for group in first.groups))
        if len(of_groups) > 1:
            return Told(
                "parameter groups",
                f"torch's parameter groups have {name} {', '.join(f'{each:g}' for each in of_groups)}, and the JAX "
                f"side steps as torch would with {value:g} for all",
                fix=groups_call(evidence, name, of_groups),
                source=COMBINING,
            )
        # OneCycleLR moves momentum, or beta1, against the learning rate unless cycle_momentum=False.
        of_steps = [numbers_of(step.groups[0]).get(name, now) for step in evidence.steps]
        if len(set(of_steps)) > 1:
            ours, _ = rates_in_words(of_steps, [value] * len(of_steps))
            function = str(Call("optax.inject_hyperparams", (Code(function_of(kind)),)))
            says = f"torch's scheduler also changes {name}: {ours}; the JAX side has {value:g} at every step"
            told = Told(f"{called} schedule", says, source=_SCHEDULE)
            schedule = moved_setting(evidence.schedulers, of_steps)
            if schedule is None or argument is None:
                return replace(told, fix=f"{function}(..., {argument or name}=f), where f(count) is {ours}")
            return replace(told, arguments={argument: schedule}, function=function)
        return told_setting(kind, name, first.groups[0], value, first.rate)

    return tell


def told_setting(kind: str, name: str, group: dict[str, Any], value: float, rate: float) -> Told:
    """Say that torch has one number for a setting, and the JAX side another, and mend it.

    Args:
        kind: The class of torch's optimizer.
        name: "lr", or a name as `numbers_of` gives them.
        group: A parameter group of torch's.
        value: The JAX side's number.
        rate: Torch's learning rate.

    """
    now, called, argument = number_of(group, name, 0.0), in_words(name), ARGUMENTS.get(kind, {}).get(name)
    has, other = with_distinct_digits(now, value)
    says = f"{named(kind)} has {name}={has}, and the JAX side steps as torch would with {other}"
    if name == "weight_decay" and kind in OPTAX:  # how a class of the user's own decays is not known
        decoupled = kind == "AdamW" or bool(group.get("decoupled_weight_decay"))
        return mended_decay(Told(called, says, source=OPTIMIZERS), kind, now, decoupled=decoupled, rate=rate)
    if name == "lr" and argument:  # as an argument it would stand alone, without what the port's call has besides
        return Told(called, says, fix=optimizer_call(kind, {argument: now}), source=OPTIMIZERS)
    if argument:
        return Told(called, says, {argument: now}, source=OPTIMIZERS)
    if (kind, name) == ("Adagrad", "eps"):
        return Told(called, says, fix=ADAGRAD_EPSILON.format(eps=written(now)), source=OPTIMIZERS)
    return Told(called, says, fix=lacking(kind, name, written(now)), source=OPTIMIZERS)


def mended_decay(told: Told, kind: str, value: float, *, decoupled: bool, rate: float) -> Told:
    """Add what decays weights as torch does: apart from the gradient (decoupled), or as a part of it (L2)."""
    if kind == "Muon":
        return replace(told, arguments={"weight_decay": value})
    if kind == "Adafactor":
        # optax.adafactor applies its decay without the learning rate.
        return replace(told, arguments={"weight_decay_rate": rate * value})
    if decoupled and kind in DECOUPLED:
        return replace(told, arguments={"weight_decay": value}, function=DECOUPLED[kind])
    if not value:
        return replace(told, fix=f"{optimizer_call(kind)}, without weight decay")
    if decoupled:  # optax.radam has no weight decay
        decay, last = Call("optax.add_decayed_weights", (value,)), Call("optax.scale_by_learning_rate", (rate,))
        return replace(told, fix=Call("optax.chain", (Call("optax.scale_by_radam"), decay, last)))
    return replace(told, before=Call("optax.add_decayed_weights", (value,)))


def groups_call(evidence: Evidence, name: str, values: list[float]) -> Call | str:
    """Write an optimizer for each value that torch's parameter groups have for a setting."""
    kind = evidence.kind
    decoupled = kind == "AdamW" or bool(evidence.differing[0].groups[0].get("decoupled_weight_decay"))
    argument = ARGUMENTS.get(kind, {}).get(name) or name

    def call(value: float) -> Call:
        if name == "weight_decay" and not decoupled:  # optax.adam has no such argument: see `mended_decay`
            return Call("optax.chain", (Call("optax.add_decayed_weights", (value,)), optimizer_call(kind)))
        function = DECOUPLED.get(kind) if name == "weight_decay" else None
        return Call(function or function_of(kind), (ELLIPSIS,), {argument: value})

    each = {number: call(value) for number, value in enumerate(values)}
    groups = _paths_by_value(evidence, name, values)
    if groups is None:
        call_of_all = Call("optax.multi_transform", (each, Code("labels")))
        return f"{call_of_all}, where labels is a tree like the parameters, with the number of each one's group"
    if evidence.untrained:
        each[len(values)], groups[len(values)] = Call("optax.set_to_zero"), evidence.untrained
    return Call("optax.multi_transform", (each, Code(labels_of(groups))))


def _paths_by_value(evidence: Evidence, name: str, values: list[float]) -> dict[int, list[str]] | None:
    """Return the JAX side's parameters by the number of the value that torch's group has for them.

    None where an array of the JAX side is in several groups, or the group of one is not known.
    """
    step, found = evidence.differing[0], dict[str, float]()
    of_torch = {
        evidence.parameter_names[index]: number_of(group, name, values[0])
        for group in step.groups
        for index in group["params"]
        if index < len(evidence.parameter_names)
    }
    for result in step.results:
        if result.is_state:
            continue
        path, value = result.pairing.jax.partition("[")[0], of_torch.get(result.pairing.torch.partition("[")[0])
        if value is None or found.setdefault(path, value) != value:
            return None
    groups = {number: [p for p, each in found.items() if each == value] for number, value in enumerate(values)}
    return groups if all(groups.values()) else None


def multi_transform(evidence: Evidence, torch_names: Mapping[str, str], paths: Sequence[str]) -> Call | str:
    """Write an optimizer that leaves what torch does not train, or else gives some parameters a step of their own.

    Args:
        evidence: The steps of both sides.
        torch_names: Torch's name of each parameter, by the JAX side's path.
        paths: The JAX side's parameters to which something else is done than in torch.

    """
    # A parameter may be in no group of torch's optimizer, or have no gradient at any step.
    trained = {
        name for name in evidence.parameter_names if any(step.given.get(name) is not None for step in evidence.steps)
    }
    left = [path for path, name in torch_names.items() if name.partition("[")[0] not in trained]
    both = {path.partition("[")[0] for path in left} & {path.partition("[")[0] for path in torch_names.keys() - left}
    if both:  # a label is of a whole array
        return f"update only those parts of {', '.join(sorted(both))} that torch trains"
    left += [path for path in evidence.untrained if path not in torch_names]
    own, every = Code(f"{function_of(evidence.kind)}(...)"), [*torch_names, *left]
    first, names = (Call("optax.set_to_zero"), left) if left else (own, paths)
    return Call("optax.multi_transform", ({True: first, False: own}, Code(mask_of(names, every))))


def conventions(evidence: Evidence) -> Iterator[Hypothesis]:
    """Try each other formula that is known for the optimizer."""
    kept = {r.pairing.torch.rpartition(".")[2] for r in evidence.steps[0].results if r.is_state}
    for each in CONVENTIONS:
        if evidence.kind in each.optimizers and (not each.slot or each.slot in kept):
            yield Hypothesis(each.name, _use(each), _told_convention(each), place="formula")
    if evidence.kind in ("Adam", "AdamW"):
        yield _epsilon_in_root()


def _use(convention: Convention) -> Any:
    def change(trial: Trial, _: Numbers) -> None:
        trial.convention = convention

    return change


def _told_convention(convention: Convention) -> Any:
    def tell(evidence: Evidence, _: Numbers) -> Told:
        group = evidence.differing[0].groups[0]
        fix = convention.fix.format(
            optax=OPTAX.get(evidence.kind, ""), **{key: value for key, value in group.items() if key.isidentifier()}
        )
        arguments = {"eps": group["eps"], **convention.arguments} if convention.arguments else {}
        return Told(
            convention.name, f"the JAX side {convention.jax_does}", arguments, fix=fix, source=convention.source
        )

    return tell


def _epsilon_in_root() -> Hypothesis:
    def change(trial: Trial, values: Numbers) -> None:
        # Gauss-Newton may try a negative number, whose root would be no number.
        trial.convention = root_added(max(values[0], 0.0))

    def tell(evidence: Evidence, values: Numbers) -> Told:
        says = f"the JAX side adds {values[0]:g} inside the square root (eps_root), and torch adds nothing there"
        return Told("epsilon inside the root", says, {"eps_root": 0.0}, source=OPTIMIZERS)

    return Hypothesis("eps_root", change, tell, (1e-8,), place="formula")
