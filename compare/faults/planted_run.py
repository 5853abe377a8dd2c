"""A fault, and a run of the torch side with a fault planted in it.

All faults are planted on the torch side, whose functions, modules, parameters and optimizer can be seen in every pair,
where the JAX side may be one opaque function. The comparison is symmetric: the JAX side without a fault is as far from
the torch side with it as the other way round.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np

from compare.comparison.model_pair import ModelPair
from compare.comparison.program_pair import ProgramPair
from compare.diagnosis.counterfactuals import FUNCTIONS
from compare.diagnosis.rewriting import Call, Rewrite, Window, rewriting
from compare.step.batch import Batch, mapped
from compare.step.observation import Observation, Port
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun

if TYPE_CHECKING:
    import torch

SIZE = 2.0**-20
"""Of the smallest faults, about a millionth, relative to what has them."""

SETTING = 1e-3
"""How far a wrong setting is on the way from the right one to 1: 0.9 becomes 0.9001."""


class Site(NamedTuple):
    """One call of a function of torch within a step."""

    function: str
    module: str
    """That makes it."""
    call: int
    """Which call of this function in this module, from 0: in `train()`, or at another step, there may be others."""


class Planted:
    """The parts of a torch run that faults can be planted in."""

    overwritten: frozenset[Port]
    parameters: "dict[str, torch.nn.Parameter]"
    model: "torch.nn.Module"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rewrites: dict[Site, Rewrite] = {}
        """What is computed in place of a function."""
        self.exchanged: dict[int, Any] = {}
        """What comes in place of a batch, by its identity."""

    def with_faults(self, take: Callable[[Any, Any], Observation], batch: Any, record: Record | None) -> Observation:
        """Take a step, or its first half, with the faults."""
        batch = self.exchanged.get(id(batch), batch)
        if not self.rewrites:
            return take(batch, record)
        calls: Counter[tuple[str, str]] = Counter()

        def rewritten(call: Call) -> Any:
            site = Site(call.name, call.module, calls[call.name, call.module])
            calls[call.name, call.module] += 1
            return self.rewrites.get(site, Call.run)(call)

        with rewriting(Window(), self.overwritten, lambda _: rewritten, FUNCTIONS) as record:
            return take(batch, record)

    def trained_by(self, optimizer: "torch.optim.Optimizer") -> "dict[str, torch.Tensor]":
        """Return the parameters that an optimizer has, by name."""
        raise NotImplementedError


class PlantedRun(Planted, TorchRun):
    """A run of the torch side in which faults can be planted."""

    clips = True
    """Whether hooks of the optimizer clip gradients."""
    clipped = ""
    """Which of torch's functions for that its update has called."""

    def update(self) -> Observation:
        """Take the second half of a step, with or without clipping."""
        import torch

        with contextlib.ExitStack() as stack:
            for name in ("clip_grad_norm_", "clip_grad_value_"):
                original = getattr(torch.nn.utils, name)

                def clip(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                    self.clipped = name
                    return original(*args, **kwargs) if self.clips else torch.zeros(())

                stack.enter_context(mock.patch.object(torch.nn.utils, name, clip))
            return super().update()

    def backward(self, batch: Batch, record: Record | None = None) -> Observation:
        """Take the first half of a step, with the faults."""
        return self.with_faults(super().backward, batch, record)

    @property
    def optimizers(self) -> "dict[str, torch.optim.Optimizer]":
        """The optimizer, if there is one."""
        return {} if self.optimizer is None else {"": self.optimizer}

    def trained_by(self, optimizer: "torch.optim.Optimizer") -> "dict[str, torch.Tensor]":
        """Return the parameters that an optimizer has, by name."""
        own = {id(each) for group in optimizer.param_groups for each in group["params"]}
        return {name: parameter for name, parameter in self.parameters.items() if id(parameter) in own}


class PlantedProgramRun(Planted, TorchProgramRun):
    """A run of a torch program in which faults can be planted."""

    def step(self, batch: Any, record: Record | None = None) -> Observation:
        """Take a step, with the faults."""
        return self.with_faults(super().step, batch, record)

    def trained_by(self, optimizer: "torch.optim.Optimizer") -> "dict[str, torch.Tensor]":
        """Return the parameters that an optimizer has, by name."""
        return {self.name_of(each): each for group in optimizer.param_groups for each in group["params"]}


AnyRun = PlantedRun | PlantedProgramRun


def started(pair: ModelPair | ProgramPair, dtype: str) -> AnyRun:
    """Start a run of the torch side of a pair."""
    if isinstance(pair, ProgramPair):
        run = PlantedProgramRun(pair.torch, dtype, pair.device, pair.overwritten)
        run.kinds = pair.torch_modules
        return run
    return PlantedRun(pair.torch, dtype, pair.device, pair.overwritten)


class Fault(NamedTuple):
    """One thing to be wrong, and where."""

    kind: str
    what: str
    """As in "epsilon: 1e-05 → 0.0001"."""
    where: str
    """As in "layer_norm in encoder.0.norm1"."""
    plant: Callable[[Any, float], None]
    """Makes it wrong in a run that has not begun, as many times its size."""
    sized: bool = True
    """Whether it can be larger and smaller."""
    unread: str = ""
    """The reason, if it changes nothing: "no input is at the tie"."""
    needed: int = 1
    """The steps that it takes to show, as far as is known without a run."""
    computes: tuple[Site, Rewrite] | None = None
    """Where something else is computed, and what, if that is the fault and shows in what the function gives."""


def same(rewrite: Rewrite, call: Call) -> bool:
    """Return whether a call gives the same with something in its place, whatever the numbers that go into it."""
    import torch

    def noisy() -> Call:
        rng = np.random.default_rng(0)

        def noise(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                return value
            # Ten times a normal distribution reaches the flat parts of saturating functions, and negative numbers
            # everywhere.
            return torch.from_numpy(10 * rng.standard_normal(tuple(value.shape))).to(value)

        return replace(call, args=mapped(call.args, noise), kwargs=mapped(call.kwargs, noise))

    with torch.no_grad():
        right, wrong = noisy().run(), rewrite(noisy())
    tensors = isinstance(right, torch.Tensor) and isinstance(wrong, torch.Tensor)
    return tensors and right.shape == wrong.shape and torch.allclose(right, wrong, rtol=1e-12, atol=1e-12)


def other(name: str, value: float, times: float) -> float:
    """Return a wrong number for a setting: ten times an epsilon, and of other settings one a little nearer to 1.

    Towards 1, so that a decay or a rate stays within the range that torch accepts. An epsilon matters only by its order
    of magnitude.
    """
    if "eps" in name:
        return value * (1 + 9 * times) or times * 1e-8
    return value + times * SETTING * ((1 - value) if 0 < value < 1 else value or 1.0)


def shown(value: float | bool) -> str:
    """Write a setting short."""
    return str(value) if isinstance(value, bool) else f"{value:.6g}"
