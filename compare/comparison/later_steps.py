"""Finds what only later steps of two programs compute, such as a model that is updated every second step.

Tensors are paired by what a step shows. A part that runs later is recorded while both programs are followed. Then they
are followed again, and its tensors are paired too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.step.observation import Observation, Stream, to_numpy
from compare.step.stage import Stage

_FIELDS = ("gradients", "optimizer", "forward", "order", "shown")


class LaterSteps:
    """The tensors that were first seen after the first step, of each side and half of a step."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, set[Any]]] = {}
        self._found: dict[tuple[str, int], dict[str, dict[Any, Any]]] = {}
        self.complete = False
        """Whether steps have been followed, so that what was found can be paired."""

    @property
    def any(self) -> bool:
        """Return whether a later step has shown more than the first."""
        return any(found for fields in self._found.values() for found in fields.values())

    def watched(self, side: str, stream: Stream) -> Stream:
        """Pass the steps of a side on, and keep what is new in them."""
        for number, seen in enumerate(stream):
            if not self.complete:
                self._see(side, number % 2, seen, first=number < 2)
            held = [seen]
            del seen  # no reference is kept here, so that the step is freed once it is weighed
            yield held.pop()

    def _see(self, side: str, half: int, seen: Observation, *, first: bool) -> None:
        known = self._known.setdefault((side, half), {name: set() for name in _FIELDS})
        found = self._found.setdefault((side, half), {name: {} for name in _FIELDS})
        for name in _FIELDS:
            values: Mapping[Any, Any] = getattr(seen, name)
            new = {key: value for key, value in values.items() if key not in known[name]}
            known[name].update(new)
            if not first:
                found[name].update({k: v if name == "order" else np.array(to_numpy(v)) for k, v in new.items()})

    def added(self, side: str, half: int, seen: Observation) -> Observation:
        """Add to the first step of a side what later ones have."""
        found = self._found.get((side, half), {}) if self.complete else {}
        # The first step decides what is paired. Values of later steps stand in for what it lacks, only to
        # show shapes.
        made: dict[str, Any] = {name: {**values, **getattr(seen, name)} for name, values in found.items() if values}
        return seen._replace(**made)

    def from_zero(self, pairing: Pairing) -> Pairing:
        """Let a slot that torch makes at the optimizer's first step be zero before, as optax has it from the start."""
        if pairing.stage != Stage.UPDATE or pairing.operands is not None or not self.complete:
            return pairing
        late = self._found.get(("torch", 1), {}).get("optimizer", {})
        mine = Observation(optimizer={name: np.zeros_like(array) for name, array in late.items()})

        def read(seen: Observation) -> np.ndarray:
            try:
                return pairing.torch_array(seen)
            except KeyError:
                return pairing.torch_array(mine)

        return pairing._replace(torch_array=read)
