"""Faults: a port built from another specification, what the fault does, and where a comparison should find it."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from compare.numerics.distance import EPSILON64
from compare.verdict.divergence import Divergence

from .layers import ACTIVATIONS, FUNCTIONS
from .specification import Layer, Specification
from .training import batches, torch_side
from .unknown import FUNCTIONS as UNKNOWN_FUNCTIONS
from .unknown import LOSSES as UNKNOWN_LOSSES

LEARNING_RATE = 1e-5
"""How much a learning rate is off, relative to itself."""
EPSILONS = {1e-3: 1e-5, 1e-5: 1e-6, 1e-6: 1e-5, 1e-8: 1e-7}
"""What another epsilon is mistaken for."""
POWER = 100.0
"""A fault whose effect is less than this many times that of a change of the weights in their last place is no fault."""

CAUSES = {
    "epsilon": "epsilon",
    "learning rate": "learning rate",
    "activation": "activation|slope|alpha|beta|another operation",
    "statistic": "stale statistics|biased running variance|mode of a normalization",
    "only weight": "operation added",  # another number is a factor then, which the port's program has
    # "Has the weight transposed in linear", where a function such as attention calls linear.
    "transposed": "transposed weight|another operation",
}
"""What names the cause of a fault of a kind. Any other cause that is printed is false."""

Path = tuple[int, ...]


class Place(NamedTuple):
    """Where a fault is: the stage, and on both sides a name, or how it begins where it ends in "*"."""

    stage: str
    torch: str
    jax: str

    def names(self, divergence: Divergence) -> bool:
        """Tell whether a divergence is here."""
        named = zip((self.torch, self.jax), (divergence.torch, divergence.jax), strict=True)
        return self.stage == divergence.stage and all(
            found.startswith(place[:-1]) if place.endswith("*") else found == place for place, found in named
        )


class Fault(NamedTuple):
    """What is wrong on the JAX side, and where."""

    kind: str
    layer: str
    """The kind of layer, or of optimizer, that has it."""
    specification: Specification
    """From which the JAX side is built."""
    places: tuple[Place, ...]
    """Where a comparison may find it first: in the forward pass, or where that is blind to it in the gradients next to
    it. A function that is wrong in its slope alone is one case, a weight that meets only zeros another."""


def names_the_fault(cause: str, kind: str) -> bool:
    """Tell whether the name of a cause is one of a planted fault. Of an unknown one nothing is."""
    return bool(re.fullmatch(CAUSES.get(kind, "(?!)"), cause))


@st.composite
def unknown_faults(draw: st.DrawFn, specification: Specification) -> Fault:
    """Draw a fault that no table of causes knows: a function behind a layer, or another loss."""
    regression = specification.loss not in ("cross entropy", "binary")
    losses = [name for name in UNKNOWN_LOSSES if (name == "focal") != regression and specification.loss != "binary"]
    at_loss: bool = draw(st.booleans())
    if losses and at_loss:
        changed = dataclasses.replace(specification, loss=draw(st.sampled_from(losses)))
        return Fault("unknown loss", specification.loss, changed, (Place("loss", "*", "*"),))
    places = [(path, layer) for path, layer in _layers(specification.layers) if not layer.inner]
    path, layer = draw(st.sampled_from(places))
    change = {"unknown": draw(st.sampled_from(sorted(UNKNOWN_FUNCTIONS)))}
    return Fault("unknown function", layer.kind, _changed(specification, path, change), (Place("forward", "*", "*"),))


@st.composite
def faults(draw: st.DrawFn, specification: Specification) -> Fault:
    """Draw a fault: first its kind, of those that the program can have, then its place and its size."""
    candidates: dict[str, list[Fault]] = {}
    for fault in (*_of_optimizer(specification), *_of_layers(draw, specification)):
        candidates.setdefault(fault.kind, []).append(fault)
    return draw(st.sampled_from(candidates[draw(st.sampled_from(sorted(candidates)))]))


def _of_optimizer(specification: Specification) -> Iterator[Fault]:
    settings, places = specification.optimizer, (Place("update", "*", "*"),)
    changes: dict[str, dict[str, Any]] = {
        "learning rate": {"learning_rate": settings.learning_rate * (1 + LEARNING_RATE)}
    }
    if settings.kind in ("adam", "adamw", "rmsprop", "adamax", "adagrad"):
        changes["epsilon"] = {"epsilon": EPSILONS[settings.epsilon]}
    for kind, change in changes.items():
        optimizer = dataclasses.replace(settings, **change)
        yield Fault(kind, settings.kind, dataclasses.replace(specification, optimizer=optimizer), places)


def _of_layers(draw: st.DrawFn, specification: Specification) -> Iterator[Fault]:
    element, other = draw(st.floats(0, 1)), draw(st.sampled_from(sorted(ACTIVATIONS)))
    before: Path | None = None
    for path, layer in _layers(specification.layers):
        if layer.inner:
            continue
        here = _forward(path, layer)
        gradients = [_gradients(each) for each in (before, path) if each is not None]
        for kind, change in _changes(layer, element, other, training=specification.training):
            places = [here, *gradients]
            if kind == "activation":
                places[0] = _between(specification.layers, path)
            elif kind == "statistic" and specification.training:
                places = [Place("buffers", f"{here.torch}.running_*", f"{here.jax}/*")]
            yield Fault(kind, layer.kind, _changed(specification, path, change), tuple(places))
        if layer.kind not in FUNCTIONS and layer.kind != "dropout":
            before = path


def _gradients(path: Path) -> Place:
    return Place("gradient", f"{_named(path, '.')}.*", f"{_named(path, '/')}/*")


def _changes(layer: Layer, element: float, other: str, *, training: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what can be wrong with a layer."""
    if layer.kind in ACTIVATIONS:
        if layer.kind != other:
            yield "activation", {"kind": other}
        return
    if layer.kind in FUNCTIONS or layer.kind == "dropout" or layer.inner:
        return
    one = layer.features == 1 and (layer.kind.endswith(" norm") or (layer.kind, layer.shape[-1]) == ("linear", 1))
    yield "only weight" if one else "weight", {"altered": "perturbed", "element": element}
    if layer.kind.endswith(" norm"):
        yield "epsilon", {"epsilon": EPSILONS[layer.epsilon]}
    if layer.kind == "batch norm":
        yield "statistic", {"updated": False}
        if training:
            yield "statistic", {"unbiased": False}
    sizes = {
        "linear": (layer.features, layer.shape[-1]),
        "attention": (layer.features, layer.features),
        "conv": layer.kernel[:1] * (len(layer.shape) - 1),
    }.get(layer.kind, ())
    if len(sizes) == 2 and sizes[0] == sizes[1] > 1:
        yield "transposed", {"altered": "transposed"}


def _layers(layers: Sequence[Layer], path: Path = ()) -> Iterator[tuple[Path, Layer]]:
    for number, layer in enumerate(layers):
        yield (*path, number), layer
        yield from _layers(layer.inner, (*path, number))


def _changed(specification: Specification, path: Path, change: dict[str, Any]) -> Specification:
    def changed(layers: tuple[Layer, ...], path: Path) -> tuple[Layer, ...]:
        first, *rest = path
        layer = layers[first]
        new = dataclasses.replace(layer, **({"inner": changed(layer.inner, tuple(rest))} if rest else change))
        return (*layers[:first], new, *layers[first + 1 :])

    return dataclasses.replace(specification, layers=changed(specification.layers, path))


def _named(path: Path, separator: str) -> str:
    return separator.join(f"layer{number}" for number in path) or "the model"


def _forward(path: Path, layer: Layer) -> Place:
    inside = ("attention",) if layer.kind == "attention" else ()
    torch, jax = (separator.join([_named(path, separator), *inside]) for separator in "./")
    return Place("forward", torch, jax)


def _between(layers: Sequence[Layer], path: Path) -> Place:
    """Name the two modules around a function."""

    def ports(layers: Sequence[Layer], outer: Path) -> Iterator[tuple[Path, str]]:
        yield outer, "input"
        for number, layer in enumerate(layers):
            here = (*outer, number)
            if layer.inner:
                yield from ports(layer.inner, here)
            elif layer.kind in FUNCTIONS:
                yield here, "function"
            else:
                yield from [(here, "input"), (here, "output")]
        yield outer, "output"

    order = list(ports(layers, ()))
    at = order.index((path, "function"))
    before = next(port for port in order[at::-1] if port[1] != "function")
    after = next(port for port in order[at:] if port[1] != "function")

    def between(separator: str) -> str:
        start = ("the start of " if before[1] == "input" else "") + _named(before[0], separator)
        end = ("the end of " if after[1] == "output" else "") + _named(after[0], separator)
        return f"between {start} and {end}"

    if before[0] == after[0]:
        return Place("forward", _named(before[0], "."), _named(before[0], "/"))
    return Place("forward", between("."), between("/"))


def effect(specification: Specification, fault: Fault) -> float:
    """Measure what a fault does, on the torch side alone and in float64.

    Returns:
        The largest change of an output or a loss, of the parameters for the optimizer's settings, of the running
        statistics for a fault in these; beside what a change of the weights in their last place does to it.

    """
    what = {"update": "parameters", "buffers": "buffers"}.get(fault.places[0].stage, "outputs")
    right, wrong = _trajectory(specification, what), _trajectory(fault.specification, what)
    noisy = [_trajectory(specification, what, noise=seed) for seed in (1, 2, 3)]
    largest = 0.0
    for base, altered, *others in zip(right, wrong, *noisy, strict=True):
        size = float(np.linalg.norm(base))
        rounding = max([4 * EPSILON64 * size, *(float(np.linalg.norm(other - base)) for other in others)])
        change = float(np.linalg.norm(altered - base))
        if change:
            largest = max(largest, change / rounding if rounding else np.inf)
    return largest


def _trajectory(specification: Specification, what: str, *, noise: int = 0) -> list[np.ndarray]:
    """Train the torch side in float64; give what is asked for at each step.

    `noise` is the seed of a change of weights and data in their last place, 0 for none.
    """
    side = torch_side(specification)
    assert side.loss
    assert side.optimizer
    model = side.model.double()
    generator = torch.Generator().manual_seed(noise)

    def noisy(tensor: torch.Tensor) -> torch.Tensor:
        if not noise or not tensor.is_floating_point():
            return tensor
        return tensor * (1 + EPSILON64 * (torch.randint(9, tensor.shape, generator=generator) - 4))

    with torch.no_grad():
        for param in model.parameters():
            param.copy_(noisy(param))
    optimizer = side.optimizer(model.parameters())
    data = [tuple(map(torch.from_numpy, batch)) for batch in batches(specification)]
    data = [tuple(noisy(t.double()) if t.is_floating_point() else t for t in batch) for batch in data]
    seen: list[torch.Tensor] = []
    with torch.random.fork_rng():
        torch.manual_seed(specification.seed)  # of dropout
        for step in range(specification.steps):
            inputs, target = data[step % len(data)]
            output = model(inputs)
            loss = side.loss(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shown = {"outputs": [output, loss], "parameters": model.parameters(), "buffers": model.buffers()}[what]
            seen += [tensor.detach().double().clone() for tensor in shown]
    return [tensor.numpy() for tensor in seen]
