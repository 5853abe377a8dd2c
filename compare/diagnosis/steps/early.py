"""Tensors that follow the weights from before the step's update on one side, and from after it on the other.

A target is often copied, or averaged, at the beginning of a step in one framework and at its end in the other. Both
rules are read from the sides' own numbers, at all steps: no number is fitted. The torch step is then changed: its own
writes to these tensors are undone as they are made, and they follow the weights where the JAX side's do.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.diagnosis.steps.averages import (
    NEAR,
    History,
    complement,
    decay_code,
    decay_of,
    does_instead,
    holds,
    number,
    written,
)
from compare.diagnosis.steps.copies import Following, following
from compare.diagnosis.steps.edit import Edit, Tensors
from compare.diagnosis.steps.followers import at_steps, described, follows, moves, series, steps_of
from compare.step.user_code import passes_on
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.record import Record
from compare.weights.links import Parts

if TYPE_CHECKING:
    import torch


def edits(torch: History, jax: History, trained: Collection[str], name: str = "") -> Iterator[Edit]:
    """Yield the changes of when tensors follow the weights.

    Args:
        torch: The torch side's tensors.
        jax: The JAX side's; the same before the first step.
        trained: The names of the tensors that an optimizer trains.
        name: Of the tensor that differs first; without it, what the step computes differs before.

    """
    every = list(following(torch[0], trained))
    for early, places in ((False, (False,)), (True, (True, False))):
        moved = (_moved(each, torch, jax, early=early) for each in every)
        found = [each for each in moved if each is not None]
        ours = [each for each in found if not name or name in each.pairs]
        # Several targets are updated in one place as a rule, such as those of two critics.
        several = [found] if ours and len({each.root for each in found}) == len(found) > 1 else []
        for first in places:
            yield from (_edit(each, early=early, first=first) for each in (*([one] for one in ours), *several))
    others = [each for one in every if (each := _otherwise(one, torch, jax)) is not None]
    chosen = [[each] for each in others if not name or name in each.moved.pairs]
    alike = [each for each in others if chosen and each.decays == chosen[0][0].decays]
    for group in (*chosen, *([alike] if len(alike) > 1 else [])):
        if (edit := _described(group)) is not None:
            for follow in (_Follow([each.moved for each in group], early=True, first=first) for first in (True, False)):
                yield replace(edit, during=follow.instead, after=follow.at_the_end)


class _Moved(NamedTuple):
    """Tensors that follow the weights, as the JAX side's do."""

    root: str
    """The part of the state that they belong to."""
    other: str
    """The part whose weights they follow."""
    pairs: Mapping[str, str]
    """The names of these, by those of the tensors."""
    decays: Sequence[float]
    """How much they keep of themselves at each step."""
    taken: Sequence[float]
    """How much they take of the weights."""


def _moved(followed: Following, torch: History, jax: History, *, early: bool) -> _Moved | None:
    """Look for such tensors; `early` tells whether the JAX side takes the weights from before the update."""
    pairs = followed.pairs
    if not any(moves(history, own) for history in (torch, jax) for own in pairs):
        return None
    known = (_decays(pairs, own, torch, jax, early=early) for own in pairs if torch[0][own].size > 1)
    one = next((decays for decays in known if decays is not None), None)
    if one is None:
        return None
    # A tensor of one element shows no decay, and confirms that of another.
    same = {
        own: source
        for own, source in pairs.items()
        if follows(torch, own, source, one, early=not early) and follows(jax, own, source, one, early=early)
    }
    return _moves_by(followed, same, one, jax, early=early)


def _moves_by(
    followed: Following, same: Mapping[str, str], decays: Sequence[float], jax: History, *, early: bool
) -> _Moved:
    """Give tensors the numbers by which they follow others on the JAX side."""
    exact = [written(decay) for decay in decays]
    taken = [
        complement(decay, ((old[own], (old if early else now)[f], now[own]) for own, f in same.items()))
        for decay, (old, now) in zip(exact, pairwise(jax), strict=True)
    ]
    return _Moved(followed.root, followed.other, same, exact, taken)


class _Otherwise(NamedTuple):
    """Tensors that follow the weights from before the update on both sides, by other decays."""

    moved: _Moved
    torch: list[float]
    """How much torch's keep of themselves at each step."""
    jax: list[float]
    shown: list[int]
    """The steps that show it: where a copy equals what it follows, any decay keeps it."""

    @property
    def decays(self) -> list[float]:
        """The decays of both sides, as they were written."""
        return [written(each) for each in (*self.torch, *self.jax)]


def _otherwise(followed: Following, torch: History, jax: History) -> _Otherwise | None:
    """Look for such tensors."""
    pairs = followed.pairs
    if not any(moves(torch, own) for own in pairs):
        return None
    telling = [own for own in pairs if torch[0][own].size > 1]
    sides = ([_kept(side, own, pairs[own], early=True) for own in telling] for side in (torch, jax))
    kept = next(((one, two) for one, two in zip(*sides, strict=True) if one and two), None)
    shown = [number for number, pair in enumerate(zip(*kept, strict=True)) if None not in pair] if kept else []
    if kept is None or not shown:
        return None
    ours, theirs = map(_filled, kept)
    same = {own: source for own, source in pairs.items() if follows(torch, own, source, ours, early=True)}
    if set(ours) == {1.0} or np.allclose(ours, theirs, rtol=0, atol=NEAR):
        return None
    if not all(follows(jax, own, source, theirs, early=True) for own, source in same.items()):
        return None
    return _Otherwise(_moves_by(followed, same, theirs, jax, early=True), ours, theirs, shown)


def _described(group: Sequence[_Otherwise]) -> Edit | None:
    """Describe what differs, of tensors with the same decays."""
    ours, theirs = group[0].torch, group[0].jax
    root, other = (", ".join(dict.fromkeys(names)) for names in zip(*(each.moved[:2] for each in group), strict=True))
    return _constant(root, other, ours, theirs) or _varying(root, other, ours, theirs, group[0].shown)


def _filled(kept: Sequence[float | None]) -> list[float]:
    """Fill in the decays of steps that show none: that of the others if it is one number, else that of no change."""
    known = [each for each in kept if each is not None]
    rest = known[0] if known and np.ptp(known) <= NEAR else 1.0
    return [rest if each is None else each for each in kept] if known else []


def _constant(root: str, other: str, ours: Sequence[float], theirs: Sequence[float]) -> Edit | None:
    """Describe another decay that is the same at every step."""
    if max(np.ptp(ours), np.ptp(theirs)) > NEAR or min(ours) == 1:
        return None
    kept, they_keep = written(ours[0]), written(theirs[0])
    name, does = does_instead(kept, they_keep)
    keeps = f"keeps {number(kept)} of {root} and takes the rest from {other}" if kept else f"copies {other} to {root}"
    return Edit(
        name,
        f"torch {keeps} before each update, and {does}",
        f"{_call([kept], other, root)}, before the optimizer's update",
        free=int(name == "average's decay"),
        code=decay_code(kept, they_keep) if kept and they_keep not in (0, 1) else None,
    )


def _varying(
    root: str, other: str, ours: Sequence[float], theirs: Sequence[float], shown: Sequence[int]
) -> Edit | None:
    """Describe other decays at the steps that show them."""
    copies = {*map(written, (*ours, *theirs))} <= {0.0, 1.0}
    if len(shown) == len(ours) and (copies or steps_of(ours) != steps_of(theirs)):
        return described(root, other, ours, theirs)
    if copies:
        return None
    torch, jax = ([side[step] for step in shown] for side in (ours, theirs))
    shares = ", ".join(f"{1 - decay:.6g}" for decay in torch)
    return Edit(
        "average's decay",
        f"at {at_steps(shown)}, torch keeps {series(torch)} of {root} and takes the rest from {other} before each "
        f"update, and the JAX side keeps {series(jax)}",
        f"optax.incremental_update(new, old, step_size) before the optimizer's update, with torch's "
        f"step_size: {shares}",
        free=1,
    )


def _edit(moved: Sequence[_Moved], *, early: bool, first: bool) -> Edit:
    """Make the edit; `first` tells whether the JAX side does so at the beginning, and the step computes with it."""
    follow = _Follow(moved, early=early, first=first)
    when = ("after", "before") if early else ("before", "after")
    copied = all({*each.decays} <= {0.0, 1.0} for each in moved)
    root, other = (", ".join(dict.fromkeys(names)) for names in zip(*(each[:2] for each in moved), strict=True))
    calls = "; ".join(dict.fromkeys(_call(each.decays, each.other, each.root) for each in moved))
    return Edit(
        name=f"{'copied' if copied else 'average'} {when[1]} the update",
        explanation=f"torch updates {root} with the weights of {other} from {when[0]} the optimizer's update, and the "
        f"JAX step with those from {when[1]} it",
        fix=f"{calls}, {when[0]} the optimizer's update",
        during=follow.instead,
        after=follow.at_the_end,
    )


def _call(decays: Sequence[float], other: str, root: str) -> str:
    """Name the call of optax that follows a rule; a step at which the tensors stay as they are has a decay of 1."""
    shares = {decay for decay in decays if decay != 1}
    if shares == {0.0}:
        return f"copy {other} to {root}"
    taken = number(1 - min(shares)) if len(shares) == 1 else "..."
    return f"optax.incremental_update(new, old, step_size={taken})"


def _decays(pairs: Mapping[str, str], own: str, torch: History, jax: History, *, early: bool) -> list[float] | None:
    """Return how much a tensor keeps of itself at each step, if both sides keep as much; None otherwise."""
    ours = _kept(torch, own, pairs[own], early=not early)
    theirs = _kept(jax, own, pairs[own], early=early)
    if ours is None or theirs is None or any({*side} <= {1.0, None} for side in (ours, theirs)):
        return None
    decays = []
    for one, two in zip(ours, theirs, strict=True):
        if one is not None and two is not None and abs(one - two) > NEAR:
            return None
        known = one if one is not None else two
        decays.append(1.0 if known is None else known)
    return decays


def _kept(history: History, own: str, source: str, *, early: bool) -> list[float | None] | None:
    """Return how much a tensor keeps of itself at each step; a step has None where it equals what it follows.

    None where it does not follow the weights at some step.
    """
    kept: list[float | None] = []
    for before, now in pairwise(history):
        follows = (before if early else now)[source]
        decay = decay_of(now[own], before[own], follows)
        if not holds(1.0 if decay is None else decay, now[own], before[own], follows):
            return None
        kept.append(decay if decay is None or abs(decay - 1) > NEAR else 1.0)
    return kept


class _Follow:
    """Lets tensors follow the weights first or last in a step, and not where the step itself writes to them."""

    def __init__(self, moved: Sequence[_Moved], *, early: bool, first: bool) -> None:
        self.moved, self.early, self.first = moved, early, first

    def _follow(self, now: Tensors, old: Tensors, weights: Tensors, step: int) -> None:
        for each in self.moved:
            for own, source in each.pairs.items():
                now[own].data.copy_(each.decays[step] * old[own].detach() + each.taken[step] * weights[source].detach())

    @contextlib.contextmanager
    def instead(self, run: TorchProgramRun) -> Iterator[None]:
        now = Parts(run.floating())
        if self.first:
            self._follow(now, now, now, run.taken)
        with _mode()([now.whole(own) for each in self.moved for own in each.pairs]):
            yield

    def at_the_end(self, run: TorchProgramRun, before: Tensors) -> None:
        if not self.first:
            now, old = Parts(run.floating()), Parts(before)
            self._follow(now, old, old if self.early else now, run.taken - 1)


@functools.cache
def _mode() -> "Callable[[Iterable[torch.Tensor]], contextlib.AbstractContextManager[Any]]":
    import torch
    from torch.overrides import TorchFunctionMode

    class Held(TorchFunctionMode):
        """Gives tensors their values back whenever they are written to."""

        def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
            super().__init__()
            self.kept = [(tensor, tensor.detach().clone()) for tensor in tensors]

        @passes_on
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            given = func(*args, **(kwargs or {}))
            # What this package does around the user's step, such as `at_the_end`, is not of the step.
            if not Record.keeping and args and _writes(getattr(func, "__name__", "")):
                written = args[0] if isinstance(args[0], list | tuple) else [args[0]]  # a list: torch._foreach_lerp_
                self._put_back({_memory(each) for each in written if isinstance(each, torch.Tensor)})
            return given

        def _put_back(self, written: set[int]) -> None:
            for tensor, value in self.kept:
                if _memory(tensor) in written:
                    # Not in place: `target.data = model.data` lets both use the same memory.
                    tensor.data = value.clone()

    return Held


def _writes(name: str) -> bool:
    """Tell whether a function of torch changes its first argument: `copy_`, `x[0] = y`, `x += y`, `x.data = y`."""
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in ("__init__", "__invert__"))
    return name.endswith("_")


def _memory(tensor: "torch.Tensor") -> int:
    """Return the address of what a tensor and all views of it share: `target.data` is another tensor."""
    return tensor.untyped_storage().data_ptr()
