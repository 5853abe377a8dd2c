"""A run of a torch program, in one precision: each step is the user's own."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compare.errors import InputError
from compare.step.batch import checked_scalar, described, kinds_of, mapped
from compare.step.observation import Observation, Port, halves
from compare.step.user_code import call_user_code, check_takes, on_another_device
from compare.torch_side.common_run import CommonRun
from compare.torch_side.program import TorchProgram
from compare.torch_side.program_state import State, seeded
from compare.torch_side.program_watch import Watch
from compare.torch_side.rates import rate_of
from compare.torch_side.record import Record
from compare.torch_side.shadows import shadows
from compare.weights.layers import Layer

if TYPE_CHECKING:
    import torch


class TorchProgramRun(CommonRun):
    """A run of a torch program, in one precision.

    Args:
        side: The program.
        dtype: "float32" or "float64". The program is built in its own precision; its modules and tensors are then cast.
        device: "cpu" or "cuda".
        overwritten: What its modules overwrite in place after it was recorded, and a record must copy.

    Raises:
        InputError: If `build` does not give a state and a step.

    """

    def __init__(self, side: TorchProgram, dtype: str, device: str, overwritten: frozenset[Port] = frozenset()) -> None:
        import torch

        super().__init__(dtype, device, overwritten)
        self._second = Observation()
        self.taken = 0
        """How many steps it has taken."""
        self.after: list[Callable[[TorchProgramRun, Mapping[str, Any]], None]] = []
        """Changes of the state that a step leaves; given are its floating-point tensors from before."""
        # The user draws the initial weights. Each run must draw the same, whatever ran before it in this process.
        with seeded():
            state, self.user_step = _built(side)
        self._entries: dict[str, Any] = dict(state)
        self.state = State(self._entries)
        self._counts = self.state.integers()
        self.model = self.state.container()
        self.models = list(self.state.parts(torch.nn.Module))
        """The paths of the modules that the state has."""
        self.copies: list[str] = []
        """The paths of the dictionaries that hold copies of a module's tensors, once its layers are known."""
        for tensor in [*self.model.parameters(), *self.model.buffers(), *self.state.tensors().values()]:
            # In place, through .data: optimizers, schedulers and the user's closures refer to these tensor objects.
            tensor.data = self._cast(tensor.data)
        self.parameters = dict(self.model.named_parameters())
        self.frozen = frozenset(name for name, parameter in self.parameters.items() if not parameter.requires_grad)
        """The parameters that are not trained at first. An optimizer may have them all the same."""
        self._built = list(self.parameters.items())
        self._names = {id(parameter): name for name, parameter in self._built}
        self.optimizers: dict[str, torch.optim.Optimizer] = self.state.parts(torch.optim.Optimizer)
        # Adagrad has a state from the start, and so has an optimizer that is loaded from a checkpoint.
        for slots in (slots for optimizer in self.optimizers.values() for slots in optimizer.state.values()):
            slots.update({name: self._cast(value) for name, value in slots.items() if isinstance(value, torch.Tensor)})
        self._named_bare()
        self.remembered: frozenset[str] = frozenset()
        """Of the bare tensors, those that only an update by hand remembers: they have no partner."""
        self.trained = frozenset(map(self.name_of, self.trained_tensors())) - self.frozen
        """The parameters that an optimizer trains; without any, all that require a gradient: the step updates them."""

    def _named_bare(self) -> None:
        """Name the bare tensors that an optimizer trains, such as a temperature."""
        for name, tensor in self.state.tensors().items():
            self._names.setdefault(id(tensor), name)

    def _parameters_anew(self) -> None:
        """See the parameters that a step has put in the place of others: optimizers still have those of `build`."""
        self.parameters = dict(self.model.named_parameters())
        self._names = {id(parameter): name for name, parameter in (*self._built, *self.parameters.items())}
        self._named_bare()

    def name_of(self, parameter: Any) -> str:
        """Return the path of a tensor that an optimizer trains.

        Raises:
            InputError: If the state does not hold it.

        """
        if id(parameter) not in self._names:  # the step may have put it there just now
            self._parameters_anew()
        if id(parameter) not in self._names:
            raise InputError(
                f"an optimizer of the torch state trains a tensor of shape {tuple(parameter.shape)} that no module and "
                "no entry of the state holds: add it to the state"
            )
        return self._names[id(parameter)]

    def trained_tensors(self) -> "list[torch.Tensor]":
        """Return the tensors that an optimizer has; without any optimizer, all that require a gradient."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        if not self.optimizers:
            return [each for each in (*self.parameters.values(), *self.bare().values()) if each.requires_grad]
        return [parameter for group in groups for parameter in group["params"]]

    def scattered(self) -> "dict[str, torch.Tensor]":
        """Return the parameters, and the bare tensors that an optimizer trains, such as a temperature."""
        known = {id(parameter) for parameter in self.parameters.values()}
        bare = (tensor for tensor in self.trained_tensors() if id(tensor) not in known)
        return {**super().scattered(), **{self.name_of(tensor): tensor for tensor in bare}}

    def _cast(self, tensor: "torch.Tensor") -> "torch.Tensor":
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def layers(self, features: Mapping[str, tuple[int, ...]] | None = None) -> list[Layer]:
        """List what holds weights: the state's modules, and its bare tensors.

        `features` has the linear layers that take an image's features, as for `torch_layers`.
        """
        from compare.torch_side.layers import torch_layers

        bare = {name: tuple(tensor.shape) for name, tensor in self.bare().items()}
        layers = torch_layers(self.model, features or {})
        found = shadows(layers, self.models, bare)
        self.copies = [*found]
        copied = [layer for each in found.values() for layer in each]
        known = {name for layer in copied for name in layer.tensors}
        others = [Layer(name, "", {"kind": ""}, {name: shape}) for name, shape in bare.items() if name not in known]
        return [*layers, *map(self._without_moments, [*copied, *others])]

    def _without_moments(self, layer: Layer) -> Layer:
        apart = dict.fromkeys(self.remembered & layer.tensors.keys(), _MOMENT)
        return layer._replace(settings={**layer.settings, "derived": apart}) if apart else layer

    def bare(self) -> "dict[str, torch.Tensor]":
        """Return the bare tensors that hold floating-point numbers."""
        return {name: tensor for name, tensor in self.state.tensors().items() if tensor.is_floating_point()}

    def kept(self) -> "dict[str, torch.Tensor]":
        """Return parameters, buffers and bare tensors, by name."""
        from compare.torch_side.layers import kept_tensors

        return {**kept_tensors(self.model), **self.bare()}

    def weights(self) -> "list[torch.Tensor]":
        """Return parameters and bare tensors."""
        return [*self.parameters.values(), *self.bare().values()]

    def step(self, batch: Any, record: Record | None = None) -> Observation:
        """Take one step of the program, and show everything that it changes."""
        import torch
        from torch.utils._pytree import keystr, tree_flatten_with_path

        record = record or Record(self.overwritten)
        before = {name: tensor.detach().clone() for name, tensor in self.floating().items()}
        watch, inputs = Watch(self, record), mapped(batch, self.tensor)
        entries = {f"batch{keystr(path)}": leaf for path, leaf in tree_flatten_with_path(inputs)[0]}
        named = {**self.state.tensors(), **{n: leaf for n, leaf in entries.items() if isinstance(leaf, torch.Tensor)}}
        record.given = {id(tensor): name for name, tensor in named.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(record.of(self.model))
            stack.enter_context(watch.watching())
            stack.enter_context(record.working(keeping=False))
            for tensor in named.values():
                tensor.dim()  # what records calls has seen all of them now, whenever the step reads which
            shown = call_user_code(
                "the torch step",
                functools.partial(self.user_step, self._entries, inputs),
                given=described(inputs),
                inside=lambda: record.running,
                advice=on_another_device,
            )
        if not isinstance(shown, Mapping):
            raise InputError(
                "the torch step must return a dict of values to compare, such as {'loss': loss}, but returned "
                f"{kinds_of(shown)}"
            )
        self.taken += 1
        self._parameters_anew()
        self.note(record)
        # After the step and before anything is read: what an edit leaves is what the step would have left.
        for change_after in self.after:
            change_after(self, before)
        after = self.floating()
        # The whole change of the step, whatever made it: a program may have several optimizers, or update
        # weights by hand.
        updates = {name: after[name].detach() - old for name, old in before.items() if name in after}
        values = {name: torch.as_tensor(value).detach() for name, value in shown.items()}
        if "loss" in values:
            checked_scalar('the "loss" of the torch step', values["loss"])
        return Observation(
            loss=values.get("loss"),
            gradients=watch.gradients,
            accumulated=watch.accumulated,
            updates={name: update for name, update in updates.items() if name in self.trained},
            parameters={name: tensor for name, tensor in after.items() if name in self.trained},
            optimizer=self.optimizer_state(),
            buffers=self._buffers(trained=True),
            state=self._other_state(after),
            counts={name: array - self._counts.get(name, 0) for name, array in self.state.integers().items()},
            shown={name: value for name, value in values.items() if name != "loss"},
            forward=record.seen,
            order=watch.order(shown),
        )

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Make the changes of a step while it runs, in which it draws the same numbers in each process."""
        # Before the watch, whose hooks see what a change makes of the gradients. And outside of the `ControlledRun`: a
        # change sees what is called with its casts lifted and its draws replayed, as a search for it does. Calls are
        # numbered from the beginning of the user's step on: what comes before is called by this package.
        with seeded(_FIRST_STEP + self.taken), Record.working(keeping=True), super().around():
            yield

    def backward(self, batch: Any) -> Observation:
        """Take a step, and show its first half; `update` shows the second."""
        first, self._second = halves(self.step(batch))
        return first

    def update(self) -> Observation:
        """Show the second half of the step that `backward` has taken."""
        second, self._second = self._second, Observation()
        return second

    def floating(self) -> "dict[str, torch.Tensor]":
        """Return the floating-point tensors of the state: parameters, buffers and bare tensors."""
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}
        return {**self.parameters, **buffers, **self.bare()}

    def _other_state(self, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Of the state's tensors, give those that no optimizer trains, but for buffers of modules that one trains."""
        beside = self._buffers(trained=True)
        return {name: tensor for name, tensor in tensors.items() if name not in self.trained and name not in beside}

    def _buffers(self, *, trained: bool) -> "dict[str, torch.Tensor]":
        """Return the floating-point buffers of modules that an optimizer trains, or of the others."""
        roots = {name.partition(".")[0] for name in self.trained}
        return {
            name: buffer
            for name, buffer in self.model.named_buffers()
            if buffer.is_floating_point() and (name.partition(".")[0] in roots) == trained
        }

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizers' states, named "slot/parameter"."""
        import torch

        return {
            f"{slot}/{self.name_of(parameter)}": value
            for optimizer in self.optimizers.values()
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
            if isinstance(value, torch.Tensor | int | float)
        }

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the optimizers' settings for each parameter, by name."""
        return {
            self.name_of(parameter): {key: value for key, value in group.items() if key != "params"}
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def rates(self) -> dict[str, list[float]]:
        """Return the learning rates of each optimizer's parameter groups."""
        return {
            name: [rate_of(group) for group in optimizer.param_groups] for name, optimizer in self.optimizers.items()
        }


class OneOptimizer:
    """A run as one of its optimizers sees it.

    Args:
        run: The run.
        name: The optimizer's path in the state.

    """

    def __init__(self, run: TorchProgramRun, name: str) -> None:
        self._run, self.optimizer = run, run.optimizers[name]
        groups = self.optimizer.param_groups
        self.parameters = {run.name_of(each): each for group in groups for each in group["params"]}

    def optimizer_state(self) -> dict[str, Any]:
        """Return what the optimizer remembers, named "slot/parameter"."""
        whole = self._run.optimizer_state()
        return {name: value for name, value in whole.items() if name.partition("/")[2] in self.parameters}


def _built(side: TorchProgram) -> tuple[Mapping[str, Any], Callable[[Any, Any], Any]]:
    built = call_user_code("TorchProgram(build)", side.build)
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], Mapping) and callable(built[1])):
        raise InputError(
            "TorchProgram(build): build() must return (state, step), a dict of modules, optimizers and tensors "
            f"and a function of (state, batch), but returned {kinds_of(built)}"
        )
    check_takes("TorchProgram(build)", built[1])
    return built


_MOMENT = "it is taken for what the update remembers, which the JAX side keeps in its optimizer"

_FIRST_STEP = 1_055_638
"""The seed of the first step's draws: not that of `build`, whose weights would be the noise of the step.

With it, what torch, NumPy and Python first draw in three steps is below 0.1 at one of them and above 0.9 at another, so
that what a step decides by a random number goes both ways.
"""
