"""Compares the forward pass and the loss under other conditions: another batch size, the other mode."""

import textwrap
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare import bugs
from compare.alignment.pairings import shown
from compare.comparison.common_pair import CommonPair
from compare.comparison.model_pair import ModelPair
from compare.errors import InputError
from compare.jax_side.inquiries import evaluated
from compare.step.batch import Batch, mapped
from compare.step.draws import Draw
from compare.step.observation import Observation, to_numpy
from compare.step.stage import Stage
from compare.verdict.divergence import Divergence
from compare.verdict.following import Followed
from compare.verdict.ratio import FACTOR, Quantity


class Conditions(NamedTuple):
    """What other conditions showed."""

    divergence: Divergence | None = None
    """What differs with another batch size."""
    limits: tuple[str, ...] = ()
    """What the headline says of the other mode."""
    unexercised: tuple[str, ...] = ()
    """What could not be tried."""


def under_other_conditions(pair: ModelPair, followed: Followed) -> Conditions:
    """Take both sides through a batch with one example more, shorter examples, and the other mode where that matters.

    All at once, which is one program to compile; with fewer of them only where that differs or fails.

    Args:
        pair: Both sides, from other weights and on other batches.
        followed: What the first question has shown, which says how much rounding there is.

    """
    batch = pair.batches[0]
    larger, other = one_more(batch), pair.in_other_mode()
    moded = _mode_matters(pair, other, batch)
    shorter = _shorter(pair, larger) if larger is not None else None
    tried = other if moded else pair
    # A program is compiled for each shape, and that is the price of these questions. Most ports pass all of them, so
    # the first program asks for all at once: one example more, one element shorter, and the other mode.
    if larger is None or shorter is None:
        at_length: Divergence | str | None = None
    elif (at_length := _difference(tried, shorter.batch, followed)) is None:
        return Conditions()
    # Something differs, or is not taken. A port may be made for one length, so the length is left out first.
    if larger is not None and (moded or shorter) and _difference(tried, larger, followed) is None:
        return _of_length(shorter, at_length)
    found = Conditions()
    if larger is not None:
        size = _difference(pair, larger, followed)
        if isinstance(size, Divergence):
            found = found._replace(divergence=size)
        elif size:
            found = found._replace(unexercised=(f"another batch size: {size}",))
        elif shorter and not isinstance(at_length, str):
            found = _of_length(shorter, _difference(pair, shorter.batch, followed))
    if moded:
        given, asked = ("training", "evaluation") if pair.training else ("evaluation", "training")
        mode = _difference(other, batch, followed)
        if isinstance(mode, Divergence):
            where = mode.torch if mode.torch != mode.stage else "the loss"
            limit = f"in {given} mode: in {asked} mode the two sides differ at {where}"
            found = found._replace(limits=(*found.limits, limit))
        elif mode:
            limit = f"in {given} mode: {asked} mode cannot be tried, {mode}"
            found = found._replace(limits=(*found.limits, limit))
    return found


class Shorter(NamedTuple):
    """A batch whose examples are shorter."""

    batch: Batch
    axis: int
    length: int
    """What it was before."""


def _of_length(shorter: Shorter | None, found: Divergence | str | None) -> Conditions:
    """Say what shorter examples showed. A port for one length is not wrong: that is a limit and not a mismatch."""
    if shorter is None or found is None:
        return Conditions()
    lengths = f"{shorter.length - 1} in place of {shorter.length} along axis {shorter.axis}"
    if isinstance(found, str):
        return Conditions(unexercised=(f"another length, {lengths}: {found}",))
    return Conditions(limits=(f"at this length: with {lengths} the two sides differ at {found.torch}",))


def _shorter(pair: ModelPair, batch: Batch) -> Shorter | None:
    """Cut a batch by one along its second axis, or its third, if torch takes that; None if it does not."""
    arrays: list[np.ndarray] = []
    mapped(batch.inputs, lambda leaf: arrays.append(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim > 1 else None)
    for axis in (1, 2):
        lengths = [array.shape[axis] for array in arrays if array.ndim > axis]
        # With two elements, one less is a single one, at which much is equal by accident.
        if not lengths or lengths[0] < 3:
            continue

        def cut(array: Any, axis: int = axis, length: int = lengths[0]) -> Any:
            if not isinstance(array, np.ndarray) or array.ndim <= axis or array.shape[axis] != length:
                return array
            return np.take(array, np.arange(length - 1), axis)

        made = Batch(mapped(batch.inputs, cut), mapped(batch.target, cut))
        # Torch says whether this axis has a length at all: channels and features have none.
        try:
            _torch(pair, "float32", made, None)
        except InputError:
            continue
        return Shorter(made, axis, lengths[0])
    return None


def one_more(batch: Batch) -> Batch | None:
    """Return a batch in which the first example is repeated at the end; None if the inputs share no first axis."""
    arrays: list[np.ndarray] = []
    mapped(batch.inputs, lambda leaf: arrays.append(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else None)
    if not arrays:
        return None
    size = len(arrays[0])

    def longer(array: Any) -> Any:
        if not isinstance(array, np.ndarray) or not array.ndim or len(array) != size:
            return array
        # The first example twice, and no made-up one: its numbers are in the range that the model expects.
        return np.concatenate([array, array[:1]])

    return Batch(mapped(batch.inputs, longer), mapped(batch.target, longer))


def _mode_matters(pair: ModelPair, other: ModelPair, batch: Batch) -> bool:
    """Return whether torch computes something else in the other mode."""
    try:
        one, two = (_torch(each, "float64", batch, None)[0] for each in (pair, other))
    except InputError:
        return False
    return any(
        not np.array_equal(to_numpy(value), to_numpy(two.forward[port]), equal_nan=True)
        for port, value in one.forward.items()
        if port in two.forward and to_numpy(value).shape == to_numpy(two.forward[port]).shape
    )


def _torch(
    pair: ModelPair, dtype: str, batch: Batch, draws: list[Draw] | None, moved: int = 0
) -> tuple[Observation, list[Draw]]:
    run = pair.torch_run(dtype)
    if moved:
        run.perturb(moved)
    with run.controlled(draws) as controlled:
        if not _differentiated(pair):
            return run.evaluate(batch), controlled.draws
        seen = run.backward(batch)
        return seen._replace(buffers=run.buffers()), controlled.draws


def _differentiated(pair: ModelPair) -> bool:
    """Return whether gradients are compared too. On a GPU recurrent layers have none in evaluation mode."""
    return pair.torch.loss is not None and (pair.training or pair.device == "cpu")


def _difference(pair: ModelPair, batch: Batch, followed: Followed) -> Divergence | str | None:
    """Return the first thing that differs on a batch; or why a side does not take it, and None if nothing differs."""
    try:
        torch32, draws = _torch(pair, "float32", batch, None)
        torch64, _ = _torch(pair, "float64", batch, draws)
    except InputError as error:
        return f"the torch side fails with it ({short(error)})"
    name = pair.jax.name
    try:
        run = pair.jax_run("float64")
        gradient = _differentiated(pair)
        jax64 = evaluated(run, batch, draws, gradient=gradient)
        # Draws for another shape may have no counterpart among torch's, and then the numbers are no evidence.
        if run.unreplayed:
            return f"the {name} side draws different random numbers there"
        found = first_difference(pair, followed, (torch32, torch64), jax64)
        if found is not None:
            # Only where something differs is it worth two more programs to know how much of it is rounding.
            jax32 = evaluated(pair.jax_run("float32"), batch, draws, gradient=gradient)
            noise = [_torch(pair, "float64", batch, draws, moved)[0] for moved in (1, 2)]
            found = first_difference(pair, followed, (torch32, torch64), jax64, jax32, noise)
    except InputError as error:
        return f"the {name} side fails with it ({short(error)})"
    except Exception as error:  # noqa: BLE001 - the first question has its answer
        bugs.report("trying another batch size and mode", error)
        return "it could not be tried"
    return found


def short(error: InputError) -> str:
    """Give the first line of an error, at most 100 characters of it."""
    return textwrap.shorten(str(error).partition("\n")[0], 100, placeholder=" ...")


def first_difference(
    pair: CommonPair,
    followed: Followed,
    torch: tuple[Observation, Observation],
    jax64: Observation,
    jax32: Observation | None = None,
    noise: Sequence[Observation] = (),
    but: Collection[Stage] = (),
) -> Divergence | None:
    """Weigh what both sides show, torch in both precisions, and give the first thing that decides and differs.

    Args:
        pair: Both sides.
        followed: What the first question has shown.
        torch: What torch shows in float32 and in float64.
        jax64: What the JAX side shows in float64.
        jax32: In float32, once something differs.
        noise: What torch shows in float64 where it is moved by rounding, once something differs.
        but: Stages that are left out.

    """
    before = {(each.stage, each.torch): float(each.expected.max()) for each in followed.quantities if each.decides}
    torch32, torch64 = torch
    for pairing in pair.align(torch64, jax64, {}).pairings:
        # What the first question has left out, such as an output that the loss makes up for, is left out here too.
        if not pairing.decides or pairing.stage in but or (pairing.stage, pairing.torch) not in before:
            continue
        quantity = Quantity(pairing.stage, pairing.torch, pairing.jax)
        ours32, ours, theirs = shown(pairing.torch_array, torch32), *_both(pairing, torch64, jax64)
        if ours32 is None or ours is None or theirs is None:
            continue
        operands = pairing.operands(torch64) if pairing.operands else None
        quantity.add_torch(ours32, ours, operands)
        quantity.add_difference(theirs, ours, operands)
        if jax32 is not None:
            quantity.add_jax(pairing.jax_array(jax32), theirs)
        for each in noise:
            quantity.add_moved(quantity.noise, 0, pairing.torch_array(each), ours)
        known = before[pairing.stage, pairing.torch]
        # Rounding of one step with another shape, and that of the whole first question: it must be beyond both.
        if quantity.ratio[0] > FACTOR and quantity.error64[0] > FACTOR * known:
            where = pairing.stage, pairing.torch, pairing.jax
            rounding = float(quantity.rounding[0])
            expected = max(known, float(quantity.expected[0]))
            return Divergence(0, *where, quantity.error64[0], rounding, expected, question="with another batch size")
    return None


def _both(pairing: Any, torch64: Observation, jax64: Observation) -> tuple[np.ndarray | None, np.ndarray | None]:
    return shown(pairing.torch_array, torch64), shown(pairing.jax_array, jax64)
