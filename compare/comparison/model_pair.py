"""A torch program and its port with their weights mapped: runs of either side start from it.

Mapping needs a look at both models. The torch model is run forward twice, which shows its modules in their order and
whether it repeats itself; the JAX model is traced. `find_links` then pairs the tensors. Which linear layers take an
image flattened in another order is found by one run of both models from scattered weights.
"""

import copy
from collections.abc import Mapping

import numpy as np

from compare.alignment.forward import align_modules, no_output
from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment
from compare.alignment.training import Constant, align_training
from compare.comparison.common_pair import CommonPair
from compare.comparison.flattened import Features, FlattenedFeatures
from compare.comparison.selection import Selection
from compare.comparison.shapes import first_difference
from compare.errors import InputError
from compare.jax_side.mode import mixed
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.step.arguments import positional
from compare.step.batch import Batch, channels_last
from compare.step.draws import Draw, Hints
from compare.step.observation import Observation, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.layers import kept_tensors, layer_kinds, torch_layers
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun
from compare.torch_side.side import Torch
from compare.weights.find import UnmatchedError, find_links
from compare.weights.layers import buffer_names
from compare.weights.links import WeightMap
from compare.weights.stacks import stacked
from compare.weights.weight_layouts import weight_layouts


class ModelPair(CommonPair):
    """Both sides, their batches, and which tensor of one is which of the other.

    Args:
        torch: The original.
        jax: The port.
        batches: The steps' batches, at least one.
        weights: As for `compare.check`.
        device: "cpu" or "cuda".
        selection: What is compared, and what is accepted.

    Raises:
        InputError: Where the weights cannot be mapped, or a side does not take a batch.

    """

    def __init__(
        self,
        torch: Torch,
        jax: Flax | Jax,
        batches: list[Batch],
        weights: Mapping[str, str | None] | None,
        device: str,
        selection: Selection | None = None,
    ) -> None:
        super().__init__(torch, jax, batches, device, selection)
        self.training = torch.model.training
        self.keep_modes = self.training and mixed(module.training for module in torch.model.modules())
        """Whether each module of the port keeps its own mode, since some of torch's are frozen in evaluation."""
        self.size = sum(parameter.numel() for parameter in torch.model.parameters())
        self.start = {name: to_numpy(tensor) for name, tensor in kept_tensors(torch.model).items()}
        self.unsaved = frozenset(self.start.keys() - torch.model.state_dict().keys())
        self.other_mode = False
        """Whether both sides are in another mode than the torch model is."""
        self.probed: list[Draw] = []
        """The random numbers of torch's forward pass on the first batch."""
        _refuse_complex("torch", {name: str(each.dtype) for name, each in torch.model.named_parameters()})
        self._probe()
        # A torch model in half precision is run in float32, and its port then as well.
        self._low = any(parameter.element_size() < 4 for parameter in torch.model.parameters())
        self.parameters = {name: each.requires_grad for name, each in torch.model.named_parameters()}
        jax_run = JaxRun(jax, "float32", training=self.training, keep_modes=self.keep_modes)
        self.given = jax_run.arrays()
        _refuse_complex(jax.name, {name: str(self.given[name].dtype) for name in jax_run.param_names})
        probe = jax_run.probe(batches[0])
        self.jax_modules, self.computed, self._jax_shapes = probe.modules, probe.computed, probe.shapes
        self.kinds = self.torch_modules, {path: ran.cls.__name__ for path, ran in probe.modules.items()}
        torch_names = {path: positional(module.forward) for path, module in torch.model.named_modules()}
        self.arguments = torch_names, {path: ran.arguments for path, ran in probe.modules.items()}
        self.features: Features = {}
        self._map(weights, jax_run)
        self.buffers = frozenset(buffer_names(jax.layers()))
        self.computed.number(stacked(self.links))
        arrays = {"torch": kept_tensors(torch.model), "jax": jax_run.arrays() if self.links.constants else {}}
        self.constants = [
            Constant(side, name, np.array(to_numpy(arrays[side][name]))) for side, name in self.links.constants
        ]

    def _probe(self) -> None:
        """Run the torch model forward twice: see its modules, what it overwrites in place, and if it repeats itself."""
        record, again = Record(placed=True), Record()
        with ControlledRun() as first:
            TorchRun(self.torch, "float32", self.device).forward(self.batches[0], record)
        self.probed = first.draws
        self.torch_modules, self.overwritten = record.modules, record.changed()
        self.torch_calls, self.torch_elsewhere = record.calls, frozenset(record.elsewhere)
        self.torch_shapes = {port: tuple(tensor.shape) for port, tensor in record.seen.items()}
        with ControlledRun(replay=first.draws):
            TorchRun(self.torch, "float32", self.device).forward(self.batches[0], again)
        for port, tensor in record.seen.items():
            if port.kind == "output" and self._note_nondeterminism("model", str(port), (tensor, again.seen.get(port))):
                break

    def _map(self, weights: Mapping[str, str | None] | None, jax_run: JaxRun) -> None:
        """Map the weights, and keep what that tells of layouts."""
        kinds = layer_kinds(self.torch.model)
        self.features = {path: () for path in self.torch_modules if kinds.get(path) == "linear"}
        self.links = self._find_links(weights, jax_run, self.features)
        self.hints = Hints(channels_last(self.batches[0], self.jax.batch))
        if self.hints.channels_last or any(kinds.get(path) in ("conv", "transposed") for path in self.torch_modules):
            self._in_port_order(weights, jax_run)
            orders = {(shape[0], shape[1]) for shape in self.features.values() if shape}
            self.hints = self.hints._replace(flattened=tuple(orders))
        trained = {name: tuple(each.shape) for name, each in self.torch.model.named_parameters() if each.requires_grad}
        self.hints = self.hints._replace(weights=weight_layouts(self.links, [trained], self.given))

    def _find_links(self, weights: Mapping[str, str | None] | None, jax_run: JaxRun, features: Features) -> WeightMap:
        layers = torch_layers(self.torch.model, features), self.jax.layers()
        try:
            return find_links(*layers, weights, order=(list(self.torch_modules), list(self.jax_modules)))
        except UnmatchedError as error:
            hint = first_difference(error.links, self.torch_shapes, self._jax_shapes)
            raise InputError("\n".join(filter(None, (str(error), hint)))) from None

    def _in_port_order(self, weights: Mapping[str, str | None] | None, jax_run: JaxRun) -> None:
        """Find the layers that take an image's features in an order of the port's own, and map their weights so."""

        def map_with(features: Features) -> WeightMap:
            return self._find_links(weights, jax_run, self.features | features)

        search = FlattenedFeatures(self.torch, self.jax, self.batches[0], self.device, self.kinds, self.arguments)
        while found := (
            search.by_inputs(self.links, self.features) or search.by_outputs(self.links, self.features, map_with)
        ):
            self.features |= found
            self.links = map_with({})

    def in_other_mode(self) -> "ModelPair":
        """Return the same pair in evaluation where it is in training, and the other way round."""
        other = copy.copy(self)
        other.training, other.keep_modes, other.other_mode = not self.training, False, True
        return other

    def torch_run(self, dtype: str) -> TorchRun:
        """Start a run of the torch side."""
        run = TorchRun(self.torch, dtype, self.device, self.overwritten)
        if self.other_mode:
            run.model.train(self.training)
        if self.moved:
            run.load(self.start)
        run.kinds = self.torch_modules  # a module may run at later steps alone
        return run

    def jax_run(self, dtype: str) -> JaxRun:
        """Start a run of the JAX side from the torch model's weights."""
        return self.jax_run_of(self.jax, dtype)

    def jax_run_of(self, side: Flax | Jax, dtype: str) -> JaxRun:
        """Start a run of a variant of the JAX side from the torch model's weights."""
        run = JaxRun(
            side,
            dtype,
            training=self.training,
            keep_modes=self.keep_modes,
            widen=self._low,
            hints=self.hints,
        )
        run.stacks = stacked(self.links)
        self.load(run)
        return run

    def align(self, torch: Observation, jax: Observation, settings: Mapping[str, Settings]) -> Alignment:
        """Pair everything that a step of both sides shows; `settings` are torch's optimizer's, by parameter."""
        forward, not_compared = align_modules(self.links, torch, jax, self.kinds, self.arguments)
        forward += no_output(forward, torch, jax)
        rank = {path: number for number, path in enumerate(self.torch_modules)}
        links = sorted(self.links, key=lambda link: _rank(rank, link.torch))
        training, rest = align_training(links, torch, jax, settings, self.constants, self.links.apart)
        return self.selection.applied(Alignment(forward + training, not_compared + rest))


def _rank(rank: Mapping[str, int], name: str) -> int:
    """Give the rank of the module that computes with a parameter of torch's.

    That is one around its own where torch's own module does not run: attention calls a function with the weights of
    its output projection.
    """
    path = name
    while path:
        path = path.rpartition(".")[0]
        if path in rank:
            return rank[path]
    return len(rank)


def _refuse_complex(side: str, dtypes: Mapping[str, str]) -> None:
    """Refuse complex parameters: a copy of a model in one precision has real ones."""
    if named := [f"{name} ({dtype})" for name, dtype in dtypes.items() if "complex" in dtype]:
        raise InputError(
            f"the {side} model has complex parameters, which cannot be compared: {', '.join(named)}. Store "
            "each as two real ones, as torch.view_as_real and jnp.real, jnp.imag return them, and build the "
            "complex one in the model"
        )
