"""Finds what only later steps compute: a branch of a model, or a model that is updated every second step.

Tensors are paired by what a step shows. A part that runs later is recorded while both sides are followed. Then they
are followed again, and its tensors are paired too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compare.alignment.pairings import Pairing
from compare.step.observation import Observation, Stream, to_numpy
from compare.step.stage import Stage

_FIELDS = ("gradients", "optimizer", "forward", "order", "shown")


class LaterSteps:
    """The tensors that were first seen after the first step, of each side and half of a step."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, list[Any]]] = {}
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
        known = self._known.setdefault((side, half), {name: [] for name in _FIELDS})
        found = self._found.setdefault((side, half), {name: {} for name in _FIELDS})
        for name in _FIELDS:
            values: Mapping[Any, Any] = getattr(seen, name)
            new = values.keys() - known[name]
            if new:
                known[name] = _merged(known[name], list(values))
            if not first:
                kept = {key: value for key, value in values.items() if key in new}
                found[name].update({k: v if name == "order" else np.array(to_numpy(v)) for k, v in kept.items()})

    def added(self, side: str, half: int, seen: Observation) -> Observation:
        """Add to the first step of a side what later ones have, each behind what comes before it in its own step.

        Values of later steps stand in for what the first step lacks, only to show shapes.
        """
        found = self._found.get((side, half), {}) if self.complete else {}
        made: dict[str, Any] = {}
        for name in (name for name, values in found.items() if values):
            both = {**found[name], **getattr(seen, name)}
            made[name] = {key: both[key] for key in self._known[side, half][name] if key in both}
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


def _merged(known: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
    """Put new keys into the known ones, each behind the one that comes before it."""
    behind, at = dict[Any, list[Any]](), set(known)
    before = None
    for key in keys:
        if key in at:
            before = key
        else:
            behind.setdefault(before, []).append(key)
    return [each for key in (None, *known) for each in ([] if key is None else [key]) + behind.get(key, [])]
