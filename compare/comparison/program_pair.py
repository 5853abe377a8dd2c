"""Two programs with the map between the tensors of their states."""

import contextlib
import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compare.alignment.optimizer_state import Settings
from compare.alignment.pairings import Alignment
from compare.alignment.program import align_program
from compare.comparison.common_pair import CommonPair
from compare.comparison.flattened import Features, image_before, linear_layers, orders
from compare.comparison.moments import moments_of_port, moments_of_torch, without_common_end
from compare.comparison.selection import Selection
from compare.errors import InputError
from compare.jax_side.program import JaxProgram
from compare.jax_side.program_run import JaxProgramRun
from compare.jax_side.program_state import remembered
from compare.step.batch import Batch
from compare.step.draws import Hints
from compare.step.observation import Observation, Port, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.layers import recurrent_layers
from compare.torch_side.program import TorchProgram
from compare.torch_side.program_run import TorchProgramRun
from compare.torch_side.record import Record
from compare.weights.find import UnmatchedError, find_links
from compare.weights.layers import buffer_names
from compare.weights.links import Link, WeightMap, to_jax
from compare.weights.roots import find_roots
from compare.weights.stacks import stacked
from compare.weights.weight_layouts import weight_layouts


class ProgramPair(CommonPair):
    """Two programs, their batches, and which tensor of one state is which of the other.

    Args:
        torch: The original.
        jax: The port.
        batches: The steps' batches, at least one.
        weights: As for `compare.check`.
        device: "cpu" or "cuda".

    Raises:
        InputError: Where the states cannot be mapped.

    """

    def __init__(
        self,
        torch: TorchProgram,
        jax: JaxProgram,
        batches: list[Any],
        weights: Mapping[str, str | None] | None,
        device: str,
        selection: Selection | None = None,
    ) -> None:
        super().__init__(torch, jax, batches, device, selection)
        self._first: dict[Port, np.ndarray] = {}
        self._probe()
        run, port = TorchProgramRun(torch, "float32", device), JaxProgramRun(jax, "float32")
        # As exact as the torch side has it: a table that it keeps in float64 has more digits than float32 holds.
        self.start = TorchProgramRun(torch, "float64", device).arrays()
        self.size = sum(array.size for array in self.start.values())
        self.parameters = {name: each.requires_grad for name, each in run.parameters.items()}
        self.trained = run.trained
        """The names of what torch's optimizers train."""
        self.recurrent = recurrent_layers(run.model)
        self.optimizers = len(run.optimizers)
        """How many the torch state holds."""
        self.unsaved = frozenset({name for name, _ in run.model.named_buffers()} - run.model.state_dict().keys())
        self.given = port.arrays()
        self.buffers = frozenset(buffer_names(port.layers()))
        counted = run.state.integers()
        self._uncounted = {name for name, partner in (weights or {}).items() if partner is None and name in counted}
        """The integers of the torch state that the user leaves out."""
        weights = {name: each for name, each in (weights or {}).items() if name not in self._uncounted}
        self._moments: frozenset[str] = frozenset()
        """What an optimizer that the port writes by hand remembers, in a state of its own."""
        self.links = self._with_moments(run, port, weights)
        self._copies = _copies(port, sorted(self.links, key=lambda link: link.torch not in run.trained))
        """What the JAX side's optimizers hold as copies of weights, such as lookahead's slow ones, and of which."""
        if not run.trained:
            raise InputError(
                "the torch state holds no torch.optim.Optimizer, and no tensor that requires a gradient, so it is "
                "unknown what is trained: add the optimizer to the state that build() returns, as "
                '{"model": model, "optimizer": optimizer}'
            )
        if not any(link.torch in run.trained for link in self.links):
            raise InputError("no tensor that the torch step trains has a partner in the JAX state")
        models: dict[str, dict[str, tuple[int, ...]]] = {}
        for name in (name for name in run.kept() if name in run.trained):
            model = name.partition(".")[0] if "." in name else ""  # bare tensors at the top belong together
            models.setdefault(model, {})[name] = self.start[name].shape
        self.hints = Hints(weights=weight_layouts(self.links, [*models.values()], self.given))

    def _with_moments(self, run: TorchProgramRun, port: JaxProgramRun, weights: Mapping[str, str | None]) -> WeightMap:
        """Map the weights; where some have no partner, without what may be the moments of an optimizer."""
        try:
            return self._find_links(run, port, weights)
        except UnmatchedError as error:
            leaves = port.leaves
            # The moments themselves may have been matched, and the parameters have no partner then.
            for matched in ({link.jax for link in error.links}, frozenset[str]()):
                if moments := moments_of_port(port, matched):
                    port.leaves = remembered(leaves, moments)
                    with contextlib.suppress(UnmatchedError):
                        links = self._find_links(run, port, weights)
                        self._moments = moments
                        return links
                    port.leaves = leaves
            run.remembered = moments_of_torch(run, port)
            if not run.remembered:
                raise
            with contextlib.suppress(UnmatchedError):
                return self._find_links(run, port, weights)
            raise

    def _find_links(
        self, run: TorchProgramRun, port: JaxProgramRun, weights: Mapping[str, str | None] | None
    ) -> WeightMap:
        """Map the weights; where a linear layer takes an image's features, a step shows the port's order of them."""
        features: Features = {path: () for path, kind in self.torch_modules.items() if "Linear" in kind}
        images = [path for path in features if image_before(self._first, path)]

        def mapped_with(features: Features) -> WeightMap:
            layers = run.layers(_in_copies(run, features)), port.layers()
            return find_links(*layers, weights, roots=find_roots(*layers, [*run.models, *run.copies]))

        links = mapped_with(features)
        while any(not features[path] for path in images):
            jax = copy.copy(port)
            jax.restart()
            jax.load(to_jax(links, self.start, jax.arrays()))
            seen = {port: to_numpy(value) for port, value in jax.step(self.batches[0], self.draws).forward.items()}
            found, _ = orders(linear_layers(links, features), self._first, seen)
            if not found:
                break
            features |= found
            links = mapped_with(features)
        self._first = {}
        return links

    def _probe(self) -> None:
        """Take torch's first step twice: record its modules, what it overwrites, and whether it is reproducible."""
        record, again = Record(), Record()
        run = TorchProgramRun(self.torch, "float32", self.device)
        with run.around(), ControlledRun() as first:
            seen = run.step(self.batches[0], record)
        self.draws = first.draws
        self.torch_modules, self.overwritten = record.modules, record.changed()
        self.kinds: tuple[Mapping[str, str], dict[str, str]] = self.torch_modules, {}
        linear = {path for path, kind in record.modules.items() if "Linear" in kind}
        # The inputs of linear layers, and the images before them: from these it is seen in which order they are.
        kept = {
            port: x for port, x in record.seen.items() if port.path in linear or (port.kind == "output" and x.ndim > 2)
        }
        self._first = {port: np.array(to_numpy(x)) for port, x in kept.items()}
        run = TorchProgramRun(self.torch, "float32", self.device)
        with ControlledRun(replay=first.draws):
            repeated = run.step(self.batches[0], again)
        for name, value in {"loss": seen.loss, **seen.shown}.items():
            other = repeated.loss if name == "loss" else repeated.shown.get(name)
            if value is None or other is None:
                continue
            self._note_nondeterminism("step", name, (value, other))

    @property
    def examples(self) -> list[Batch]:
        """The batches; a program's have no target of their own."""
        return [Batch(batch) for batch in self.batches]

    def _as_taken(self, batches: Sequence[Batch]) -> list[Any]:
        """Give batches as a step takes them."""
        return [batch.inputs for batch in batches]

    def torch_run(self, dtype: str) -> TorchProgramRun:
        """Start a run of the torch side."""
        run = TorchProgramRun(self.torch, dtype, self.device, self.overwritten)
        if self.moved:
            run.load(self.start)
        run.kinds = self.torch_modules  # a module may run at later steps alone
        return run

    def jax_run(self, dtype: str) -> JaxProgramRun:
        """Start a run of the JAX side, its state from the torch side's values."""
        run = JaxProgramRun(self.jax, dtype, self.hints)
        run.leaves = remembered(run.leaves, self._moments)
        run.stacks = stacked(self.links)
        run.kinds = self.kinds[1]  # filled by the first run that takes a step
        self.load(run)
        return run

    def load(self, run: JaxProgramRun) -> None:
        """Start a run of the JAX side again, its state from the torch side's values."""
        super().load(run)
        if self._copies:
            weights = run.weights()
            run.load({name: weights[weight] for name, weight in self._copies.items()})

    def align(self, torch: Observation, jax: Observation, settings: Mapping[str, Settings]) -> Alignment:
        """Pair everything that a step of both sides shows; `settings` are torch's optimizers', by parameter."""
        torch = torch._replace(counts={n: each for n, each in torch.counts.items() if n not in self._uncounted})
        return self.selection.applied(align_program(self.links, torch, jax, self.kinds, settings))


def _copies(port: JaxProgramRun, links: Sequence[Link]) -> dict[str, str]:
    """Find what optimizers hold as copies of weights when they are built: the first weight that is equal."""
    weights, kept = port.weights(), port.state_arrays()
    linked = dict.fromkeys(link.jax for link in links if link.jax in weights)

    def equal(weight: str, array: np.ndarray) -> bool:
        return weight in linked and weights[weight].shape == array.shape and np.array_equal(weights[weight], array)

    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for name, array in kept.items():
        # What starts from one number, as moments and biases do, is equal by accident.
        several = array.size > 1 and np.ptp(array)
        if several and (weight := next((each for each in linked if equal(each, array)), None)):
            found[name] = weight
            tree, model = without_common_end(name, weight)
            places.setdefault(tree, model)
    for name, array in kept.items():  # where a weight is a copy, the bias beside it is one too
        for tree, model in places.items():
            weight = f"{model}{name.removeprefix(tree)}"
            if name not in found and name.startswith(tree) and equal(weight, array):
                found[name] = weight
    return found


def _in_copies(run: TorchProgramRun, features: Features) -> Features:
    """Add the linear layers of models that do not run, such as averages, as a model of their class has them."""
    found = dict(features)
    kinds = {root: type(run.model.get_submodule(root)) for root in run.models}
    for root, other in itertools.permutations(run.models, 2):
        if kinds[root] is kinds[other]:
            for path, shape in features.items():
                if path.startswith(f"{root}."):
                    found.setdefault(f"{other}{path[len(root) :]}", shape)
    return found
