"""One PyTorch program and its port with their weights mapped: following both, and explaining what differs."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from compare.alignment.forward import align_modules
from compare.alignment.optimizer_state import jax_state
from compare.alignment.pairings import Alignment
from compare.alignment.training import align_training
from compare.comparison.explanation import described
from compare.comparison.steps import Stepper
from compare.diagnosis.converted_weights import misconverted
from compare.diagnosis.precision_causes import fast_variance, low_precision, without_fast_variance
from compare.diagnosis.search import explain
from compare.jax_side.run import JaxRun
from compare.jax_side.side import Flax, Jax
from compare.numerics.distance import EPSILON32, ULPS, distance
from compare.report.findings import Run, settings
from compare.report.progress import Progress, Show
from compare.report.report import Report
from compare.step.batch import Batch, channels_last
from compare.step.draws import Hints
from compare.step.layouts import unflattened
from compare.step.observation import Observation, Port, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.layers import torch_layers
from compare.torch_side.record import Record
from compare.torch_side.run import TorchRun
from compare.torch_side.side import Torch
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.first_difference import Found, first_divergence, independent_divergences
from compare.verdict.following import Followed, SoFar, Streams, follow, weigh_noise
from compare.verdict.quantity import FACTOR, Verdict
from compare.weights.find import find_links
from compare.weights.links import WeightMap, named, to_jax

IN_PAIRS = 16_000_000
"""Parameters from which on memory is scarcer than time."""

_DRAWS = 2
"""Of rounding: what a single one does may be twenty times too little by accident."""


class Comparison:
    """One pair with its weights mapped, from which runs are started."""

    def __init__(
        self, torch: Torch, jax: Flax | Jax, batches: list[Batch], weights: Mapping[str, str | None] | None, device: str
    ) -> None:
        self.torch, self.jax, self.batches, self.device = torch, jax, batches, device
        self.training = torch.model.training
        self.size = sum(parameter.numel() for parameter in torch.model.parameters())
        self.overwritten: frozenset[Port] = frozenset()
        self.nondeterministic: list[str] = []
        self.stepper = Stepper(batches, self.size)
        self._probe()
        self.torch_parameters = frozenset(name for name, _ in torch.model.named_parameters())
        jax_run = JaxRun(jax, "float32", training=self.training)
        jax_run.probe(batches[0])
        self.jax_modules = jax_run.modules
        self.kinds = self.torch_modules, {path: type(module).__name__ for path, module in jax_run.modules.items()}
        self.features: dict[str, tuple[int, ...]] = {
            path: () for path, kind in self.torch_modules.items() if "Linear" in kind
        }
        self.links = self._find_links(weights, jax_run)
        self.hints = Hints(channels_last(batches[0], jax.batch))
        if self.hints.channels_last or any("Conv" in kind for kind in self.torch_modules.values()):
            still = JaxRun(jax, "float32", training=False)
            while flattened := self._flattened(still):
                self.features |= flattened
                self.links = self._find_links(weights, jax_run)
            orders = {(shape[0], shape[1]) for shape in self.features.values() if shape}
            self.hints = self.hints._replace(flattened=tuple(orders))
        # Layers in a scan have partners of their own on the torch side: they are run one by one to be seen.
        self.unroll = bool(jax_run.hidden) and any(
            isinstance(i, int) for link in self.links for i in link.jax_view.index
        )
        self.misconverted = self._wrongly_converted(jax_run.arrays())

    def _probe(self) -> None:
        """Run the torch model forward twice: see its modules, what it overwrites in place, and if it repeats itself."""
        record, again = Record(), Record()
        with ControlledRun() as first:
            TorchRun(self.torch, "float32", self.device).forward(self.batches[0], record)
        self.probed = first.draws
        self.torch_modules, self.overwritten = record.modules, record.changed()
        with ControlledRun(replay=first.draws):
            TorchRun(self.torch, "float32", self.device).forward(self.batches[0], again)
        for port, tensor in record.seen.items():
            apart = distance(to_numpy(again.seen[port]), to_numpy(tensor)) if port in again.seen else np.inf
            if port.kind == "output" and apart > FACTOR * ULPS * EPSILON32:
                self.nondeterministic.append(
                    f"the torch side disagrees with itself: the same batch and the same random numbers of torch's gave "
                    f"{port} twice, {apart:.0e} apart. Does it draw from numpy or random, or keep something between "
                    "calls?"
                )
                break

    def _find_links(self, weights: Mapping[str, str | None] | None, jax_run: JaxRun) -> WeightMap:
        layers = torch_layers(self.torch.model, self.features), self.jax.layers()
        return find_links(*layers, weights, order=(list(self.torch_modules), list(jax_run.modules)))

    def _flattened(self, jax_run: JaxRun) -> dict[str, tuple[int, int]]:
        """See which linear layers take an image's features in another order: channels last, where torch's are first.

        A port may flatten either way, and a run tells, in evaluation, where nothing is dropped, and from scattered
        weights: zeros are the same in any order. It gives the channels and the points of each such layer.
        """
        record = Record()
        torch_run = TorchRun(self.torch, "float32", self.device)
        torch_run.model.eval()
        torch_run.scatter(seed=0)
        with ControlledRun():
            torch_run.forward(self.batches[0], record)
        seen = record.seen
        jax_run.load(to_jax(self.links, torch_run.arrays(), jax_run.arrays()))
        theirs = jax_run.forward(self.batches[0])
        kernels = {link.torch: link.jax for link in self.links}
        found: dict[str, tuple[int, int]] = {}
        for path in (path for path, shape in self.features.items() if not shape and f"{path}.weight" in kernels):
            module = kernels[f"{path}.weight"].rpartition("/")[0]
            ours = [to_numpy(value) for port, value in seen.items() if port[:3] == (path, 0, "input")]
            other = [to_numpy(value) for port, value in theirs.items() if port[:3] == (module, 0, "input")]
            if not ours or not other or ours[0].shape != other[0].shape:
                continue
            size = ours[0].shape[-1]
            shapes = [(channels, size // channels) for channels in range(2, size) if size % channels == 0]
            apart = {shape: distance(unflattened(shape).to_torch(other[0]), ours[0]) for shape in shapes}
            # Nothing is quite the same where a layer before is wrong; in any other order nothing is alike.
            if shapes and 2 * min(apart.values()) < distance(other[0], ours[0]):
                found[path] = min(shapes, key=apart.__getitem__)
        return found

    def torch_run(self, dtype: str) -> TorchRun:
        """Start a run of the torch side."""
        return TorchRun(self.torch, dtype, self.device, self.overwritten)

    def jax_run(self, dtype: str) -> JaxRun:
        """Start a run of the JAX side."""
        run = JaxRun(self.jax, dtype, training=self.training, unroll=self.unroll, hints=self.hints)
        self.load(run)
        return run

    def load(self, run: JaxRun) -> None:
        """Give a run of the JAX side the torch model's weights."""
        run.load(self._as_jax(run.arrays()))

    def _as_jax(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = self.torch.model.state_dict(keep_vars=True)
        return to_jax(self.links, {name: to_numpy(tensor) for name, tensor in tensors.items()}, arrays)

    def report(self, name: str, steps: int, progress: Show) -> Report:
        """Follow both sides, and tell what was found."""
        jax = self.jax_run("float64")

        def so_far(followed: Followed | None) -> Report | None:
            if followed is None:
                return None
            done = followed.steps
            return self._found(f"{name}, the first {done} of {steps} steps", done, followed, jax)

        def stepping(doing: str, done: int, of: int, followed: SoFar) -> None:
            doing = doing if done else f"tracing and compiling {doing}"
            progress(Progress(doing, done, of, lambda: so_far(followed())))

        in_pairs = self.size >= IN_PAIRS
        if in_pairs:  # what compiling takes is not needed at the same time as what a step takes
            progress(Progress("compiling", 0, steps))
            jax.compile(self.batches[0], self.probed)
        streams = self._streams(jax, lambda: self.jax_run("float32"))
        followed = follow(streams, self.align, steps, stepping, in_pairs=in_pairs)
        self.nondeterministic += dict.fromkeys(jax.unreplayed)
        found = self._found(name, steps, followed, jax)
        if found.divergence:
            progress(Progress("measuring what rounding does", found=lambda: found))
            self._weigh_noise(followed, jax)
            found = self._found(name, steps, followed, jax)
        divergence, others, notes = found.divergence, [], []
        if first := first_divergence(followed):
            progress(Progress("looking for what differs by itself", found=lambda: found))
            apart = [first, *self._independent(followed, first)]
            progress(Progress(f"looking for the cause at {first.divergence.torch}", found=lambda: found))
            divergence, *others = self._explained(apart, jax)
        elif not self.nondeterministic:
            progress(Progress("looking for what rounds more on one side", found=lambda: found))
            notes = self._precision(followed)
        if wrong := self.misconverted:
            others = [*wrong[1:], *([divergence] if divergence else []), *others]
            divergence, notes = wrong[0], []
        return dataclasses.replace(found, divergence=divergence, notes=notes, others=others)

    def _found(self, name: str, steps: int, followed: Followed, jax: JaxRun) -> Report:
        """Tell what following both sides has found, before anything of it is explained."""
        losses, first = followed.losses, first_divergence(followed)
        return Report(
            name,
            Run("torch", losses["torch32"], losses["torch64"]),
            Run(self.jax.name, losses["jax32"], losses["jax64"]),
            followed.quantities,
            first and first.divergence,
            [],
            settings(steps, self.device),
            followed.not_compared,
            nondeterministic=self.nondeterministic,
            pinned=[
                *(f"torch: {what}" for what in list(self.stepper.pinned)),
                *(f"{self.jax.name}: {what}" for what in jax.pinned),
            ],
            stages=True,
            modules=self.kinds,
            weights=[(named(link, "torch"), named(link, "jax")) for link in self.links],
        )

    def _precision(self, followed: Followed) -> list[Cause]:
        """Look for what rounds more on one side, where both compute the same."""
        pairs = zip(followed.pairings, followed.quantities, strict=True)
        found = next(((p, q) for p, q in pairs if q.verdict == Verdict.PRECISION and p.ports), None)
        if found is None:
            return []
        (pairing, quantity), batch, draws = found, self.batches[0], self.stepper.draws[0]
        assert pairing.ports is not None
        ours, theirs = pairing.ports
        if quantity.imbalance < 1:
            with ControlledRun(replay=draws) as controlled:
                self.torch_run("float32").step(batch)
            cause = low_precision(ours.module, quantity, "torch", controlled.dtypes)
            return [cause] if cause else []

        def jax(dtype: str, side: Flax | Jax = self.jax) -> np.ndarray:
            run = JaxRun(side, dtype, training=self.training, unroll=self.unroll, hints=self.hints)
            self.load(run)
            return pairing.jax_array(Observation(forward=run.forward(batch, draws)))

        probe = JaxRun(self.jax, "float32", training=self.training)
        probe.probe(batch)
        if cause := low_precision(theirs.module, quantity, self.jax.name, probe.dtypes):
            return [cause]
        for path in dict.fromkeys((theirs.path, "")):  # where the rounding shows, or anywhere before
            if found_norms := without_fast_variance(self.jax, path):
                slow, norms = found_norms
                if cause := fast_variance(norms, quantity, distance(jax("float32", slow), jax("float64"))):
                    return [cause]
        return []

    def _wrongly_converted(self, given: Mapping[str, np.ndarray]) -> list[Divergence]:
        """Where the port already has most of the torch model's weights, those that it has not.

        A port with weights of its own gets torch's. One that was given them by the user's conversion is compared as
        converted.
        """
        right = self._as_jax(given)
        both = [
            (link, link.jax_view(right[link.jax]), link.jax_view(given[link.jax]))
            for link in self.links
            if np.ptp(right[link.jax])  # zeros and ones are equal without any conversion
        ]
        near = ULPS * EPSILON32
        wrong = [(link, ours, theirs) for link, ours, theirs in both if distance(theirs, ours) > near]
        parameters = [link.torch for link, _, _ in both if link.torch in self.torch_parameters]
        converted = set(parameters) - {link.torch for link, _, _ in wrong}
        if 2 * len(converted) <= len(set(parameters)):
            return []
        opinion = f"the port came with torch's weights, but for {len(wrong)} of {len(both)}: look at their conversion"
        return [
            Divergence(
                0,
                "parameters",
                link.torch,
                link.jax,
                distance(theirs, ours),
                near,
                cause=misconverted(link, ours, theirs, near),
                opinion=opinion,
            )
            for link, ours, theirs in wrong
        ]

    def _streams(self, jax64: JaxRun, jax32: Callable[[], JaxRun]) -> Streams:
        """Start the runs of both sides: each is there with its first step, and the compiled one begins afresh."""

        def torch64() -> TorchRun:
            run = self.torch_run("float64")
            self.torch_settings = run.settings()
            return run

        def jax64_afresh() -> JaxRun:
            self.load(jax64)
            return jax64

        return Streams(
            lambda: self.stepper.torch(lambda: self.torch_run("float32")),
            lambda: self.stepper.torch(torch64),
            lambda: self.stepper.jax(jax64_afresh),
            lambda: self.stepper.jax(jax32),
        )

    def _weigh_noise(self, followed: Followed, jax: JaxRun) -> None:
        """Measure what rounding does to each side, beside a run as it is; `jax` has what is compiled."""

        def torch_moved(draw: int) -> TorchRun:
            run = self.torch_run("float64")
            if draw:
                run.perturb(draw)
            return run

        def jax_moved(draw: int) -> JaxRun:
            run = copy.copy(jax)
            self.load(run)
            if draw:
                run.perturb(draw)
            return run

        draws = range(_DRAWS + 1)
        weigh_noise(followed, [self.stepper.torch(functools.partial(torch_moved, draw)) for draw in draws], "torch")
        weigh_noise(followed, [self.stepper.jax(functools.partial(jax_moved, draw)) for draw in draws], "jax")

    def _independent(self, followed: Followed, first: Found) -> list[Found]:
        """Start every part of every step from the torch side's values, and list all that differs by itself."""
        torch, jax = self.torch_run("float64"), self.jax_run("float64")
        forward = [pairing for pairing in followed.pairings if pairing.ports and pairing.to_jax]
        slots = [each for each in followed.pairings if each.stage == "update" and each.operands is None]

        def steps() -> Iterator[tuple[Observation, Observation]]:
            stream = self.stepper.whole(torch)
            for number in range(len(followed.quantities[0].error64)):
                before = Observation(optimizer=torch.optimizer_state())
                kept = jax.state_arrays()  # of an unknown optimizer it is right as well: it saw torch's gradients
                jax.load(to_jax(self.links, torch.arrays(), jax.arrays()))
                if number:
                    jax.load_state(jax_state(slots, before, kept))
                seen = next(stream)
                given = {p.ports[1]: p.to_jax(p.torch_array(seen)) for p in forward if p.ports and p.to_jax}
                gradients = {name: to_numpy(gradient) for name, gradient in seen.gradients.items()}
                shared = [dataclasses.replace(link, adds=False) for link in self.links if link.torch in gradients]
                given_gradients = to_jax(shared, gradients, jax.arrays())
                batch = self.batches[number % len(self.batches)]
                yield seen, jax.step(batch, self.stepper.draws[number], (given, given_gradients))

        found = independent_divergences(followed, steps(), lambda pairing: pairing.stage in ("gradient", "parameters"))
        # An optimizer's difference shows in every parameter: one of them is enough.
        updates = [each for each in found if each.pairing.stage == "update"]
        others = [each for each in found if each.pairing.stage != "update"] + updates[:1]
        return sorted(others, key=lambda each: each.pairing is not first.pairing)

    def _explained(self, found: list[Found], jax: JaxRun) -> list[Divergence]:
        """Look for the cause of each divergence."""
        first, *others = found
        if others and others[0].pairing is first.pairing:
            target = others.pop(0)
            first = first._replace(target=target.target, update=target.update)
        elif first.pairing.stage == "update":
            others = [each for each in others if each.pairing.stage != "update"]
        return [self._with_cause(each, jax) for each in (first, *others)]

    def _with_cause(self, found: Found, jax: JaxRun) -> Divergence:
        step = found.divergence.step
        run = self.torch_run("float64")
        rates = [run.learning_rate]
        for _ in itertools.islice(self.stepper.whole(run), step):
            rates.append(run.learning_rate)
        batch, draws = self.batches[step % len(self.batches)], self.stepper.draws[step]
        if found.target is None:  # what comes before is the same on both sides
            jax.load(to_jax(self.links, run.arrays(), jax.arrays()))
            found = found._replace(target=found.pairing.jax_array(jax.step(batch, draws)))
        cause, related = explain(found, run, batch, draws, self._layer(found), rates)
        ours, theirs = self._described(found)
        details = (f"torch  {ours}", f"{self.jax.name}  {theirs}") if ours and theirs else ()
        return dataclasses.replace(found.divergence, cause=cause, details=(*details, *related))

    def _described(self, found: Found) -> tuple[str, str]:
        """Show both layers with their settings, where the culprit is a layer."""
        ports = found.pairing.ports
        if ports is None or not found.divergence.torch.startswith(ports[0].module):
            return "", ""
        module = dict(self.torch.model.named_modules()).get(ports[0].path)
        return described(module), described(self.jax_modules.get(ports[1].path))

    def _layer(self, found: Found) -> str:
        """Name the layer of the JAX side that is the culprit, as its code does: "nnx.LayerNorm"."""
        path = found.pairing.ports[1].path if found.pairing.ports else found.pairing.jax.rpartition("/")[0]
        module = self.jax_modules.get(path)
        if module is None:
            return ""
        package = {"flax.nnx": "nnx.", "flax.linen": "nn."}
        prefix = next((short for name, short in package.items() if type(module).__module__.startswith(name)), "")
        return f"{prefix}{type(module).__name__}"

    def align(self, torch: Observation, jax: Observation) -> Alignment:
        """Pair everything that a step of both sides shows."""
        forward, not_compared = align_modules(self.links, torch, jax, self.kinds)
        rank = {path: number for number, path in enumerate(self.torch_modules)}
        links = sorted(self.links, key=lambda link: rank.get(link.torch.rpartition(".")[0], len(rank)))
        training, rest = align_training(links, torch, jax, self.torch_settings)
        return Alignment(forward + training, not_compared + rest)
