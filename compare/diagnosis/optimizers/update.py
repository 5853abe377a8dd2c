"""One update of the torch side, from the recorded gradients, as often as wanted, with something changed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compare.diagnosis.conventions.optimizers import Convention, Step
from compare.numerics.distance import distance
from compare.step.batch import Batch
from compare.step.draws import Draw
from compare.step.observation import Observation
from compare.torch_side.control import ControlledRun
from compare.torch_side.run import TorchRun
from compare.verdict.first_difference import Target

GRADIENT = "gradient"
"""Among settings: what the gradient is multiplied by before the optimizer sees it."""

BOUND = "bound"
"""Among settings: the size that each element of the gradient is clipped to, and nothing else done to it."""


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
        self.largest = 0.0
        """The size of its largest element."""
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

        return float(torch.nn.utils.get_total_norm([_values(g) for g in self.gradients.values() if g is not None]))

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
        handle = self.optimizer.register_step_pre_hook(self._scaled(settings.get(GRADIENT, 1.0), settings.get(BOUND)))
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
            # What is in no group, torch's optimizer does not train.
            if convention is not None and param.grad is not None and id(param) in named:
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

    def _scaled(self, factor: float, bound: float | None) -> Callable[..., None]:
        """Make a hook that scales the gradient, after those of the user, which may clip it; or clips it instead."""
        import torch

        def scale(optimizer: Any, *arguments: Any) -> None:
            pairs = [
                (p.grad, g)
                for p, g in zip(self.run.parameters.values(), self.gradients.values(), strict=True)
                if p.grad is not None and g is not None
            ]
            gradients = [_values(gradient) for gradient, _ in pairs]
            self.stepped_on = float(torch.nn.utils.get_total_norm(gradients))
            self.largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
            for gradient, computed in pairs:
                gradient.mul_(factor) if bound is None else gradient.copy_(torch.clamp(computed, -bound, bound))

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


def _values(gradient: Any) -> Any:
    """Give the elements that a gradient holds: those of a sparse one are the rows that were looked up."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
