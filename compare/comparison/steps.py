"""The steps that all runs of one comparison take: the same batches in turn, and the same random numbers."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from compare.alignment.pairings import NotCompared
from compare.device import give_back_memory
from compare.step.draws import Draw
from compare.step.observation import Observation, Stream, halves
from compare.step.user_code import at_step
from compare.torch_side.control import ControlledRun
from compare.torch_side.run import TorchRun


class TorchSteps(Protocol):
    """A run of the torch side: of a model or of a program."""

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Give what is in force while a step runs."""

    def controlled(self, replay: Sequence[Draw] | None) -> ControlledRun:
        """Return what controls a step."""

    def step(self, batch: Any) -> Observation:
        """Take one step."""


class JaxSteps(Protocol):
    """A run of the JAX side: of a model or of a program."""

    def step(self, batch: Any, draws: Sequence[Draw]) -> Observation:
        """Take one step with given random numbers."""


class Stepper:
    """Takes runs through steps. What the first of torch's draws at random, the others get as well."""

    def __init__(self, batches: list[Any], size: int) -> None:
        self.batches, self.size = batches, size
        self.draws: list[list[Draw]] = []
        """The random numbers of each step."""
        self.pinned: dict[str, None] = {}
        """What could not be run in float64 on the torch side, as text."""
        self.constants: dict[str, None] = {}
        """The float32 tensors, besides buffers, that the torch side uses, as text."""
        self.exact: dict[str, None] = {}
        """What torch approximates and was computed exactly instead, as text."""
        self.unrecorded: dict[str, None] = {}
        """What torch computes from its random numbers and JAX cannot repeat, as text."""
        self.reached: dict[str, bool] = {}
        """Whether any step of torch's reached what a program does with some data only, such as clipping."""

    def torch(self, start: Callable[[], TorchRun]) -> Stream:
        """Take torch's steps in halves; the run exists from the first half on."""
        give_back_memory(self.size)
        run = start()
        for number, batch in enumerate(itertools.cycle(self.batches)):
            give_back_memory(self.size)
            controlled = self._controlled(run, number)
            controlled.unfinished = True
            with self._at(number), run.around(), controlled:
                shown = [run.backward(batch)]
            # popped, so that this frame keeps no reference: gradients and activations are freed as soon as they are
            # compared.
            yield shown.pop()
            controlled.unfinished = False
            give_back_memory(self.size)
            with self._at(number), controlled:
                shown = [run.update()]
            self.pinned |= dict.fromkeys(controlled.pinned)
            self.constants |= dict.fromkeys(controlled.constants)
            self.exact |= dict.fromkeys(controlled.exact)
            self.unrecorded |= dict.fromkeys(controlled.unrecorded)
            self._note_reached(controlled)
            yield shown.pop()

    def jax(self, start: Callable[[], JaxSteps]) -> Stream:
        """Take the JAX side's steps in halves; the run exists from the first half on."""
        give_back_memory(self.size)
        run = start()
        for number, batch in enumerate(itertools.cycle(self.batches)):
            give_back_memory(self.size)
            with self._at(number):
                shown = [run.step(batch, self.draws[number])]
            yield from halves(shown.pop())

    def whole(self, run: TorchSteps) -> Iterator[Observation]:
        """Take torch's steps one by one."""
        for number, batch in enumerate(itertools.cycle(self.batches)):
            with self._at(number), run.around(), self._controlled(run, number) as controlled:
                shown = [run.step(batch)]
            self._note_reached(controlled)
            yield shown.pop()

    def _note_reached(self, controlled: ControlledRun) -> None:
        for what, reached in controlled.reached.items():
            self.reached[what] = self.reached.get(what, False) or reached

    def _at(self, number: int) -> contextlib.AbstractContextManager[None]:
        return at_step(number, len(self.batches))

    def _controlled(self, run: TorchSteps, number: int) -> ControlledRun:
        known = number < len(self.draws)
        replay = self.draws[number] if known else None
        controlled = run.controlled(replay)
        # The first run that reaches a step records its draws, in the list that is filled while the step runs;
        # all later runs replay them.
        if not known:
            self.draws.append(controlled.draws)
        return controlled


def approximated(names: Iterable[str]) -> list[NotCompared]:
    """Say what torch approximates: the exact number has taken its place."""
    why = "PyTorch approximates it to about 4 digits; the exact one takes its place"
    return [NotCompared("torch", name, why) for name in names]
