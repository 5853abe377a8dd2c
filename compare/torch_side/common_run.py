"""What a run of a model and a run of a program share: their tensors, by name, and how they are moved by rounding."""

import abc
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compare.numerics.distance import ULPS
from compare.numerics.tables import movement
from compare.step.draws import Draw
from compare.step.observation import Port, to_numpy
from compare.torch_side.control import ControlledRun
from compare.torch_side.record import Record

if TYPE_CHECKING:
    import torch


class Written(NamedTuple):
    """A tensor that a run keeps, and that no step is known to change."""

    tensor: "torch.Tensor"
    twin: "torch.Tensor"
    """What it is in the program as it is written, in float32."""
    start: "torch.Tensor"
    """A copy from before the first step, moved as the run moves it."""


class CommonRun(abc.ABC):
    """A run of the torch side in one precision.

    Args:
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        overwritten: What its modules overwrite in place after it was recorded, and a record must copy.

    """

    model: "torch.nn.Module"
    parameters: "dict[str, torch.nn.Parameter]"

    def __init__(self, dtype: str, device: str, overwritten: frozenset[Port]) -> None:
        import torch

        self.dtype, self.device, self.overwritten = getattr(torch, dtype), device, overwritten
        self.lifted = dtype == "float64"
        self.noise: np.random.Generator | None = None
        """What moves it, if anything does: see `perturb`."""
        self.tables = 0
        """Which movement of its float32 tables it is for, 0 for none: see `move_tables`."""
        self.kinds: dict[str, str] = {}
        """The class of each module that ran, by path, in order of first execution."""
        self.during: list[Callable[[Any], contextlib.AbstractContextManager[Any]]] = []
        """Changes of the step, in force while it runs; each is given the run."""
        self._written: list[Written] | None = None

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Make the changes of the step while it runs. Entered before what controls its calls."""
        with contextlib.ExitStack() as stack:
            for change in self.during:
                stack.enter_context(change(self))
            yield

    def controlled(self, replay: Sequence[Draw] | None) -> ControlledRun:
        """Return what controls a step of this run; `replay` has the draws of the recorded step, None to record them."""
        return ControlledRun(
            lift=self.lifted, moved=self.noise, tables=self.tables, replay=replay, written=self._as_written()
        )

    def _as_written(self) -> "list[tuple[torch.Tensor, torch.Tensor]]":
        """Pair each number that no step has changed so far with what it is in the program as it is written."""
        import torch

        # Where a step is listed call by call, these calls are not the user's: the first step of a run would have more.
        with Record.working(keeping=True):
            if self._written is None:
                self._remember()
            return [(each.tensor, each.twin) for each in self._written or () if torch.equal(each.tensor, each.start)]

    def _remember(self, frozen: Collection[str] = ()) -> None:
        """Remember what the run keeps beside its parameters, and some frozen ones, before anything is moved."""
        import torch

        def stays(name: str, tensor: torch.Tensor) -> bool:
            # Not by name: a parameter that is tied has two.
            return name in frozen or not (isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad)

        self._written = [
            Written(
                tensor, tensor if self.dtype == torch.float32 else tensor.to(torch.float32), tensor.detach().clone()
            )
            for name, tensor in self.kept().items()
            if tensor.is_floating_point() and stays(name, tensor)
        ]

    def note(self, record: Record) -> None:
        """Note which modules ran; some may run at later steps alone."""
        self.kinds.update({path: kind for path, kind in record.modules.items() if path not in self.kinds})

    @abc.abstractmethod
    def kept(self) -> "dict[str, torch.Tensor]":
        """Give all that the run keeps from step to step, by name, but for optimizers."""

    @abc.abstractmethod
    def weights(self) -> "list[torch.Tensor]":
        """Give what `perturb` moves."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Copy what the run keeps, by name."""
        return {name: np.array(to_numpy(tensor)) for name, tensor in self.kept().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace what the run keeps, by name."""
        import torch

        with torch.no_grad():
            for name, tensor in self.kept().items():
                if name in arrays:
                    tensor.copy_(torch.from_numpy(np.array(arrays[name], order="C")))

    def tensor(self, array: Any) -> Any:
        """Copy an array: torch.from_numpy shares memory, and a step in place would change the user's batch."""
        import torch

        if not isinstance(array, np.ndarray | np.generic):
            return array
        # Cast by NumPy: a run that lifts would take a cast by torch for one of the model's.
        dtype = str(self.dtype).removeprefix("torch.") if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype)).to(self.device)

    def perturb(self, seed: int) -> None:
        """Change weights, and all that is moved with them, by a few units in the last place, to measure the effect.

        So is what transcendental functions give, by the `ControlledRun` around a step.
        """
        import torch

        self._remember()
        self.noise = np.random.default_rng(seed)  # not torch's: what torch draws is recorded, and replayed
        with torch.no_grad():
            for weight in self.weights():
                noise = self.tensor(self.noise.choice((-1.0, 1.0), tuple(weight.shape)))  # none is small by accident
                weight.mul_(1 + ULPS * torch.finfo(weight.dtype).eps * noise)
        self._moved()

    def move_tables(self, draw: int, names: Collection[str]) -> None:
        """Move some of what the model keeps constant, and all of the loss's buffers, by their float32 rounding.

        Other tensors that the program holds in float32 are moved where they are used, by the `ControlledRun`.
        """
        import torch

        self._remember(names)
        self.tables = draw
        ours = [tensor for name, tensor in self.constant().items() if name in names]
        with torch.no_grad():
            self.move([*ours, *self.loss_buffers().values()], draw)
        self._moved()

    def _moved(self) -> None:
        """Note that what was remembered has been moved: it still stands for the same numbers."""
        self._written = [each._replace(start=each.tensor.detach().clone()) for each in self._written or ()]

    def constant(self) -> "dict[str, torch.Tensor]":
        """Return the model's buffers and its frozen parameters, by name."""
        frozen = {name: each for name, each in self.model.named_parameters() if not each.requires_grad}
        return {**frozen, **dict(self.model.named_buffers())}

    def loss_buffers(self) -> "dict[str, torch.Tensor]":
        """Return the buffers of the loss that are not the model's: none in a program."""
        return {}

    def move(self, buffers: "list[torch.Tensor]", draw: int) -> None:
        """Move tensors by the float32 rounding that is in them."""
        for buffer in buffers:
            if buffer.is_floating_point() or buffer.is_complex():
                buffer.add_(self.tensor(movement(to_numpy(buffer), draw)))

    def scattered(self) -> "dict[str, torch.Tensor]":
        """Return what `spread` moves: the parameters, and of a program the bare tensors that an optimizer trains."""
        return {**self.parameters}

    def spread(self, seed: int) -> None:
        """Multiply every element of the parameters by a number of its own, about 1, or for two seeds of three about ±1.

        Where all signs stay, so may those of what is computed, and the two sides of a choice differ by a mere factor.
        They change in a bias, and where a tensor has both: a variance stays positive.

        Zeros stay zero, but for a tensor of nothing else, such as a bias or a gate at its start: at zero, functions
        that differ may have slopes that differ by a mere factor.
        """
        import torch

        generator = np.random.default_rng(seed)
        with torch.no_grad():
            for name, param in self.scattered().items():
                factors = self.tensor(generator.uniform(0.7, 1.3, tuple(param.shape)))
                if param.any():
                    both = not param.is_complex() and bool(param.min() < 0 < param.max())
                    change = seed % 3 and (both or name.endswith("bias"))
                    signs = generator.choice([-1.0, 1.0], tuple(param.shape)) if change else 1.0
                    param.mul_(factors * self.tensor(signs))
                else:
                    param.copy_((factors - 1) / 3)
