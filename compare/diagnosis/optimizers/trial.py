"""Makes one update of the torch side again, from the same start with something changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.conventions.optimizers import Convention, Step
from compare.diagnosis.optimizers.evidence import OptimizerRun, OptimizerStep, Result, copied
from compare.numerics.distance import norm
from compare.step.observation import Observation
from compare.torch_side.control import ControlledRun
from compare.torch_side.rates import has_rate, rate_of

if TYPE_CHECKING:
    import torch


@dataclass
class Trial:
    """What is changed in one update. Hypotheses fill it in; several may fill in the same one."""

    step: OptimizerStep
    settings: dict[str, Any] = field(default_factory=dict)
    """Of every parameter group: "eps", "betas[0]"."""
    gradients: "dict[str, torch.Tensor | None]" = field(default_factory=dict)
    """What the optimizer is given."""
    convention: Convention | None = None
    updates: "list[Callable[[str, torch.Tensor], torch.Tensor]]" = field(default_factory=list)
    """What is done to each update, by the parameter's name."""
    rate: float | None = None
    """The learning rate of the first parameter group, the others in proportion; None for torch's own."""
    silent: bool = False
    """Whether no update is made at this step."""
    remembered: Mapping[Any, Any] | None = None
    """What the optimizer remembers before the update; None for what torch's does."""
    one_of_two: bool = False
    """Whether what the JAX side has for two parameters of torch makes the step of one of them."""


class Bench:
    """Makes updates: a model and an optimizer of torch in float64, set to the start of any step as often as wanted.

    User's hooks do not run: what they do to the gradients was kept, and a scheduler must not be stepped.
    """

    def __init__(self, run: OptimizerRun) -> None:
        assert run.optimizer is not None
        self._run, self._optimizer = run, run.optimizer
        step = type(run.optimizer).step
        self._step: Callable[[Any], Any] = getattr(step, "__wrapped__", step)  # torch wraps it, to run the hooks
        self.made = 0
        """How many updates were made."""

    def __call__(self, trial: Trial) -> list[np.ndarray] | None:
        """Make an update, and read from it what is compared; None where torch refuses."""
        self.made += 1
        self._set(trial)
        # A convention computes its update from the state before the step, and torch changes that state in place.
        before = {p: copied(self._optimizer.state.get(p, {})) for p in self._run.parameters.values()}
        try:
            if not trial.silent:
                with ControlledRun(lift=True):
                    self._step(self._optimizer)
            seen = self._seen(trial, before)
            return [self._read(result, trial, seen) for result in trial.step.results]
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, ArithmeticError, AttributeError):
            return None  # torch refuses the setting, or it removes a part of the state that is compared

    def remembered(self) -> Mapping[Any, Any]:
        """Give what the optimizer remembers after the last update, as its state dict has it."""
        state: Mapping[Any, Any] = copied(self._optimizer.state_dict())["state"]
        return state

    def _set(self, trial: Trial) -> None:
        import torch

        with torch.no_grad():
            for name, param in self._run.parameters.items():
                start = trial.step.parameters[name]
                assert start is not None
                param.copy_(start)
                gradient = trial.gradients.get(name, trial.step.given[name])
                param.grad = None if gradient is None else gradient.clone()
        # Each trial starts from a copy: an optimizer updates its moments in place, and the next trial needs
        # them as they were.
        own = {} if trial.remembered is None else {"state": trial.remembered}
        self._optimizer.load_state_dict(copied({**trial.step.state, **own}))
        first = trial.step.rate
        for group in self._optimizer.param_groups:
            if trial.rate is not None and has_rate(group):
                group["lr"] = trial.rate * (rate_of(group) / first if first else 1.0)
            for name, value in trial.settings.items():
                set_setting(group, name, value)
            # torch.optim.Adagrad fills its sums when it is constructed, and does not read this setting in `step`.
            # Another value only has an effect if the sums are filled again before the first step.
            if trial.step.number == 0 and "initial_accumulator_value" in trial.settings:
                for param in group["params"]:
                    self._optimizer.state[param]["sum"].fill_(trial.settings["initial_accumulator_value"])

    def _seen(self, trial: Trial, before: Mapping[Any, Any]) -> Observation:
        """Show the update that was made, with what conventions and other changes make of it."""
        state = self._optimizer.state
        groups = {id(param): dict(group) for group in self._optimizer.param_groups for param in group["params"]}
        updates: dict[str, Any] = {}
        for name, param in self._run.parameters.items():
            start = trial.step.parameters[name]
            assert start is not None
            update = param.detach() - start
            # A parameter in no group is not trained by this optimizer.
            if trial.convention is not None and param.grad is not None and id(param) in groups and not trial.silent:
                step = Step(start, param.grad, groups[id(param)], before[param], state.get(param, {}))
                update = trial.convention.update(step).detach()
                state[param].update(trial.convention.state(step))
            for change in trial.updates:
                update = change(name, update)
            updates[name] = update
        return Observation(updates=updates, parameters=self._run.parameters, optimizer=self._run.optimizer_state())

    @staticmethod
    def _read(result: Result, trial: Trial, seen: Observation) -> np.ndarray:
        pairing = result.pairing
        if trial.silent and trial.step.number == 0 and result.is_state:
            return np.zeros_like(result.jax)  # torch has no state before its first update
        read = pairing.last if pairing.last and trial.one_of_two and not result.is_state else pairing.torch_array
        return np.array(read(seen), np.float64)


def set_setting(group: dict[str, Any], name: str, value: Any) -> None:
    """Give a parameter group another setting: "lr", or one number of several, "betas[0]"."""
    key, _, position = name.partition("[")
    if position:
        parts = list(group[key])
        parts[int(position[:-1])] = value
        group[key] = tuple(parts)
    elif key in group:
        group[key] = value


def distances(step: OptimizerStep, given: list[np.ndarray] | None) -> np.ndarray:
    """Return how far each result is from the JAX side's, of shape `(results,)`: 1 is near enough."""
    if given is None:
        return np.full(len(step.results), np.inf)
    return np.array([norm(a - r.jax) / r.near for a, r in zip(given, step.results, strict=True)])
