"""The inputs of both optimizers at each step and their updates: everything that a cause must explain."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compare.alignment.pairings import Pairing, shown
from compare.numerics.distance import EPSILON64, ULPS, norm
from compare.step.live import live
from compare.step.observation import Observation
from compare.step.stage import Stage
from compare.torch_side.rates import rate_of
from compare.verdict.neighbours import LOST
from compare.verdict.ratio import FACTOR, Quantity

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor | None"]

KEPT = 32_000_000
"""Number of parameters, times steps, up to which every step is kept. Beyond it, only two steps that differ are."""

LEAST = float(np.finfo(float).tiny) ** 0.5
"""The smallest rounding, whose square, by which a fit divides, is a number yet."""


class OptimizerRun(Protocol):
    """A run of the torch side, as one of its optimizers sees it."""

    @property
    def optimizer(self) -> "torch.optim.Optimizer | None":
        """The optimizer; None where there is none."""

    @property
    def parameters(self) -> "Mapping[str, torch.nn.Parameter]":
        """By name."""

    def optimizer_state(self) -> Mapping[str, Any]:
        """What the optimizer remembers, named "slot/parameter"."""


@dataclass(frozen=True)
class Result:
    """One tensor that an optimizer gives at one step: the update of a parameter, or a part of its state."""

    pairing: Pairing
    torch: np.ndarray
    jax: np.ndarray
    """Computed from the same parameters, gradients and state; in torch's layout."""
    near: float
    """The Euclidean distance that rounding explains, with the safety factor."""

    @property
    def is_state(self) -> bool:
        """Whether it is state, and no update."""
        return self.pairing.operands is None

    @property
    def differs(self) -> bool:
        """Whether the two sides are farther apart than rounding explains."""
        return bool(norm(self.jax - self.torch) > self.near)


@dataclass(frozen=True)
class OptimizerStep:
    """One step of both optimizers from the same start."""

    number: int
    parameters: Tensors
    """Before the update."""
    gradients: Tensors
    """As the loss gives them."""
    given: Tensors
    """As torch's optimizer gets them, after the user's hooks, which may clip them."""
    state: Mapping[str, Any]
    """The optimizer's state dict before the update; its groups have the settings of this step."""
    results: Sequence[Result]

    @property
    def differs(self) -> bool:
        """Whether anything differs at this step."""
        return any(result.differs for result in self.results)

    @property
    def clips(self) -> bool:
        """Whether torch changes the gradients before its optimizer gets them."""
        pairs = ((self.gradients[name], given) for name, given in self.given.items())
        return any(a is not None and b is not None and not a.to_dense().equal(b.to_dense()) for a, b in pairs)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups, as they are when the optimizer makes its step."""
        groups: list[dict[str, Any]] = self.state["param_groups"]
        return groups

    @property
    def rate(self) -> float:
        """Torch's learning rate in the first parameter group."""
        return rate_of(self.groups[0])


@dataclass
class Evidence:
    """All steps of one comparison that were kept, in order, and the optimizer that made torch's."""

    kind: str
    """The class of torch's optimizer, "AdamW": see `kind_of`."""
    steps: list[OptimizerStep] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Torch's learning rate at every step that was taken."""
    schedulers: list[Any] = field(default_factory=list)
    """The schedulers of `torch.optim.lr_scheduler` that act on the optimizer."""
    counts: list[int] = field(default_factory=list)
    """How often the first of them had been stepped, at every step that was taken."""
    parameter_names: list[str] = field(default_factory=list)
    """Of the optimizer's parameters, in the order of its state dict."""
    untrained: list[str] = field(default_factory=list)
    """The JAX side's other parameters of the same models, which torch leaves as they are."""

    @property
    def differing(self) -> list[OptimizerStep]:
        """The steps at which anything differs."""
        return [step for step in self.steps if step.differs]


def kind_of(optimizer: Any) -> str:
    """Name the class of `torch.optim` whose step an optimizer makes; a class with a step of its own by its own name."""
    import torch

    own: Any = type(optimizer)
    cls: Any
    for cls in own.__mro__:
        theirs = getattr(torch.optim, cls.__name__, None) is cls
        # Torch wraps the step of a class to run the hooks, once it makes an optimizer of it.
        if theirs and inspect.unwrap(cls.step) is inspect.unwrap(own.step):
            return cls.__name__
    return f"{own.__module__}.{own.__name__}" if hasattr(torch.optim, own.__name__) else own.__name__


class Recorder:
    """Records what the steps of a torch run pass to its optimizer, and the JAX side's updates from the same input.

    Args:
        run: In float64, before its first step.
        pairs: What is compared, with its rounding.
        steps: How many there will be.

    """

    def __init__(self, run: OptimizerRun, pairs: Sequence[tuple[Pairing, Quantity]], steps: int) -> None:
        # Where two slots of torch are one of the JAX side's, its own starts each step from the last of them.
        self._run, self._pairs = run, list({_place(p): (p, q) for p, q in pairs if p.stage == Stage.UPDATE}.values())
        self._all = steps * sum(parameter.numel() for parameter in run.parameters.values()) <= KEPT
        self._before: dict[str, Any] = {}
        self._added = 0
        """How many steps were taken."""
        self.evidence = Evidence(kind_of(run.optimizer))
        if run.optimizer is not None:
            self.evidence.schedulers = schedulers_of(run.optimizer)
            names = {id(parameter): name for name, parameter in run.parameters.items()}
            params = [param for group in run.optimizer.param_groups for param in group["params"]]
            self.evidence.parameter_names = [names.get(id(param), "") for param in params]
            run.optimizer.register_step_pre_hook(self._keep)  # after the user's hooks, which came first

    def _keep(self, optimizer: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        # A step hook gets the arguments of the wrapped `step` method, of which the first is the optimizer itself.
        closure = any(callable(each) for each in (*args[1:], *(kwargs or {}).values()))
        evidence = self.evidence
        evidence.rates.append(rate_of(optimizer.param_groups[0]))
        evidence.counts += [int(each.last_epoch) for each in evidence.schedulers[:1]]
        if not self._all and len(evidence.differing) >= 2:
            return
        self._before = {
            "parameters": {name: param.detach().clone() for name, param in self._run.parameters.items()},
            # A closure has yet to compute them: they are those that the step shows.
            "given": {n: None if p.grad is None else p.grad.clone() for n, p in self._run.parameters.items()}
            if not closure
            else {},
            "state": copied(optimizer.state_dict()),
        }

    def add(self, torch: Observation, jax: Observation) -> None:
        """Keep a step that the torch run has taken, and the JAX side's from the same start."""
        before, self._before = self._before, {}
        number, self._added = self._added, self._added + 1
        # An optimizer that is stepped several times within a step, or not at each, is not taken apart.
        if not before or len(self.evidence.rates) != self._added:
            return
        before["given"] = before["given"] or {name: torch.gradients.get(name) for name in self._run.parameters}
        given = before["given"]
        step = OptimizerStep(
            number,
            # What the user has begun to train only now has a gradient, and is not compared as what is trained.
            gradients={name: None if given[name] is None else torch.gradients.get(name, given[name]) for name in given},
            results=list(self._results(number, torch, jax)),
            **before,
        )
        if self._all or step.differs:
            self.evidence.steps.append(step)

    def _results(self, number: int, torch: Observation, jax: Observation) -> Iterator[Result]:
        for pairing, quantity in self._pairs:
            if quantity.rounding[number] >= LOST:  # nothing but rounding, which explains anything
                continue
            arrays = shown(pairing.torch_array, torch), shown(pairing.jax_array, jax)
            if any(array is None for array in arrays):  # with an edit in force, torch may not compute it
                continue
            ours, theirs = (np.array(array, np.float64) for array in arrays)
            # Absolute, for this tensor at this step: what the verdict would accept as rounding.
            near = FACTOR * float(quantity.expected[number]) * norm(ours)
            if pairing.operands:
                # An update is read as the difference of two parameters, which cannot be more exact than their last
                # place.
                near = max(near, FACTOR * ULPS * EPSILON64 * norm(np.asarray(pairing.operands(torch), np.float64)))
            # Where torch's is zero, such as at a warm-up's start, the JAX side's size says what rounding is.
            near = max(near, FACTOR * ULPS * EPSILON64 * norm(theirs), LEAST)
            if np.isfinite(near) and np.isfinite(theirs).all():
                yield Result(pairing, ours, theirs, near)


def copied(state: Any) -> Any:
    """Copy an optimizer's state. Unlike `copy.deepcopy`, this works within a lifted run as well."""
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(value) for value in state]
    return state.detach().clone() if hasattr(state, "detach") else state


def _place(pairing: Pairing) -> str:
    """Name the part of the JAX side's update or state that a pairing is about."""
    return f"{pairing.operands is None} {pairing.jax} {pairing.link.jax_view if pairing.link else ''}"


def schedulers_of(optimizer: Any) -> list[Any]:
    """Find the schedulers that act on an optimizer. It does not know them: they know it."""
    from torch.optim import lr_scheduler

    kinds = _subclasses(lr_scheduler.LRScheduler) | _subclasses(lr_scheduler.ReduceLROnPlateau)
    # The scheduler refers to its optimizer, and the optimizer does not refer back. `vars`, since reading an attribute
    # of a stranger's object could run its code.
    found = [each for each in live(kinds) if vars(each).get("optimizer") is optimizer]
    inner = {id(part) for each in found for part in vars(each).get("_schedulers", ())}  # of a SequentialLR
    return [each for each in found if id(each) not in inner]


def _subclasses(cls: type) -> set[type]:
    """Return a class and all that are derived from it."""
    return {cls}.union(*map(_subclasses, cls.__subclasses__()))
