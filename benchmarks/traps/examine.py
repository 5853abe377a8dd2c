"""What is found of a trap: by `compare.check`, and by what people use today."""

import fnmatch
import re
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import numpy as np
import torch

import compare
from compare.device import taking_turns
from compare.jax_side.run import JaxRun
from compare.torch_side.control import ControlledRun
from compare.torch_side.run import TorchRun
from compare.weights.links import to_jax

from . import forward, optimizers, state, structure, training
from .fixes import fixed
from .trap import Pair, Trap

CATALOGUE = [
    *state.WEIGHTS,
    *forward.TRAPS,
    *(trap for trap in structure.TRAPS if trap.stage == "forward"),
    *training.TRAPS,
    *(trap for trap in structure.TRAPS if trap.stage != "forward"),
    *optimizers.TRAPS,
    *state.BUFFERS,
    *state.DATA,
    *state.PRECISION,
    *state.RANDOM,
    *state.OTHER,
]
STAGES = list(dict.fromkeys(trap.stage for trap in CATALOGUE))


class Outcome(NamedTuple):
    """What `compare.check` says of a wrong half, and of its right half."""

    caught: bool
    placed: bool
    explained: bool
    false_alarm: bool
    fix: str
    said: str
    cause: compare.Cause | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    """Of the check of the right half, and of the wrong half's, which looks for the cause as well."""


def checked(trap: Trap, settings: dict[str, Any]) -> compare.Report | str:
    """Compare one half; the message where `compare.check` refuses it."""
    return compared(trap, trap.build(**settings))


def compared(trap: Trap, pair: Pair) -> compare.Report | str:
    """Compare a pair of a trap's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return compare.check(*pair, steps=trap.steps, device="cpu", **trap.more)
        except compare.InputError as error:
            return str(error)


def outcome(trap: Trap) -> Outcome:
    began = time.perf_counter()
    right = checked(trap, trap.right)
    between = time.perf_counter()
    wrong = checked(trap, trap.wrong)
    seconds = between - began, time.perf_counter() - between
    return judged(trap, right, wrong)._replace(seconds=seconds)


def judged(trap: Trap, right: compare.Report | str, wrong: compare.Report | str) -> Outcome:
    false_alarm = isinstance(right, str) or right.verdict != trap.allowed or bool(right.nondeterministic)
    if isinstance(wrong, str):
        named = trap.verdict == "error" and trap.place[1] in wrong
        return Outcome(named, named, named, false_alarm, "", wrong)
    said = str(wrong)
    if wrong.nondeterministic:
        found = trap.verdict == "nondeterministic"
        return Outcome(True, found, found, false_alarm, "", said)
    if wrong.verdict == "precision" and trap.verdict == "precision":
        note = wrong.notes[0] if wrong.notes else None
        first = next(q for q in wrong.quantities if q.verdict == "precision")
        placed = (first.stage, True) == (trap.place[0], fnmatch.fnmatch(first.torch, trap.place[1]))
        cause: Any = note
    else:
        divergence = wrong.divergence
        placed = divergence is not None and divergence.stage == trap.place[0]
        placed = placed and divergence is not None and fnmatch.fnmatch(divergence.torch, trap.place[1])
        cause = divergence and divergence.cause
    explained = bool(trap.cause and cause and re.search(trap.cause, cause.name) and re.search(trap.fix, cause.fix))
    caught = wrong.verdict == trap.verdict
    return Outcome(
        caught, caught and placed, caught and placed and explained, false_alarm, cause.fix if cause else "", said, cause
    )


def mends(trap: Trap, cause: compare.Cause | None) -> bool | None:
    """Put the fix of a cause into the wrong half: whether it then matches; None if the fix is no code."""
    pair = None if cause is None else fixed(trap, cause)
    if pair is None:
        return None
    report = compared(trap, pair)
    return not isinstance(report, str) and report.verdict in ("match", trap.allowed)


class Steps(NamedTuple):
    """What both sides show to people who compare in float32."""

    outputs: tuple[np.ndarray, np.ndarray]
    losses: tuple[list[float], list[float]]
    gradients: tuple[Any, Any]


def steps(pair: Pair, more: dict[str, Any], count: int = 10) -> Steps:
    """Train both sides in float32 from the same weights; each draws its own random numbers, as they do."""
    with taking_turns():
        comparison = compare_setup(pair, more)
        ours, theirs, links = comparison
        data = [compare_batch(batch) for batch in pair.batches]
        outputs: Any = None
        gradients: Any = None
        losses: tuple[list[float], list[float]] = ([], [])
        for number in range(count):
            batch = data[number % len(data)]
            with ControlledRun():
                mine = ours.step(batch)
            other = theirs.step(batch)
            losses[0].append(float(mine.loss))
            losses[1].append(float(other.loss))
            if outputs is None:
                outputs = tuple(np.asarray(_last(seen.forward)) for seen in (mine, other))
                shown = {name: np.array(value.detach()) for name, value in mine.gradients.items()}
                linked = [link for link in links if link.torch in shown]
                gradients = (
                    to_jax(linked, shown, {k: np.asarray(v) for k, v in other.gradients.items()}),
                    {link.jax: np.asarray(other.gradients[link.jax]) for link in linked},
                )
    return Steps(outputs, losses, gradients)


def compare_setup(pair: Pair, more: dict[str, Any]) -> tuple[TorchRun, JaxRun, Any]:
    from compare.comparison.model_pair import ModelPair

    checked_batches = [compare_batch(batch) for batch in pair.batches]
    mapped = ModelPair(pair.torch, pair.jax, checked_batches, more.get("weights"), "cpu")
    theirs = mapped.jax_run("float32")
    if "converted" in more:
        theirs.load(JaxRun(pair.jax, "float32", training=mapped.training).arrays())
    return mapped.torch_run("float32"), theirs, mapped.links


def compare_batch(batch: Any) -> Any:
    from compare.step.batch import Batch

    return Batch(*batch)


def _last(forward: Any) -> Any:
    return [value for port, value in forward.items() if port.path == "" and port.kind == "output"][-1]


def aligned(outputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = (np.array(output.detach() if hasattr(output, "detach") else output) for output in outputs)
    return ours, np.moveaxis(theirs, -1, 1) if ours.ndim == 4 else theirs


def _assert_close(seen: Steps) -> bool:
    try:
        torch.testing.assert_close(*(torch.tensor(output) for output in aligned(seen.outputs)))
    except AssertionError:
        return False
    return True


def _allclose(**tolerances: Any) -> Callable[[Steps], bool]:
    def close(seen: Steps) -> bool:
        ours, theirs = aligned(seen.outputs)
        return ours.shape == theirs.shape and bool(np.allclose(theirs, ours, **tolerances))

    return close


def _chex(seen: Steps) -> bool:
    try:
        chex.assert_trees_all_close(*seen.gradients)
    except AssertionError:
        return False
    return True


TODAY: dict[str, Callable[[Steps], bool]] = {
    "torch.testing.assert_close, outputs": _assert_close,
    "numpy.allclose, outputs": _allclose(),
    "allclose(rtol=1e-3, atol=1e-3), outputs": _allclose(rtol=1e-3, atol=1e-3),
    "allclose(rtol=1e-3), ten losses": lambda seen: bool(np.allclose(*seen.losses, rtol=1e-3, atol=0)),
    "chex.assert_trees_all_close, gradients": _chex,
}


def today(trap: Trap) -> dict[str, tuple[bool, bool]]:
    """For each thing that people use, whether it notices the wrong half, and whether it fails the right one."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen: list[Steps | None] = []
        for settings in (trap.wrong, trap.right):
            pair = trap.build(**settings)
            more = trap.more | ({"converted": True} if trap.stage == "weights" else {})
            try:
                seen.append(steps(pair, more))
            except compare.InputError:
                seen.append(None)
    for name, same in TODAY.items():
        found[name] = (seen[0] is None or not same(seen[0]), seen[1] is not None and not same(seen[1]))
    return found


class Examined(NamedTuple):
    """What is found of one trap."""

    ours: Outcome
    others: dict[str, tuple[bool, bool]]
    """For each way that people use today: whether the wrong half is caught, and whether the right half fails."""
    mended: bool | None
    """Whether the printed fix makes the wrong half match; None where it is not code, or was not tried."""


def examined(asked: tuple[str, bool]) -> tuple[str, Examined]:
    """Examine the trap of a name, and put its printed fix in if that is asked."""
    name, fixes = asked
    [trap] = (trap for trap in CATALOGUE if trap.name == name)
    found = outcome(trap)
    mended = mends(trap, found.cause) if fixes else None
    return name, Examined(found._replace(cause=None), today(trap), mended)
