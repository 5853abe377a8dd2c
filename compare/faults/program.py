"""Faults that a training can have: `faults` lists them in every place, and `shuffled` chooses at random.

Those of a program's step are in `step.py`. What may go wrong in a function of torch is what `counterfactuals` knows.
"""

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.diagnosis.counterfactuals import FUNCTIONS, Counterfactual, counterfactuals
from compare.diagnosis.rewriting import Call, Rewrite, Window, rewriting
from compare.diagnosis.steps.again import is_users
from compare.errors import InputError
from compare.faults.optimizer import of_clipping, of_optimizer, of_schedule
from compare.faults.planted_run import SIZE, AnyRun, Fault, PlantedProgramRun, PlantedRun, Site, other, shown
from compare.faults.step import of_step
from compare.step.batch import mapped
from compare.step.draws import Draw
from compare.torch_side.control import ControlledRun
from compare.torch_side.record import Record

if TYPE_CHECKING:
    import torch

FIRST = (
    *("weight", "epsilon", "momentum", "learning rate", "shifted schedule", "stale buffer", "bias left out"),
    *("swapped weights", "dropout rate", "loss", "stopped gradient", "frozen parameter", "order of batches"),
    *("clipping", "mask", "schedule", "state", "gradient", "gradients not zeroed", "second update"),
)
"""The kinds that come before others, where there are too many."""


def shuffled(candidates: Sequence[Fault], rng: np.random.Generator) -> Iterator[list[Fault]]:
    """Give the places of each kind in a random order, kind after kind and round after round, until all are taken.

    Whoever takes them removes them from the lists. The kinds of `FIRST` come first, the others in a random order.
    """
    kinds: dict[str, list[Fault]] = {}
    for fault in candidates:
        kinds.setdefault(fault.kind, []).append(fault)
    for kind, places in kinds.items():
        kinds[kind] = [places[i] for i in rng.permutation(len(places))]
    others = [kind for kind in kinds if kind not in FIRST]
    order = [*(kind for kind in FIRST if kind in kinds), *(others[i] for i in rng.permutation(len(others)))]
    while any(kinds.values()):
        yield from (kinds[kind] for kind in order if kinds[kind])


def faults(
    make: Callable[[str], AnyRun], batches: Sequence[Any], draws: Sequence[Draw], rng: np.random.Generator
) -> list[Fault]:
    """List what can be wrong in a training, in every place.

    Args:
        make: Starts a run of the torch side in a precision.
        batches: All of them.
        draws: The random numbers of the first step.
        rng: Chooses which element of a parameter is wrong.

    """
    run, once, record = make("float64"), make("float64"), Record()
    with ControlledRun(lift=True, replay=draws):
        seen = once.step(batches[0], record)
    found = [*_of_weights(run, rng), *_of_buffers(make, batches[0], rng), *_of_batches(batches), *_of_masks(batches)]
    trained = True
    if isinstance(run, PlantedProgramRun):
        found += of_step(run, seen)
    elif trained := run.loss is not None:
        found.append(Fault("loss", f"loss times {1 + SIZE:.7g}", "loss", _longer_loss))
    found += _of_gradients(run, record.modules) if trained else ()
    for path in run.optimizers:
        found += of_optimizer(run, path)
    if isinstance(run, PlantedRun) and run.optimizer is not None:
        found += of_clipping(once) if isinstance(once, PlantedRun) else ()
        found += of_schedule(make)
    found += _of_functions(make, batches[0], draws, gradient=trained)
    return found


def _of_weights(run: AnyRun, rng: np.random.Generator) -> Iterator[Fault]:
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, param in run.parameters.items():
        if param.numel():
            yield _element("weight", name, param, rng, run)
        if param.numel() > 1:
            alike.setdefault((name.rpartition(".")[2], *param.shape), []).append(name)
    for names in alike.values():
        # Weights of one shape and role are the ones that a conversion confuses. Neighbours suffice: n faults
        # and not n²/2.
        for pair in itertools.pairwise(names):

            def swap(run: AnyRun, _: float, pair: tuple[str, str] = pair) -> None:
                a, b = (run.parameters[name].data for name in pair)
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)

            equal = run.parameters[pair[0]].equal(run.parameters[pair[1]])
            unread = "both are equal, as they often are before training: use trained weights" if equal else ""
            yield Fault("swapped weights", "swapped weights", " and ".join(pair), swap, sized=False, unread=unread)


def _element(kind: str, name: str, tensor: "torch.Tensor", rng: np.random.Generator, run: AnyRun) -> Fault:
    """Change one element by a millionth of itself."""
    at = tuple(int(rng.integers(size)) for size in tensor.shape)

    def plant(run: AnyRun, times: float) -> None:
        array = {**run.parameters, **dict(run.model.named_buffers())}[name].data
        value = float(array[at])
        # Rounded to float32, so that the runs in both precisions start from the same value.
        array[at] = float(np.float32(value + times * SIZE * (abs(value) or 1.0)))

    module, index = name.rpartition(".")[0], ", ".join(map(str, at))
    lookup = type(run.model.get_submodule(module)).__name__ == "Embedding"
    unread = f"row {at[0]} of {name} is in no batch" if lookup else f"nothing in these batches reads {name}[{index}]"
    return Fault(kind, f"{kind} off by {SIZE:.0e} of itself", f"{name}[{index}]", plant, unread=unread)


def _of_buffers(make: Callable[[str], AnyRun], batch: Any, rng: np.random.Generator) -> Iterator[Fault]:
    """Change a buffer at the start, or leave out what is written to it: in train mode, at least."""
    run = make("float64")
    before = {name: array.clone() for name, array in run.model.named_buffers() if array.is_floating_point()}
    with ControlledRun(lift=True), contextlib.suppress(InputError):  # which may be too small for train mode
        if isinstance(run, PlantedProgramRun):
            run.step(batch)
        else:
            run.model.train()
            run.forward(batch)
    after = dict(run.model.named_buffers())
    for name, array in before.items():
        if not array.numel():
            continue
        yield _element("buffer", name, array, rng, run)
        if array.equal(after[name]):
            continue

        def stale(run: AnyRun, _: float, name: str = name) -> None:
            path, leaf = name.rpartition(".")[::2]
            module, kept = run.model.get_submodule(path), run.model.get_buffer(name).clone()
            # Put in its place, and not written to it: the backward pass may still read what was there.
            run.model.register_forward_hook(lambda *_: setattr(module, leaf, kept.clone()))

        yield Fault("stale buffer", "buffer never updated", name, stale, sized=False)


def _of_batches(batches: Sequence[Any]) -> Iterator[Fault]:
    first, second = batches[0], batches[-1] if len(batches) < 3 else batches[1]

    def exchange(run: AnyRun, _: float) -> None:
        run.exchanged = {id(first): second, id(second): first}

    unread = "there is only one batch: give two" if len(batches) == 1 else "these two batches are equal"
    yield Fault("order of batches", "first two batches exchanged", "batches", exchange, sized=False, unread=unread)


def _of_masks(batches: Sequence[Any]) -> Iterator[Fault]:
    """Let flags in the batches, such as a mask, be set throughout."""
    leaves: list[np.ndarray] = []
    mapped(batches[0], lambda leaf: leaves.append(leaf) if isinstance(leaf, np.ndarray) else None)
    for number, leaf in enumerate(leaves):
        if leaf.size < 2 or leaf.dtype.kind not in "bif" or not np.isin(leaf, (0, 1)).all():
            continue

        def fill(run: AnyRun, _: float, number: int = number) -> None:
            run.exchanged = {id(batch): _filled(batch, number) for batch in batches}

        unread = "no batch has one that is not set, or nothing reads them: give such a batch"
        where = f"array {number} of the batches"
        yield Fault("mask", "flags that are all set", where, fill, sized=False, unread=unread)


def _filled(batch: Any, number: int) -> Any:
    """Set all elements of one array of a batch."""
    numbers = itertools.count()

    def other(leaf: Any) -> Any:
        return np.ones_like(leaf) if isinstance(leaf, np.ndarray) and next(numbers) == number else leaf

    return mapped(batch, other)


def _longer_loss(run: PlantedRun, times: float) -> None:
    loss = run.loss
    assert loss is not None
    run.loss = lambda output, target: loss(output, target) * (1 + times * SIZE)


def _of_gradients(run: AnyRun, ran: Container[str]) -> Iterator[Fault]:
    for path, module in run.model.named_modules():
        if not path or path not in ran or any(True for _ in module.children()):
            continue

        def stop(run: AnyRun, _: float, path: str = path) -> None:
            def detached(module: Any, args: Any, output: Any) -> Any:
                del module, args
                return mapped(output, lambda leaf: leaf.detach() if hasattr(leaf, "detach") else leaf)

            run.model.get_submodule(path).register_forward_hook(detached)

        yield Fault("stopped gradient", "gradient stopped", f"after {path}", stop, sized=False)


def _of_functions(
    make: Callable[[str], AnyRun], batch: Any, draws: Sequence[Draw], *, gradient: bool
) -> Iterator[Fault]:
    run = make("float64")
    program = isinstance(run, PlantedProgramRun)
    calls: list[Call] = []
    users: list[bool] = []
    """Whether the user's code makes each, and neither an optimizer nor this package."""

    def listed(call: Call) -> Any:
        # A fault may be planted wherever it can be.
        calls.append(replace(call, takes_targets=lambda: True))
        users.append(not program or bool(call.module) or is_users(sys._getframe(1)))
        return call.run()

    with (
        rewriting(Window(), run.overwritten, lambda _: listed, FUNCTIONS) as record,
        ControlledRun(lift=True, replay=draws),
    ):
        # Of a model without the update: the optimizer's calls are none of the model's.
        run.step(batch, record) if isinstance(run, PlantedProgramRun) else run.backward(batch, record)
    counts: Counter[tuple[str, str]] = Counter()
    sites = []
    for call in calls:
        sites.append(Site(call.name, call.module, counts[call.name, call.module]))
        counts[call.name, call.module] += 1
    for of_gradient in (False, True)[: 1 + gradient]:
        for each in counterfactuals(calls, gradient=of_gradient):
            if not each.may_be_torchs and users[each.number]:
                yield _of_function(each, sites[each.number], gradient=of_gradient)


def _of_function(each: Counterfactual, site: Site, *, gradient: bool) -> Fault:
    def rewrite(times: float) -> Rewrite:
        if each_of is None or value is None:
            return fixed
        return each_of(other(setting, value, times))

    def plant(run: AnyRun, times: float) -> None:
        run.rewrites[site] = rewrite(times)

    # The closures keep nothing of the call, whose arguments are activations of the whole batch.
    value, each_of, fixed = each.value, each.of, each.rewrite
    setting = {"epsilon": "eps"}.get(each.name, each.name)
    does = each.short or each.jax_does
    if each_of is not None and value is not None:
        does = f"{shown(value)} → {shown(other(setting, value, 1.0))}"
    where = f"{site.function} in {site.module}" if site.module else site.function
    fault = Fault(each.name, f"{each.name}: {does}", where, plant, each_of is not None)
    if each.name in _UNREAD:
        return fault._replace(unread=_UNREAD[each.name])
    # Of a layer that is off, or that has statistics, what it gives is not all.
    shows = not gradient and "training" not in each.call
    return fault._replace(
        unread=f"{site.function} returns the same with the fault, on these batches",
        computes=(site, rewrite(1.0)) if shows else None,
    )


_UNREAD = {
    "bias left out": "the bias is 0, as it often is before training: use trained weights",
    "scale left out": "the scale is 1, as it often is before training: use trained weights",
    "gradient at a tie": "no input is at the tie, or none that has a gradient",
    "padding row": "no batch holds the padding index",
    "ignored labels": "no target is to be ignored",
    "padding value": "no window has its largest value in the padding",
    "rounding of halves": "no input is a half",
    "rounding": "all inputs are integers",
}
"""What must be so where a fault of this kind changes nothing."""
