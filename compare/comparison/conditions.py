"""The forward pass and the loss under other conditions: another batch size, the other mode."""

from typing import Any, NamedTuple

import numpy as np

from compare import bugs
from compare.alignment.pairings import shown
from compare.comparison.mapped_pair import MappedPair
from compare.errors import InputError
from compare.jax_side.inquiries import evaluated
from compare.step.batch import Batch, mapped
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.torch_side.control import ControlledRun
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.quantity import FACTOR, Quantity


class Conditions(NamedTuple):
    """What other conditions showed."""

    divergence: Divergence | None = None
    """What differs with another batch size."""
    limits: tuple[str, ...] = ()
    """What the headline says of the other mode."""
    unexercised: tuple[str, ...] = ()
    """What could not be tried."""


def under_other_conditions(pair: MappedPair, followed: Followed) -> Conditions:
    """Run both sides forward with a batch of another size, and in the other mode where that makes a difference.

    Both at once, which is one program to compile; one by one only where that differs or fails.

    Args:
        pair: Both sides, from other weights and on other batches.
        followed: What the first question has shown, which says how much rounding there is.

    """
    batch = pair.batches[0]
    larger, other = one_more(batch), pair.in_other_mode()
    moded = _mode_matters(pair, other, batch)
    if larger is not None and moded and _difference(other, larger, followed) is None:
        return Conditions()
    found = Conditions()
    if larger is not None:
        size = _difference(pair, larger, followed)
        if isinstance(size, Divergence):
            found = found._replace(divergence=size)
        elif size:
            found = found._replace(unexercised=(f"another batch size: {size}",))
    if moded:
        given, asked = ("training", "evaluation") if pair.training else ("evaluation", "training")
        mode = _difference(other, batch, followed)
        if isinstance(mode, Divergence):
            where = mode.torch if mode.torch != mode.stage else "the loss"
            found = found._replace(limits=(f"in {given} mode: in {asked} mode the two sides differ at {where}",))
        elif mode:
            found = found._replace(limits=(f"in {given} mode: {asked} mode cannot be tried, {mode}",))
    return found


def one_more(batch: Batch) -> Batch | None:
    """Give a batch with one example more, the first once more; None if its inputs have no common first axis."""
    arrays: list[np.ndarray] = []
    mapped(batch.inputs, lambda leaf: arrays.append(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else None)
    if not arrays:
        return None
    size = len(arrays[0])

    def longer(array: Any) -> Any:
        if not isinstance(array, np.ndarray) or not array.ndim or len(array) != size:
            return array
        return np.concatenate([array, array[:1]])

    return Batch(mapped(batch.inputs, longer), mapped(batch.target, longer))


def _mode_matters(pair: MappedPair, other: MappedPair, batch: Batch) -> bool:
    """Tell whether torch computes something else in the other mode."""
    try:
        one, two = (_torch(each, "float64", batch, None)[0] for each in (pair, other))
    except InputError:
        return False
    return any(
        not np.array_equal(to_numpy(value), to_numpy(two.forward[port]), equal_nan=True)
        for port, value in one.forward.items()
        if port in two.forward and to_numpy(value).shape == to_numpy(two.forward[port]).shape
    )


def _torch(pair: MappedPair, dtype: str, batch: Batch, draws: list[Draw] | None) -> tuple[Observation, list[Draw]]:
    run = pair.torch_run(dtype)
    with ControlledRun(lift=run.lifted, replay=draws) as controlled:
        return run.evaluate(batch), controlled.draws


def _difference(pair: MappedPair, batch: Batch, followed: Followed) -> Divergence | str | None:
    """Give the first thing that differs on a batch; or why a side does not take it, and None if nothing differs."""
    try:
        torch32, draws = _torch(pair, "float32", batch, None)
        torch64, _ = _torch(pair, "float64", batch, draws)
    except InputError as error:
        return f"the torch side does not take it ({_short(error)})"
    name = pair.jax.name
    try:
        run = pair.jax_run("float64")
        jax64 = evaluated(run, batch, draws)
        if run.unreplayed:
            return f"the {name} side draws other random numbers there"
        found = _first(pair, followed, torch32, torch64, jax64, None)
        if found is not None:
            found = _first(pair, followed, torch32, torch64, jax64, evaluated(pair.jax_run("float32"), batch, draws))
    except InputError as error:
        return f"the {name} side does not take it ({_short(error)})"
    except Exception as error:  # noqa: BLE001 - the first question has its answer
        bugs.report("trying another batch size and mode", error)
        return "it could not be tried"
    return found


def _short(error: InputError) -> str:
    return f"{str(error).partition(chr(10))[0]:.80}"


def _first(
    pair: MappedPair,
    followed: Followed,
    torch32: Observation,
    torch64: Observation,
    jax64: Observation,
    jax32: Observation | None,
) -> Divergence | None:
    """Weigh what both sides show, and give the first thing that decides and differs."""
    before = {(each.stage, each.torch): float(each.expected.max()) for each in followed.quantities if each.decides}
    for pairing in pair.align(torch64, jax64, {}).pairings:
        # What the first question has left out, such as an output that the loss makes up for, is left out here too.
        if not pairing.decides or (pairing.stage, pairing.torch) not in before:
            continue
        quantity = Quantity(pairing.stage, pairing.torch, pairing.jax)
        ours32, ours, theirs = shown(pairing.torch_array, torch32), *_both(pairing, torch64, jax64)
        if ours32 is None or ours is None or theirs is None:
            continue
        quantity.add_torch(ours32, ours)
        quantity.add_difference(theirs, ours)
        if jax32 is not None:
            quantity.add_jax(pairing.jax_array(jax32), theirs)
        known = before[pairing.stage, pairing.torch]
        if quantity.ratio[0] > FACTOR and quantity.error64[0] > FACTOR * known:
            where = pairing.stage, pairing.torch, pairing.jax
            rounding = float(quantity.rounding[0])
            expected = max(known, float(quantity.expected[0]))
            return Divergence(0, *where, quantity.error64[0], rounding, expected, question="with another batch size")
    return None


def _both(pairing: Any, torch64: Observation, jax64: Observation) -> tuple[np.ndarray | None, np.ndarray | None]:
    return shown(pairing.torch_array, torch64), shown(pairing.jax_array, jax64)
