"""Pairs all values of one step of two programs, in the order in which torch computed them."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compare.alignment.forward import align_modules
from compare.alignment.optimizer_state import Settings, align_state, shared_start
from compare.alignment.pairings import Alignment, NotCompared, Pairing, align_tensors
from compare.errors import InputError
from compare.step.layouts import AS_IT_IS, CHANNELS_LAST, ActivationLayouts
from compare.step.observation import FIRST_UPDATE, Observation, to_numpy
from compare.step.stage import Stage
from compare.weights.links import Link, WeightMap

_NO_GRADIENT = (
    'the JAX step passes this gradient to no nnx.Optimizer and no TrainState: return it as "gradients" to compare it'
)

_OTHER_EXAMPLES = "the other side's module takes a different number of examples"

_IN_PARTS = "the JAX step gives its optimizer several gradients for one of torch's: only the updates are compared"


def align_program(
    links: WeightMap,
    torch: Observation,
    jax: Observation,
    kinds: tuple[Mapping[str, str], Mapping[str, str]],
    settings: Mapping[str, Settings],
) -> Alignment:
    """Pair what half a step of both programs shows.

    Args:
        links: Which tensor of the state is which.
        torch: Half a step of the torch side in float64.
        jax: The same half of the JAX side.
        kinds: The class of each module that ran, by path, on the torch and on the JAX side.
        settings: Of torch's optimizers, for each parameter.

    """
    pairings, not_compared = _of_equal_batches(*align_modules(links, torch, jax, kinds), torch, jax)
    pairings += _losses(torch, jax)
    shown, left = _shown(torch, jax)
    pairings += shown
    gradients, alone = _gradients(links, torch, jax)
    pairings += gradients
    slots, rest = _slots(links, torch, jax, settings)
    pairings += slots
    for stage, field in (
        (Stage.UPDATE, "updates"),
        (Stage.PARAMETERS, "parameters"),
        (Stage.BUFFERS, "buffers"),
        (Stage.STATE, "state"),
    ):
        pairings += align_tensors(stage, field, links, torch, jax)
    pairings += _counts(torch, jax)
    apart = [NotCompared("torch", name, reason) for name, reason in links.apart.items() if name in torch.state]
    return Alignment(_in_order(pairings, torch), not_compared + left + alone + rest + apart)


def _of_equal_batches(
    pairings: list[Pairing], not_compared: list[NotCompared], torch: Observation, jax: Observation
) -> tuple[list[Pairing], list[NotCompared]]:
    """Leave out what modules make of other numbers of examples.

    One side may slice a batch where the other masks it in its loss, which is what is then compared.
    """

    def is_other(pairing: Pairing) -> bool:
        if pairing.ports is None or pairing.to_jax is not None:
            return False
        ours, theirs = np.shape(pairing.torch_array(torch)), np.shape(pairing.jax_array(jax))
        return len(ours) == len(theirs) > 1 and ours[0] != theirs[0] and ours[1:] == theirs[1:]

    other = [pairing for pairing in pairings if is_other(pairing)]
    left = [pairing for pairing in pairings if not any(pairing is each for each in other)]
    return left, [*not_compared, *(NotCompared("torch", each.torch, _OTHER_EXAMPLES) for each in other)]


def _losses(torch: Observation, jax: Observation) -> Iterator[Pairing]:
    for side, seen, other in (("torch", torch, jax), ("JAX", jax, torch)):
        if seen.loss is None and other.loss is not None:
            names = ", ".join(map(repr, seen.shown)) or "nothing"
            raise InputError(
                f'the {side} step returns {names} and no "loss", which the other side\'s step returns: use the '
                "same name on both sides"
            )
    if torch.loss is not None and jax.loss is not None:
        yield Pairing(Stage.LOSS, "loss", "loss", lambda seen: to_numpy(seen.loss), lambda seen: to_numpy(seen.loss))


def _shown(torch: Observation, jax: Observation) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair what both steps show by name."""
    layouts = ActivationLayouts((), torch, jax)

    def pairing(name: str) -> Pairing:
        def read(seen: Observation) -> np.ndarray:
            return to_numpy(seen.shown[name])

        ours, theirs = read(torch), read(jax)
        layout = layouts(ours, theirs, may_be_flattened=False) or AS_IT_IS.layout
        # Another order must be the port's own, as of images: attention by keys and queries may be a fault.
        images = ours.ndim > 3 and ours.shape != theirs.shape and layout.name == CHANNELS_LAST.name
        if not images and (ours.ndim, layout.name) not in layouts.known:
            layout = AS_IT_IS.layout
        return Pairing(Stage.SHOWN, name, name, read, lambda seen: layout.to_torch(read(seen)))

    both = [name for name in torch.shown if name in jax.shown]
    left = [
        NotCompared(side, name, "the other side's step returns nothing of that name")
        for side, seen in (("torch", torch), ("jax", jax))
        for name in seen.shown
        if name not in both
    ]
    return [pairing(name) for name in both], left


def _counts(torch: Observation, jax: Observation) -> Iterator[Pairing]:
    """Pair the integers of both states by path."""

    def reader(name: str) -> Callable[[Observation], np.ndarray]:
        return lambda seen: np.asarray(seen.counts[name], np.float64)

    for name in torch.counts:
        partner = name.replace(".", "/")
        if partner in jax.counts and np.shape(torch.counts[name]) == np.shape(jax.counts[partner]):
            yield Pairing(Stage.STATE, name, partner, reader(name), reader(partner))


def _gradients(links: Sequence[Link], torch: Observation, jax: Observation) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair the gradients that optimizers are given; a parameter has several where it is updated several times."""
    numbers = sorted({name.partition("#")[2] for name in torch.gradients})
    # An optimizer that gets each micro-batch by itself, as behind optax.MultiSteps, gets no gradient of torch's.
    two = (link.torch for link in links if f"{link.jax}#2" in jax.gradients)
    parts = {name for name in two if f"{name}#2" not in torch.gradients}
    each = [
        dataclasses.replace(link, torch=_numbered(link.torch, number), jax=_numbered(link.jax, number))
        for number in numbers
        for link in links
        if link.torch not in parts
    ]
    pairings = list(align_tensors(Stage.GRADIENT, "gradients", each, torch, jax))
    met = {link.torch for link in each if link.torch in torch.gradients and link.jax in jax.gradients}
    return pairings, [
        NotCompared("torch", f"gradient of {name}", _IN_PARTS if name in parts else _NO_GRADIENT)
        for name in torch.gradients
        if name not in met
    ]


def _numbered(name: str, number: str) -> str:
    return f"{name}#{number}" if number else name


def _slots(
    links: Sequence[Link], torch: Observation, jax: Observation, settings: Mapping[str, Settings]
) -> tuple[list[Pairing], list[NotCompared]]:
    """Pair the optimizers' states."""
    names = slot_names(links, torch, jax)
    full = jax._replace(optimizer={name: jax.optimizer[own] for name, own in names.items()})
    pairings, not_compared = align_state(links, torch, full, settings)

    def read(pairing: Pairing, seen: Observation) -> np.ndarray:
        return pairing.jax_array(seen._replace(optimizer={pairing.jax: seen.optimizer[names[pairing.jax]]}))

    return [pairing._replace(jax_array=functools.partial(read, pairing)) for pairing in pairings], not_compared


def slot_names(links: Sequence[Link], torch: Observation, jax: Observation) -> dict[str, str]:
    """Give, for each array of the JAX optimizers' states, its own name by its name with its parameter's full path."""
    return dict(_with_parameters(links, torch, jax))


def _with_parameters(links: Sequence[Link], torch: Observation, jax: Observation) -> Iterator[tuple[str, str]]:
    """Name each array of the JAX optimizers' states by its parameter's full path at the end.

    An optimizer names a parameter by its path within the model that it trains: "mu/fc1/kernel". If several models of
    the state have such a parameter, choose the one that torch's optimizers train and whose name is most similar.
    """
    trained = {link.jax for link in links if link.torch in torch.updates}
    named = {name: _parameters(name, value, trained, jax.updates) for name, value in jax.optimizer.items()}
    # An optimizer of a single array has no path to it: "mu" is the moment of the only parameter that is left.
    left = trained & jax.updates.keys() - {parameter for parameters in named.values() for parameter in parameters}
    for name, parameter in _by_the_others(named).items():
        value = jax.optimizer[name]
        alone = [each for each in left if not named[name] and np.shape(jax.updates[each]) == np.shape(value)]
        if len(alone) == 1 and getattr(value.dtype, "kind", "") == "f":  # random keys have no kind
            yield f"{name}/{alone[0]}", name
            continue
        if parameter is None or name.endswith(f"/{parameter}"):
            yield name, name
            continue
        # By whole components: "mu/1/kernel" ends in "kernel" as "q1/kernel" does, and not in "1/kernel".
        keys = parameter.split("/")
        ends = ("/".join(keys[n:]) for n in range(len(keys)))
        shared = next((end for end in ends if name.endswith(f"/{end}")), "")
        yield f"{name.removesuffix(shared)}{parameter}", name


def _by_the_others(named: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Choose among the parameters that each array may belong to: one of the model that its optimizer trains.

    A generator and a discriminator may both have a first layer of 64 units. The layers that only one of them has show
    which is trained by which optimizer. None where there is no parameter, or still a choice.
    """
    known = {name: parameters[0] for name, parameters in named.items() if len(parameters) == 1}

    def chosen(name: str, parameters: Sequence[str]) -> str | None:
        near = {other: shared_start(name, other) for other in known}
        most = max(near.values(), default=0)
        models = {known[other].partition("/")[0] for other, shared in near.items() if shared == most > 0}
        own = [parameter for parameter in parameters if parameter.partition("/")[0] in models]
        return own[0] if len(own) == 1 else None

    return {name: known.get(name) or chosen(name, parameters) for name, parameters in named.items()}


def _parameters(name: str, value: Any, trained: set[str], parameters: Mapping[str, Any]) -> list[str]:
    """Find the parameters that an array of an optimizer's state may belong to: the longest common end, of its shape.

    Of several, those are meant that lie with the optimizer, as in one `TrainState`, or are called as it is.
    """
    found: list[tuple[tuple[int, bool, bool, int, int], str]] = []
    keys = name.split("/")
    for parameter in parameters:
        path = parameter.split("/")
        # How many components agree, counted from the end.
        common = next((n for n in range(len(path)) if keys[-n - 1 :][:1] != path[-n - 1 :][:1]), len(path))
        if not common or np.shape(value) != np.shape(parameters[parameter]):
            continue
        # A number alone is a place in a tuple, which says nothing of models that are called "q1" and "q2".
        around, before = [key for key in keys[: len(keys) - common] if not key.isdigit()], path[: len(path) - common]
        beside = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(around, before, strict=False)))
        # An optimizer under the very name of a model is the model's, whether torch trains that yet or not.
        named = bool(before) and before[-1] in around
        found.append(((common, named, parameter in trained, beside, _likeness(around, before)), parameter))
    best = max((score for score, _ in found), default=None)
    chosen = [parameter for score, parameter in found if score == best]
    if len({parameter.partition("/")[0] for parameter in chosen}) == 1:
        # Of one model, as "model/norm" and "model/blocks/0/norm": an optimizer has the whole path within the model.
        depth = min(parameter.count("/") for parameter in chosen)
        return [parameter for parameter in chosen if parameter.count("/") == depth]
    return chosen


def _likeness(keys: Iterable[str], path: Iterable[str]) -> int:
    """Count the words that the paths of an optimizer and of a model share."""

    def words(parts: Iterable[str]) -> set[str]:
        return {word for part in parts for word in re.findall(r"[a-z]+|\d+", part.lower())}

    return len(words(keys) & words(path))


def _in_order(pairings: list[Pairing], torch: Observation) -> list[Pairing]:
    """Sort by when torch computed each: modules, gradients and updates as they were seen, the rest at the end."""
    end = max(torch.order.values(), default=0) + 1
    first_gradient = min((rank for (stage, _), rank in torch.order.items() if stage == Stage.GRADIENT), default=end)

    def rank(pairing: Pairing) -> float:
        if pairing.ports is not None:
            return torch.order.get((Stage.FORWARD, pairing.ports[0]), end)
        if pairing.stage == Stage.LOSS and (Stage.LOSS, "loss") not in torch.order:  # before the gradients, then
            return first_gradient - 0.5
        name = pairing.subjects(0)[0].partition("[")[0] if pairing.link is None else pairing.link.torch
        return torch.order.get((pairing.stage, name), end)

    # What is computed after a first update, as the generator's loss after the discriminator's step, has
    # both sides' rounding of that update in it. Its imbalance says nothing about its own precision then:
    # `Quantity.rounds_alone`.
    updated = torch.order.get(FIRST_UPDATE, end)
    ranked = [each._replace(rank=rank(each), after_update=rank(each) > updated) for each in pairings]
    return sorted(ranked, key=lambda pairing: pairing.rank)
