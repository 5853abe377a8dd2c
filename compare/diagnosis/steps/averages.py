"""Averages of weights: torch's rule, and the rule that gives the JAX side's values.

A tensor S of the state that no optimizer trains follows a tensor P of the same shape by S' = d S + (1 - d) P'. Torch's
own step shows both d and P: the rule must give S' for the whole tensor, to float64's rounding. The JAX side's tensor
is then held against the same rule with another d, with S left alone, or copied.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from compare.diagnosis.steps.copies import Following, following
from compare.diagnosis.steps.edit import Difference, Edit, Tensors
from compare.numerics.distance import EPSILON64, ULPS, distance, norm
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.fix import Code
from compare.weights.links import Parts

NEAR = 1e-9
"""How well a decay is known that is solved for by least squares: two that are nearer are one."""


class Rule(NamedTuple):
    """How a tensor of the state follows another."""

    decay: float
    """How much of the old value is kept: 0 where it is copied."""
    source: str
    """The name of what it follows."""
    all: tuple[float, ...] = ()
    """The decay at each step at which the two differ before it, if it changes from step to step."""

    @property
    def kept(self) -> str:
        """How much of the old value is kept, in words."""
        followed = self._followed
        return ", ".join(map(number, self.all)) if np.ptp(followed) > NEAR else number(followed[0])

    @property
    def when(self) -> str:
        """When the tensor follows, in words."""
        return "after each update" if len(self._followed) >= len(self.all) else "after the update of some steps"

    @property
    def _followed(self) -> list[float]:
        """The decays of the steps at which the tensor follows."""
        return [decay for decay in self.all if abs(decay - 1) > NEAR] or [self.decay]

    @property
    def call(self) -> str:
        """The call of optax that follows the rule."""
        followed = self._followed
        if self.all and np.ptp(followed) <= NEAR:
            taken = number(1 - followed[0])
            return f"optax.incremental_update(new, old, step_size={taken}), at the same steps as torch"
        if self.all:
            taken = ", ".join(number(1 - decay) for decay in self.all)
            return f"optax.incremental_update(new, old, step_size), with a step_size that changes as torch's: {taken}"
        return f"optax.incremental_update(new, old, step_size={number(1 - self.decay)})"


History = Sequence[Mapping[str, np.ndarray]]
"""The tensors of a side before the first step and after each, by torch's names, in torch's layout."""


def edits(found: Difference, torch: History, jax: History, trained: Collection[str]) -> Iterator[Edit]:
    """Yield the changes of an average's rule that explain what the JAX side has.

    The number of elements of the whole module confirms a decay that was fitted to one of its tensors, and so do the
    JAX side's other steps: its own numbers must follow the rule at all of them.

    Args:
        found: What differs first.
        torch: Torch's tensors. A decay may change from step to step, as in a warm-up of the average.
        jax: The JAX side's tensors; the same before the first step.
        trained: The names of the tensors that an optimizer trains.

    """
    for each in following({name: tensor.before for name, tensor in found.tensors.items()}, trained):
        if found.name in each.pairs and (known := _rule(found, found.name, each.pairs[found.name])) is not None:
            yield from _of_a_rule(found, each, known, torch, jax)
            return


def _of_a_rule(found: Difference, followed: Following, known: Rule, torch: History, jax: History) -> Iterator[Edit]:
    """Yield the changes of a rule that torch's tensor follows."""
    rule = _at_all_steps(known, found.name, torch)
    if rule is None:
        return
    same = {}
    for name, source in followed.pairs.items():
        # A tensor of one element shows no decay, and can confirm that of another.
        each = known._replace(source=source) if found.tensors[name].torch.size == 1 else _rule(found, name, source)
        if each is not None and abs(each.decay - rule.decay) < NEAR and _follows(each, found, name):
            same[name] = each
    for made in _other_rules(found, followed, rule, same):
        near = max(found.tensors[name].near for name in same)
        if all(made.gives(jax, name, other, near) for name, other in same.items()):
            yield _edit(followed, rule, made, same)


class _Other(NamedTuple):
    """Another rule for the same tensors."""

    name: str
    explanation: str
    fix: str
    value: Callable[[Any, Any], Any]
    """Of arrays or tensors: the average before the step, and what it follows after it."""
    free: int = 0
    decay: float | None = None
    """How much of the old value the JAX step keeps, where only that is wrong."""

    def gives(self, jax: History, name: str, rule: Rule, near: float) -> bool:
        """Tell whether the JAX side's tensors follow it at all steps."""

        def apart(old: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> float:
            operands = norm(old[name]) + norm(now[rule.source])
            return distance(self.value(old[name], now[rule.source]), now[name], size=operands)

        return all(apart(old, now) <= near for old, now in pairwise(jax))


def _rule(found: Difference, name: str, source: str) -> Rule | None:
    """Return the rule by which torch's tensor follows another; None where none gives it."""
    tensor, followed = found.tensors[name], found.tensors[source]
    decay = decay_of(tensor.torch, tensor.before, followed.torch)
    rule = None if decay is None else Rule(decay, source)
    return rule if rule and _follows(rule, found, name) else None


def _follows(rule: Rule, found: Difference, name: str) -> bool:
    tensor = found.tensors[name]
    return holds(rule.decay, tensor.torch, tensor.before, found.tensors[rule.source].torch)


def _at_all_steps(rule: Rule, name: str, history: History) -> Rule | None:
    """Add the decays of all steps where they are not the same; None where the rule does not hold at all of them.

    A tensor that follows the weights from before the update seems not to move at the first step.
    """
    decays = []
    for before, after in pairwise(history):
        decay = decay_of(after[name], before[name], after[rule.source])
        if decay is not None and not holds(decay, after[name], before[name], after[rule.source]):
            return None
        decays += [] if decay is None else [decay]
    same = all(abs(decay - rule.decay) <= NEAR for decay in decays)
    return rule if same else rule._replace(all=tuple(decays))


def holds(decay: float, after: np.ndarray, before: np.ndarray, follows: np.ndarray) -> bool:
    """Return whether after = decay before + (1 - decay) follows, to float64's rounding."""
    # The decay is known to a unit in the last place, and a tensor that is zero at first is 1 - decay times what it
    # follows: so the error is one of the two operands, and not of the small result.
    operands = norm(decay * before) + norm(follows)
    return distance(decay * before + (1 - decay) * follows, after, size=operands) <= ULPS * 4 * EPSILON64


def complement(decay: float, tensors: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Return 1 - decay as it was computed: the short number that a user wrote, or the difference.

    1 - 0.999 is 0.001 but for a relative 9e-13, which shows in a tensor that was zero.

    Args:
        decay: How much of the old value is kept.
        tensors: The old value, what it follows and the new value of tensors.

    """
    known = list(tensors)

    def apart(taken: float) -> float:
        return max((distance(decay * old + taken * follows, new) for old, follows, new in known), default=0.0)

    return min(1 - decay, float(f"{1 - decay:.12g}"), key=apart)


def decay_of(after: np.ndarray, before: np.ndarray, follows: np.ndarray) -> float | None:
    """Solve after = d before + (1 - d) follows for d by least squares; None where before equals what it follows."""
    # after - follows = d (before - follows) is one unknown in as many equations as there are elements: the least-
    # squares solution is the projection onto the way from what is followed to the old value.
    way = (before - follows).ravel()
    size = float(way @ way)
    # An average that starts as a copy has no way to go: any d fits, and the quotient of two roundings would decide. A
    # single number fits any d as well.
    if size <= (EPSILON64 * 1e4) ** 2 * float(np.vdot(follows, follows)) or way.size < 2:
        return None
    decay = float((after - follows).ravel() @ way) / size
    # A copy is told from an average by what the projection leaves of d, which is rounding alone.
    return 0.0 if abs(decay) < 1e-12 else decay


def _other_rules(found: Difference, followed: Following, rule: Rule, same: Mapping[str, Rule]) -> Iterator[_Other]:
    tensor, source = found.tensors[found.name], found.tensors[rule.source]
    decay = rule.decay
    follow = f"{rule.call}, in each step" if decay else f"copy {followed.other} to {followed.root} in each step"
    yield _Other(
        *does_instead(decay, 1.0),
        rule.call if rule.all else follow,
        lambda old, after: old,
    )
    if decay and not rule.all:
        yield _Other(
            *does_instead(decay, 0.0),
            rule.call,
            lambda old, after: after,
        )
        yield _Other(
            *does_instead(decay, 1 - decay),
            rule.call,
            lambda old, after: (1 - decay) * old + decay * after,
            decay=1 - decay,
        )
    # Of decays that change from step to step, `followers` knows those of both sides.
    fitted = None if rule.all else decay_of(tensor.jax, tensor.before, source.torch)
    # The number is what the user wrote, not what least squares solve for: with the short one, the whole tensor must
    # come out to rounding, at every step. That confirms it.
    if fitted is not None and (short := _shortest(fitted)) is not None:
        tensors = found.tensors
        each = ((tensors[name].before, tensors[one.source].torch, tensors[name].jax) for name, one in same.items())
        taken = complement(short, each)
        yield _Other(
            *does_instead(decay, short),
            rule.call,
            lambda old, after: short * old + taken * after,
            free=1,
            decay=short,
        )


def does_instead(kept: float, theirs: float) -> tuple[str, str]:
    """Name what the JAX step does where torch keeps a part of an average, and say it.

    Args:
        kept: How much of the old value torch keeps.
        theirs: How much the JAX step keeps.

    """
    if theirs == 1:
        return "average not updated", "the JAX step leaves it as it is"
    if theirs == 0:
        return "average copied", "the JAX step copies the weights"
    if abs(theirs - (1 - kept)) <= NEAR:
        says = f"the JAX step keeps {number(theirs)} of the average and takes {number(kept)} of the weights"
        return "decay exchanged", says
    return "average's decay", f"the JAX step keeps {number(theirs)}"


def _shortest(value: float) -> float | None:
    """Round to the fewest digits that least squares cannot distinguish from the value."""
    for digits in range(1, 13):
        short = round(value, digits)
        if abs(short - value) <= 1e-9 * max(1.0, abs(value)):
            return short
    return value


def decay_code(decay: float, theirs: float) -> Code:
    """Return the call that keeps as much of the old value as torch, and the numbers that another decay shows up as."""
    right, wrong = written(decay), written(theirs)
    return Code(
        "optax.incremental_update",
        ("new", "old"),
        {"step_size": round(1 - right, 15)},  # 1 - 0.9 is 0.09999999999999998
        numbers=((wrong, right), (round(1 - wrong, 15), round(1 - right, 15))),
    )


def number(value: float) -> str:
    """Write a decay so that it is the same number when it is read again: 0.99, 9/11, or all digits.

    Least squares know it to some 1e-13; a short number that is as near is the one that the user wrote.
    """
    for digits in range(1, 10):
        if abs(round(value, digits) - value) <= 1e-12:
            return f"{round(value, digits):.12g}"
    ratio = Fraction(value).limit_denominator(10_000)
    return str(ratio) if abs(float(ratio) - value) <= 1e-13 else repr(value)


def written(value: float) -> float:
    """Give the number that a user wrote for a decay that least squares have found: see `number`."""
    return float(Fraction(number(value)))


def _edit(followed: Following, rule: Rule, made: _Other, rules: dict[str, Rule]) -> Edit:
    def after(run: TorchProgramRun, before: Tensors) -> None:
        import torch

        now, old = Parts(run.floating()), Parts(before)
        with torch.no_grad():
            for name, each in rules.items():
                now[name].copy_(made.value(old[name], now[each.source]))

    copies = not rule.decay and not rule.all
    keeps = f"keeps {rule.kept} of {followed.root} and takes the rest from"
    if copies:
        keeps = f"makes {followed.root} a copy of"
    general = (
        "copies the weights" if copies else f"keeps {rule.kept} of the average and takes the rest from the weights"
    )
    return Edit(
        name=made.name,
        explanation=f"torch {keeps} {followed.other} {rule.when}, and {made.explanation}",
        fix=made.fix,
        code=None if made.decay is None else decay_code(rule.decay, made.decay),
        general=f"torch {general} {rule.when}, and {made.explanation}",
        after=after,
        free=made.free,
        source="https://optax.readthedocs.io/en/latest/api/apply_updates.html#optax.incremental_update",
    )
