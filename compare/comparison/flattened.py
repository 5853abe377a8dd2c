"""Finds the linear layers whose input image the port flattens in another order than torch.

Torch flattens (channels, height, width), and a port with channels last often (height, width, channels). Both are right
if the weights follow. A run of both models shows which order the port uses: in evaluation mode, where nothing is
dropped, and from random weights, because zeros are the same in any order.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from compare.alignment.forward import align_modules
from compare.alignment.partners import Kinds
from compare.comparison.channels import channels_and_points
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.numerics.distance import distance
from compare.step.arguments import Names
from compare.step.batch import Batch
from compare.step.layouts import NEAR, flattened
from compare.step.observation import Observation, Port, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.layers import layer_kinds
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun
from compare.torch_side.side import Torch
from compare.weights.links import WeightMap, to_jax

Features = dict[str, tuple[int, ...]]
"""For each linear layer, by path, the channels and points that it takes in the port's order; () in torch's order."""

SMOOTH = 0.25
"""Below this part of the ratio of unrelated numbers, one array is a function of the other: see `_is_function`."""


class FlattenedFeatures:
    """One run of torch's model, and runs of the port's from the same weights under different maps.

    Args:
        torch: The original.
        jax: The port.
        batch: What both take.
        device: Of the torch side.
        kinds: The class of each module that runs on either side.
        names: Of the arguments of each module.

    """

    def __init__(
        self, torch: Torch, jax: Flax | Jax, batch: Batch, device: str, kinds: Kinds, names: tuple[Names, Names]
    ) -> None:
        self._jax, self._batch, self._kinds, self._names = JaxRun(jax, "float32", training=False), batch, kinds, names
        self._torch_run = TorchRun(torch, "float32", device)
        self._layer_kinds = layer_kinds(self._torch_run.model)
        self._torch_run.model.eval()
        self._torch_run.scatter(seed=0)
        self._arrays = self._torch_run.arrays()
        self._torch = Observation(forward=self._run_torch())

    def by_inputs(self, links: WeightMap, features: Features) -> Features:
        """See it in what the layers take, where the port's run shows that.

        Where they take something else in any order, a layer before is wrong. Then one channel is changed on both sides
        to see which features change; if that does not decide, the port is run from torch's values in all images.
        """
        seen = self._run(links)
        found, unclear = self._orders(links, features, seen)
        if not unclear:
            return found
        by_channel = {layer[0]: self._by_channel(links, layer, seen) for layer in unclear}
        found |= {path: shape for path, shape in by_channel.items() if shape}
        if found or None not in by_channel.values():
            return found
        return self._orders(links, features, self._from_torch(links, seen))[0]

    def _by_channel(
        self, links: WeightMap, layer: tuple[str, str], seen: Mapping[Port, np.ndarray]
    ) -> tuple[int, ...] | None:
        """See to which features the first channel of a convolution before a layer goes, on either side."""

        def inputs(torch: Mapping[Port, np.ndarray], jax: Mapping[Port, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            ours, theirs = _input(torch, layer[0]), _input(jax, layer[1])
            assert ours is not None
            assert theirs is not None  # as in the runs before
            return ours, theirs

        kept = dict(self._arrays)
        try:
            return channels_and_points(
                self._changing(layer[0]),
                inputs(self._torch.forward, seen),
                lambda: inputs(self._run_torch(), self._run(links)),
            )
        finally:
            self._arrays = kept

    def _changing(self, path: str) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield the convolutions before a layer, back to where there are no channels, and what changes a channel."""
        modules = list(self._kinds[0])
        kept = dict(self._arrays)
        for before in reversed(modules[: modules.index(path)]):
            if self._layer_kinds[before] == "linear":
                return
            name = f"{before}.weight"
            if name not in kept or kept[name].ndim < 3 or self._layer_kinds[before] == "transposed":
                continue
            changed = kept[name].copy()
            # Three standard deviations in every weight of one output channel: the channel changes more than
            # anything that only follows from it, so that its features behind the flattening stand out.
            changed[0] += 3 * kept[name].std()
            yield len(changed), functools.partial(self._arrays.update, {**kept, name: changed})

    def _orders(
        self, links: WeightMap, features: Features, seen: Mapping[Port, np.ndarray]
    ) -> tuple[Features, list[tuple[str, str]]]:
        return orders(linear_layers(links, features), self._torch.forward, seen)

    def by_outputs(self, links: WeightMap, features: Features, map_with: Callable[[Features], WeightMap]) -> Features:
        """See it in what the whole model gives, for layers of pure functions, whose inputs nothing shows.

        `map_with` maps the weights with some layers in the port's order. A layer is taken to be so if the outputs are
        far nearer then.
        """
        seen = self._run(links)
        unseen: Features = {
            path: shape
            for path, module in linear_layers(links, features)
            if _input(seen, module) is None and (shape := image_before(self._torch.forward, path))
        }
        as_in_torch = self._apart(seen)
        for tried in (unseen, *({path: shape} for path, shape in unseen.items())):
            if tried and 2 * self._apart(self._run(map_with(tried))) < as_in_torch:
                return tried
        return {}

    def _from_torch(self, links: WeightMap, theirs: Mapping[Port, np.ndarray]) -> Mapping[Port, np.ndarray]:
        """Run the port with torch's values in all images, which have one order of axes by their shapes."""
        pairings, _ = align_modules(links, self._torch, Observation(forward=theirs), self._kinds, self._names)
        images = {
            pairing.ports[1]: pairing.to_jax(pairing.torch_array(self._torch))
            for pairing in pairings
            if pairing.ports and pairing.to_jax and self._torch.forward[pairing.ports[0]].ndim > 2
        }
        return self._run(links, images)

    def _run_torch(self) -> Mapping[Port, np.ndarray]:
        """Run torch's model with the arrays as they are now."""
        import torch

        record = Record()
        with torch.no_grad():
            for name, parameter in self._torch_run.parameters.items():
                parameter.copy_(torch.from_numpy(self._arrays[name]))
        with ControlledRun():
            self._torch_run.forward(self._batch, record)
        return {port: np.array(to_numpy(value)) for port, value in record.seen.items()}

    def _run(self, links: WeightMap, given: Mapping[Port, np.ndarray] | None = None) -> Mapping[Port, np.ndarray]:
        self._jax.load(to_jax(links, self._arrays, self._jax.arrays()))
        seen = self._jax.forward(self._batch, given=given or {})
        return {port: to_numpy(value) for port, value in seen.items()}

    def _apart(self, seen: Mapping[Port, np.ndarray]) -> float:
        """Return how far the model's outputs are from torch's, in the first that can be compared."""
        ours, theirs = (
            [value for port, value in side.items() if port[:3] == ("", 0, "output") and value.dtype.kind == "f"]
            for side in (self._torch.forward, seen)
        )
        return min((distance(a, b) for a, b in zip(theirs, ours, strict=False) if a.shape == b.shape), default=np.inf)


def orders(
    layers: Iterable[tuple[str, str]], torch: Mapping[Port, np.ndarray], jax: Mapping[Port, np.ndarray]
) -> tuple[Features, list[tuple[str, str]]]:
    """Return the layers that take the port's order, and those that take neither that nor torch's.

    If something before is wrong, no feature is exactly equal; in a wrong order, none is even similar.

    Args:
        layers: The paths on both sides.
        torch: What the modules of torch take and give.
        jax: What those of the JAX side take and give.

    """
    found: Features = {}
    unclear: list[tuple[str, str]] = []
    for path, module in layers:
        ours, theirs = _input(torch, path), _input(jax, module)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            continue
        size, in_torch = ours.shape[-1], distance(theirs, ours)
        image = image_before(torch, path)
        shapes: list[tuple[int, ...]] = [
            (channels, size // channels) for channels in range(2, size) if size % channels == 0
        ]
        apart = {shape: distance(flattened(shape).to_torch(theirs), ours) for shape in shapes}
        # A wrong order leaves unrelated numbers, about sqrt(2) apart relatively; the right one leaves what
        # bugs before have done. A factor of two separates them, even where a bug has moved every feature.
        if shapes and 2 * min(apart.values()) < in_torch:
            found[path] = min(apart.items(), key=lambda item: item[1])[0]
        elif in_torch > NEAR and image:
            if _is_function(flattened(image).to_torch(theirs), ours) and not _is_function(theirs, ours):
                found[path] = image
            else:
                unclear.append((path, module))
    return found, unclear


def _is_function(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Tell whether one array is a function of the other, number by number, as what another activation gives is.

    In the order of its arguments, a function changes little from one number to the next. For unrelated numbers, the
    mean square of these changes is twice the variance: von Neumann's ratio (Annals of Mathematical Statistics, 1941).
    """
    values = np.ravel(theirs)[np.argsort(np.ravel(ours), kind="stable")].astype(np.float64)
    variance = float(values.var())
    return variance > 0 and float(np.mean(np.diff(values) ** 2)) < 2 * variance * SMOOTH


def linear_layers(links: WeightMap, features: Features) -> Iterator[tuple[str, str]]:
    """List the linear layers of which no order is known yet, by their paths on both sides."""
    kernels = {link.torch: link.jax for link in links}
    for path, shape in features.items():
        if not shape and f"{path}.weight" in kernels:
            yield path, kernels[f"{path}.weight"].rpartition("/")[0]


def _input(seen: Mapping[Port, np.ndarray], path: str) -> np.ndarray | None:
    return next((value for port, value in seen.items() if port[:3] == (path, 0, "input")), None)


def image_before(seen: Mapping[Port, np.ndarray], path: str) -> tuple[int, ...]:
    """Return the channels and points of the image that is flattened before a layer; () if it takes none."""
    channels = 0
    for port, value in seen.items():
        if port[:3] == (path, 0, "input"):
            points, rest = divmod(value.shape[-1], channels) if channels else (0, 0)
            return (channels, points) if value.ndim == 2 and points > 1 and not rest else ()
        if port.kind == "output" and value.ndim > 2:
            channels = value.shape[1]
    return ()
