"""Why two optimizers differ: one update of the torch side, from the recorded gradients, with something changed.

Every number in a `torch.optim.Optimizer`'s parameter groups is a setting that can be fitted, whatever the optimizer:
what the JAX side steps by is then known, whether or not it calls it the same. Conventions that no setting of torch
expresses are formulas, in `CONVENTIONS`.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.batch import Batch
from compare.draws import Draw
from compare.engine import Target
from compare.fitting import ITERATIONS, fitted
from compare.lift_torch import ControlledRun
from compare.observation import Observation
from compare.report import Cause
from compare.torch_side import TorchRun
from compare.verdict import distance

if TYPE_CHECKING:
    import torch

DOCS = "https://optax.readthedocs.io/en/latest/api/optimizers.html"

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

Groups = list[dict[str, Any]]


class Convention(NamedTuple):
    """Another way to make an update out of the same state, that no setting of torch's expresses."""

    name: str
    optimizers: tuple[str, ...]
    update: Callable[["Step"], "torch.Tensor"]
    """What is added to one parameter."""
    jax_does: str
    fix: str
    source: str
    state: Callable[["Step"], dict[str, "torch.Tensor"]] = lambda step: {}
    """What is remembered otherwise than in torch."""


class Step(NamedTuple):
    """One parameter's update, in torch: before and after."""

    parameter: "torch.Tensor"
    """Before the update."""
    gradient: "torch.Tensor"
    settings: Mapping[str, Any]
    before: Mapping[str, Any]
    """The optimizer's state of it; empty at the first step."""
    after: Mapping[str, Any]

    @property
    def steps(self) -> float:
        """How many steps there have been, this one included."""
        return float(self.after["step"])

    @property
    def regularized(self) -> "torch.Tensor":
        """The gradient, with the weight decay that is part of it."""
        if self.settings.get("decoupled_weight_decay"):
            return self.gradient
        return self.gradient + self.settings.get("weight_decay", 0) * self.parameter

    @property
    def decay(self) -> "torch.Tensor":
        """What decoupled weight decay adds to the parameter."""
        decoupled = self.settings.get("decoupled_weight_decay", False)
        return -self.settings["lr"] * self.settings.get("weight_decay", 0) * self.parameter * decoupled

    @property
    def corrected(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Adam's first and second moment, without their bias towards zero."""
        b1, b2 = self.settings["betas"]
        mean = self.after["exp_avg"] / (1 - b1**self.steps)
        return mean, self.after["exp_avg_sq"] / (1 - b2**self.steps)


def _eps_root(step: Step) -> "torch.Tensor":
    mean, square = step.corrected
    return step.decay - step.settings["lr"] * mean / (square + step.settings["eps"]).sqrt()


def _uncorrected(step: Step) -> "torch.Tensor":
    root = step.after["exp_avg_sq"].sqrt() + step.settings["eps"]
    return step.decay - step.settings["lr"] * step.after["exp_avg"] / root


def _largest(step: Step) -> "dict[str, torch.Tensor]":
    square = step.corrected[1]
    return {"max_exp_avg_sq": square.maximum(step.before["max_exp_avg_sq"]) if step.before else square}


def _corrected_maximum(step: Step) -> "torch.Tensor":
    root = _largest(step)["max_exp_avg_sq"].sqrt() + step.settings["eps"]
    return step.decay - step.settings["lr"] * step.corrected[0] / root


def _nesterov_adam(step: Step) -> "torch.Tensor":
    b1, b2 = step.settings["betas"]
    ahead = b1 * step.after["exp_avg"] / (1 - b1 ** (step.steps + 1))
    mean = ahead + (1 - b1) * step.regularized / (1 - b1**step.steps)
    square = step.after["exp_avg_sq"] / (1 - b2**step.steps)
    return step.decay - step.settings["lr"] * mean / (square.sqrt() + step.settings["eps"])


def _inside(slot: str) -> Callable[[Step], "torch.Tensor"]:
    def update(step: Step) -> "torch.Tensor":
        square = step.after[slot]
        if step.settings.get("centered"):
            square = square - step.after["grad_avg"] ** 2
        move = step.regularized / (square + step.settings["eps"]).sqrt()
        if step.settings.get("momentum"):
            move = move + step.settings["momentum"] * step.before.get("momentum_buffer", 0)
        return -step.settings["lr"] * move

    return update


def _undecayed(step: Step) -> "dict[str, torch.Tensor]":
    settings, buffer = step.settings, step.before.get("momentum_buffer")
    if buffer is None:
        return {"momentum_buffer": step.gradient}
    return {"momentum_buffer": settings["momentum"] * buffer + (1 - settings["dampening"]) * step.gradient}


def _decay_after(step: Step) -> "torch.Tensor":
    """SGD with the weight decay outside of the momentum."""
    settings, trace = step.settings, _undecayed(step)["momentum_buffer"]
    move = step.gradient + settings["momentum"] * trace if settings["nesterov"] else trace
    return -settings["lr"] * (move + settings["weight_decay"] * step.parameter)


CONVENTIONS = (
    Convention(
        "epsilon inside the root",
        ("Adam", "AdamW"),
        _eps_root,
        "adds epsilon inside the square root, as eps_root",
        "{optax}(..., eps={eps:g}, eps_root=0.0)",
        DOCS,
    ),
    Convention(
        "epsilon inside the root",
        ("RMSprop",),
        _inside("square_avg"),
        "adds epsilon inside the square root, optax's default",
        "{optax}(..., eps={eps:g}, eps_in_sqrt=False)",
        DOCS,
    ),
    Convention(
        "epsilon inside the root",
        ("Adagrad",),
        _inside("sum"),
        "adds epsilon inside the square root, as optax.adagrad does",
        "write the update as -lr * g / (jnp.sqrt(sum_of_squares) + {eps:g}): optax.adagrad has no setting for it",
        DOCS,
    ),
    Convention(
        "bias correction",
        ("Adam", "AdamW"),
        _uncorrected,
        "does not correct the moments' bias towards zero",
        "divide the moments by 1 - b1**t and 1 - b2**t, as {optax} does",
        DOCS,
    ),
    Convention(
        "amsgrad maximum",
        ("Adam", "AdamW"),
        _corrected_maximum,
        "takes amsgrad's maximum after the bias correction, torch before it",
        "write the maximum over the uncorrected second moments: optax.amsgrad has no setting for it",
        "https://github.com/google-deepmind/optax/issues/1423",
        _largest,
    ),
    Convention(
        "momentum decay",
        ("NAdam",),
        _nesterov_adam,
        "has no momentum decay, as optax.nadam",
        "write NAdam's momentum schedule out: optax.nadam has none. docs/optimizers.md has it",
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html",
    ),
    Convention(
        "weight decay after momentum",
        ("SGD",),
        _decay_after,
        "adds the weight decay after the momentum",
        "optax.chain(optax.add_decayed_weights({weight_decay:g}), optax.sgd(...)), in this order",
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html",
        _undecayed,
    ),
)

GRADIENT = "gradient"
"""Among settings: what the gradient is multiplied by before the optimizer sees it."""

FLAGS = ("nesterov", "centered", "amsgrad", "maximize", "decoupled_weight_decay")


class Updates:
    """The torch side's update at one step in float64, to be made as often as wanted from the same gradients.

    Args:
        run: Before the step.
        batch: The step's.
        draws: Its random numbers.
        targets: What the JAX side's optimizer gives from the same gradients, parameters and state.
        first: Whether it is the first step, for which the state is each side's own.

    """

    def __init__(
        self, run: TorchRun, batch: Batch, draws: Sequence[Draw], targets: Sequence[Target], *, first: bool
    ) -> None:
        assert run.optimizer is not None
        self.first = first
        self.run, self.targets = run, targets
        optimizer, run.optimizer = run.optimizer, None
        with ControlledRun(lift=True, replay=draws):
            run.step(batch)
        self.optimizer = optimizer
        self.kind = type(optimizer).__name__
        self.gradients = {name: param.grad for name, param in run.parameters.items()}
        self.stepped_on = 0.0
        """The norm of the gradient that torch's optimizer stepped on last, clipped if the user's hooks clip it."""
        self._before = {name: param.detach().clone() for name, param in run.parameters.items()}
        self._state = copy.deepcopy(optimizer.state_dict())
        sizes = [float(np.linalg.norm(target.array)) or 1.0 for target in targets]
        self._scales = [1 / (size * target.limit) for size, target in zip(sizes, targets, strict=True)]
        self.of_state = np.concatenate([np.full(t.array.size, t.pairing.operands is None) for t in targets])
        """Which entries of what is weighed are the optimizer's state, and not updates."""
        self.target = np.concatenate([np.ravel(t.array) * s for t, s in zip(targets, self._scales, strict=True)])

    @property
    def size(self) -> float:
        """The norm of the gradient, as it is computed."""
        import torch

        return float(torch.nn.utils.get_total_norm([g for g in self.gradients.values() if g is not None]))

    @property
    def group(self) -> dict[str, Any]:
        """The first parameter group, as it is."""
        return self._state["param_groups"][0]

    @property
    def settings(self) -> dict[str, float]:
        """The numbers of the first parameter group: "lr", "betas[0]"."""
        found: dict[str, float] = {}
        for name, value in self.group.items():
            parts = (
                {f"{name}[{i}]": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
            )
            for key, part in parts.items():
                number = part.item() if hasattr(part, "item") else part
                if isinstance(number, int | float) and not isinstance(number, bool):
                    found[key] = float(number)
        if not self.first:
            found.pop("initial_accumulator_value", None)
        return found

    def values(self, name: str) -> list[float]:
        """List what a setting is in the parameter groups, without repetition."""
        groups = self._state["param_groups"]
        return list(dict.fromkeys(float(group[name]) for group in groups if isinstance(group.get(name), int | float)))

    def __call__(
        self,
        settings: Mapping[str, Any],
        convention: Convention | None = None,
        change: Callable[["Updates"], None] = lambda updates: None,
    ) -> np.ndarray | None:
        """Make the update with other settings, and give all that is weighed of it, in units of what is near enough.

        None where torch refuses.
        """
        import torch

        with torch.no_grad():
            for name, param in self.run.parameters.items():
                param.copy_(self._before[name])
                gradient = self.gradients[name]
                param.grad = None if gradient is None else gradient.clone()
        self.optimizer.load_state_dict(copy.deepcopy(self._state))
        before = {param: copy.deepcopy(self.optimizer.state.get(param, {})) for param in self.run.parameters.values()}
        for group in self.optimizer.param_groups:
            for name, value in settings.items():
                key, _, position = name.partition("[")
                if position:
                    parts = list(group[key])
                    parts[int(position[:-1])] = value
                    group[key] = tuple(parts)
                elif key in group:
                    group[key] = value
            if self.first and "initial_accumulator_value" in settings:
                for param in group["params"]:
                    self.optimizer.state[param]["sum"].fill_(settings["initial_accumulator_value"])
        change(self)
        handle = self.optimizer.register_step_pre_hook(self._scaled(settings.get(GRADIENT, 1.0)))
        named = {id(param): dict(group) for group in self.optimizer.param_groups for param in group["params"]}
        try:
            with ControlledRun(lift=True):
                self.optimizer.step()
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, ArithmeticError):
            return None
        finally:
            handle.remove()
        updates = {}
        for name, param in self.run.parameters.items():
            updates[name] = param.detach() - self._before[name]
            if convention is not None and param.grad is not None:
                step = Step(
                    self._before[name], param.grad, named[id(param)], before[param], self.optimizer.state.get(param, {})
                )
                try:
                    updates[name] = convention.update(step).detach()
                    self.optimizer.state[param].update(convention.state(step))
                except (KeyError, RuntimeError, TypeError):
                    return None
        self.run.optimizer = self.optimizer
        seen = Observation(updates=updates, parameters=self.run.parameters, optimizer=self.run.optimizer_state())
        self.run.optimizer = None
        try:
            arrays = [np.array(target.pairing.torch_array(seen), np.float64) for target in self.targets]
        except KeyError:  # state that this setting does away with
            return None
        return np.concatenate([np.ravel(array) * scale for array, scale in zip(arrays, self._scales, strict=True)])

    def _scaled(self, factor: float) -> Callable[..., None]:
        """Make a hook that scales the gradient; after those of the user, which may clip it."""
        import torch

        def scale(optimizer: Any, *arguments: Any) -> None:
            gradients = [param.grad for param in self.run.parameters.values() if param.grad is not None]
            self.stepped_on = float(torch.nn.utils.get_total_norm(gradients))
            for gradient in gradients:
                gradient.mul_(factor)

        return scale

    def apart(self, given: np.ndarray | None) -> float:
        """Give how far an update is from the JAX side's; 1 is near enough, for every quantity."""
        if given is None:
            return np.inf
        return max(d / target.limit for d, target in zip(self._distances(given), self.targets, strict=True))

    def difference(self, given: np.ndarray | None) -> float:
        """Give the largest distance of an update from the JAX side's, leaving out what is all rounding."""
        if given is None:
            return np.inf
        pairs = zip(self._distances(given), self.targets, strict=True)
        return max((d for d, target in pairs if target.limit < 1), default=0.0)

    def _distances(self, given: np.ndarray) -> list[float]:
        ends = np.cumsum([target.array.size for target in self.targets])
        parts = zip(np.split(given, ends[:-1]), np.split(self.target, ends[:-1]), strict=True)
        return [distance(mine, theirs) for mine, theirs in parts]


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
    if cause := _other_parameters(updates) or clipped:
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
            groups: Groups = []
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
            "https://optax.readthedocs.io/en/latest/api/transformations.html",
        )
    untouched = [target.pairing.jax for target in wrong if not _torch_update(updates, target).any()]
    if untouched and len(untouched) == len(wrong):
        return Cause(
            "frozen parameters",
            f"frozen parameters: torch does not update {', '.join(untouched[:3])}, which get no gradient, and the JAX "
            "side does: weight decay shrinks them",
            "give them to optax.set_to_zero() by optax.multi_transform",
            "https://optax.readthedocs.io/en/latest/api/transformations.html",
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
    if apart > 1:
        return None
    name, says, fix, source = _gradient(updates, factor)
    return Cause(name, f"{name}: {says}. With that on the torch side the difference falls to rounding", fix, source)


def _gradient(updates: Updates, factor: float) -> tuple[str, str, str, str]:
    """Tell what it is that scales the gradient: the cause's name, what each side does, the fix and the source."""
    updates({})
    size = updates.size
    clipped, transformations = updates.stepped_on, "https://optax.readthedocs.io/en/latest/api/transformations.html"
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
            transformations,
        )
    says = f"the JAX side's optimizer sees torch's gradient times {factor:g}"
    if factor < 1 and updates.kind != "SGD":
        says += f", of norm {factor * size:g} where torch's is {size:g}"
        return "clipping", says, "clip on both sides, or on neither", transformations
    return "gradient scale", says, "scale the gradient as torch does, before the optimizer sees it", transformations
