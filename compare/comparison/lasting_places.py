"""Finds which differences inside the model last, by steps of the JAX side from torch's values at some places."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from compare.alignment.pairings import Pairing, shown
from compare.comparison.from_torch import Repeated
from compare.comparison.surplus import NUDGE, is_reduced, surplus
from compare.numerics.distance import distance
from compare.step.observation import Observation, Port
from compare.step.stage import Stage
from compare.verdict.following import Followed
from compare.verdict.lasting import Outcome, lasting

Ignores = Callable[[Pairing, int, np.ndarray, Sequence[Pairing], Observation], bool]
"""See `compare.comparison.surplus.torch_ignores`."""


def port(pairing: Pairing) -> Port:
    """Return the JAX side's port of a pairing inside the model."""
    assert pairing.ports is not None
    return pairing.ports[1]


class LastingPlaces:
    """Tells, of the places that differ at one step, those whose difference lasts. All are known by number.

    Args:
        followed: What following both sides has found: torch's rounding.
        number: Of the step.
        torch: The step of the torch side.
        again: Takes the step of the JAX side.
        places: Where inside the model the two differ from torch's values.
        torch_ignores: Tells whether torch's step is the same whatever part of a module's output is.

    """

    def __init__(
        self,
        followed: Followed,
        number: int,
        torch: Observation,
        again: Repeated,
        places: Sequence[int],
        torch_ignores: Ignores,
    ) -> None:
        self.pairings, self._quantities = followed.pairings, followed.quantities
        self._number, self._torch, self._again, self._torch_ignores = number, torch, again, torch_ignores
        self._shown = [n for n, each in enumerate(self.pairings) if shown(each.torch_array, torch) is not None]
        self._places = [each for each in places if self.pairings[each].to_jax]
        self._of_other_shape = [each for each in places if each not in self._places]
        deciding = [number for number in self._shown if self.pairings[number].decides]
        self._deciding = {n for n in deciding if self.pairings[n].stage not in (Stage.UPDATE, Stage.PARAMETERS)}
        outputs = {n for n in deciding if self.pairings[n].stage in (Stage.FORWARD, Stage.LOSS)}
        self._watched = outputs.union(self._places)
        # The loss is judged by itself: it starts from torch's outputs, where these can be given.
        self._outputs = {port(self.pairings[n]) for n in outputs if self.pairings[n].to_jax}

    def found(self) -> list[int]:
        """Return the places whose difference lasts."""
        limits = {number: self._limit(number) for number in self._watched}
        kept = lasting(self._places, self._outcome, limits, self._is_reordered) if self._places else []
        undone = set(self._places).difference(kept)
        felt: set[int] = set()
        # From the last to the first: what a place of another shape feeds may be of another shape too.
        for place in sorted(self._of_other_shape, reverse=True):
            felt |= {place} if self._is_felt(place, undone, felt) else set()
        return kept + sorted(felt)

    def carrying(self, kept: Collection[int]) -> list[int]:
        """Return the places that only pass on what is undone later: wrong with torch's values only at those `kept`."""
        seen = self._step(kept)
        inner = [n for n in self._shown if self.pairings[n].to_jax and not self.pairings[n].decides]
        return [number for number in inner if number not in kept and self._is_wrong(number, seen)]

    def made_up_for(self, outputs: Collection[int]) -> bool | None:
        """Tell whether the JAX side's loss makes up for other outputs of its model, as one that takes logits does.

        It is torch's then; or, with another fault of its own, it is the same of torch's outputs, and depends on them.
        None where it is neither that, nor torch's where it takes torch's outputs.
        """
        number = next((n for n in self._shown if self.pairings[n].stage == Stage.LOSS), None)
        if number is None or not all(self.pairings[each].to_jax for each in outputs):
            return False
        pairing, given = self.pairings[number], self._again.given
        ports = {port(self.pairings[each]) for each in outputs}
        rng, used = np.random.default_rng(0), given.ports.keys() if given.used is None else set(given.used)

        def loss(used: Collection[Port], values: Mapping[Port, np.ndarray]) -> float:
            return float(pairing.jax_array(self._again(given._replace(used=used, ports=values))))

        torch, own = float(pairing.torch_array(self._torch)), loss(used - ports, given.ports)
        limit, of_torch = abs(torch) * self._limit(number), loss(used | ports, given.ports)
        if abs(own - torch) <= limit or abs(of_torch - torch) <= limit:
            return abs(own - torch) <= limit
        other = {each: given.ports[each] * (1 + NUDGE * rng.normal(size=given.ports[each].shape)) for each in ports}
        alike = abs(own - of_torch) <= limit < abs(own - loss(used | ports, {**given.ports, **other}))
        return alike or None

    def _step(self, given: Collection[int]) -> Observation:
        """Take the step with torch's values at some places and, for the loss, as outputs."""
        ports = {port(self.pairings[number]) for number in given if self.pairings[number].to_jax}
        return self._again(self._again.given._replace(used=ports | self._outputs))

    def _outcome(self, given: frozenset[int]) -> Outcome:
        seen = self._step(given)
        values = {number: np.array(self.pairings[number].jax_array(seen)) for number in self._watched}
        return Outcome(values, frozenset(n for n in self._deciding.union(self._places) if self._is_wrong(n, seen)))

    def _is_felt(self, place: int, undone: Collection[int], felt: Collection[int]) -> bool:
        """Return whether anything that a place of another shape leads to is wrong.

        Torch's value cannot be put there. So the JAX side's own is changed a little, with torch's values at all other
        places but those `undone`: what changes then takes it directly. A place of another shape that is `felt`, or
        decides, is wrong whatever its value.
        """
        nudged, given = port(self.pairings[place]), self._again.given
        used = given.ports.keys() - {port(self.pairings[number]) for number in undone}
        before = self._again(given._replace(used=used))
        direct = [
            (number, each, np.array(each.jax_array(before)))
            for number, each in ((number, self.pairings[number]) for number in self._shown)
            if number not in undone and number != place and (each.ports or each.stage == Stage.LOSS)
            if number in felt or ((each.to_jax or each.decides) and self._is_wrong(number, before))
        ]

        def after(value: np.ndarray) -> Observation:
            return self._again(given._replace(ports={**given.ports, nudged: value}, used={*used, nudged}))

        values = self.pairings[place].torch_array(self._torch), self.pairings[place].jax_array(before)
        if is_reduced(*values, self._limit(place)):
            return False  # were it not reduced later, the next place would differ
        if self._torch_cuts_off(place, before) or self._jax_cuts_off(place, before, after):
            return False
        seen = after(np.asarray(before.forward[nudged]) * (1 + NUDGE))
        return any(distance(each.jax_array(seen), was) > self._limit(number) for number, each, was in direct)

    def _torch_cuts_off(self, place: int, seen: Observation) -> bool:
        """Tell whether torch has the JAX side's numbers there, and others that change nothing in its step."""
        pairing = self.pairings[place]
        more = surplus(pairing.torch_array(self._torch), pairing.jax_array(seen), self._limit(place))
        deciding = [self.pairings[number] for number in self._shown if self.pairings[number].decides]
        return more is not None and self._torch_ignores(pairing, self._number, more, deciding, self._torch)

    def _jax_cuts_off(self, place: int, seen: Observation, after: Callable[[np.ndarray], Observation]) -> bool:
        """Tell whether the JAX side has torch's numbers there, and others that nothing takes."""
        pairing, where = self.pairings[place], port(self.pairings[place])
        more = surplus(pairing.jax_array(seen), pairing.torch_array(self._torch), self._limit(place))
        if more is None:
            return False
        value = np.array(seen.forward[where])
        numbered = np.arange(value.size).reshape(value.shape)
        places = pairing.jax_array(seen._replace(forward={**seen.forward, where: numbered}))[more]
        value.flat[places] += NUDGE
        then, others = after(value), (self.pairings[number] for number in self._shown if number != place)
        pairs = ((shown(each.jax_array, then), shown(each.jax_array, seen)) for each in others)
        return all(np.array_equal(now, was) for now, was in pairs if now is not None and was is not None)

    def _is_wrong(self, number: int, seen: Observation) -> bool:
        pairing = self.pairings[number]
        theirs = shown(pairing.jax_array, seen)
        if theirs is None:
            return False
        return self._quantities[number].differs(self._number, distance(theirs, pairing.torch_array(self._torch)))

    def _is_reordered(self, number: int, value: np.ndarray) -> bool:
        ours = np.sort(np.ravel(self.pairings[number].torch_array(self._torch)))
        return ours.size == value.size and distance(np.sort(np.ravel(value)), ours) <= self._limit(number)

    def _limit(self, number: int) -> float:
        return self._quantities[number].limit(self._number)
