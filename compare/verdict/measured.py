"""How far apart a quantity is between both sides and both precisions, step by step."""

from dataclasses import dataclass, field

import numpy as np

from compare.numerics.distance import EPSILON32, distance, norm, norm_of_finite, real
from compare.verdict.neighbours import add_largest


@dataclass
class Measured:
    """One thing that both sides compute at every step, and how far apart they are, step by step."""

    stage: str
    """One of "forward", "loss", "gradient", "update" (optimizer state with it), "parameters" or "buffers".

    All lists below have one entry a step, and d(a, b) is ‖a - b‖ / ‖b‖.
    """
    torch: str
    """Its name on the torch side."""
    jax: str
    """Its name on the JAX side."""
    decides: bool = True
    """Whether a difference is a mismatch. Inside a model it only says where one comes from."""
    error64: list[float] = field(default_factory=list)
    """d(jax64, torch64)."""
    error_torch: list[float] = field(default_factory=list)
    """d(torch32, torch64)."""
    error_jax: list[float] = field(default_factory=list)
    """d(jax32, jax64)."""
    cancellation: list[float] = field(default_factory=list)
    """How much larger than the quantity itself were the numbers that it is a difference of; 1 where it is none."""
    sizes: list[tuple[float, float]] = field(default_factory=list, repr=False)
    """‖torch64‖, and that of what it is a difference of: a difference of zero has none of its own."""
    noise: list[float] = field(default_factory=list)
    """The largest d of two float64 runs of one side, each moved by rounding; empty where it was not measured."""
    torch_noise: list[float] = field(default_factory=list)
    """The same of the torch side alone."""
    tables: list[float] = field(default_factory=list)
    """The largest d of two float64 runs of one side, with its float32 tables as they are or moved by half a unit; empty
    where it was not measured."""
    between32: list[float] = field(default_factory=list)
    """d(jax32, torch32); empty where it was not measured."""
    spread32: list[float] = field(default_factory=list)
    """The largest d of two float32 runs of the JAX side, moved by the rounding of the lowest precision that its program
    has; empty where it was not measured."""
    lowest: float = EPSILON32
    """The machine epsilon of that precision."""
    update: "Measured | None" = field(default=None, repr=False)
    """Of a parameter, its updates: after one that was nothing but rounding, the parameter proves nothing."""
    subjects: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()), repr=False)
    """The tensors, or the module, to which it belongs on the torch and on the JAX side: see `Pairing.subjects`."""
    overflows: set[int] = field(default_factory=set, repr=False)
    """The steps at which a value is finite in float32 on one side only."""
    rounds_alone: bool = True
    """Whether at step 0 each side's rounding is its own, and no optimizer has yet made more of it."""

    def add_torch(self, torch32: np.ndarray, torch64: np.ndarray, operands: np.ndarray | None = None) -> None:
        """Weigh a step of the torch side. `operands` is what the quantity is a difference of, if it is one."""
        # An update is a difference of two parameters. If it is a thousandth of them, a relative error of u in
        # each is one of a thousand u in the update: `cancellation` is this condition number, ‖operands‖ /
        # ‖difference‖.
        size, otherwise = self._sizes(len(self.error_torch), torch64, operands)
        self.error_torch.append(distance(torch32, torch64, otherwise, size))
        self.cancellation.append(max(1.0, otherwise / (size or otherwise or 1.0)))

    def add_difference(self, jax64: np.ndarray, torch64: np.ndarray, operands: np.ndarray | None = None) -> None:
        """Weigh the same step of both sides in float64, alike in shape."""
        size, otherwise = self._sizes(len(self.error64), torch64, operands)
        self.error64.append(distance(jax64, torch64, otherwise, size))

    def add_absent(self, error: str, *, on_both: bool) -> None:
        """Note that of two runs at least one has not computed it at this step.

        Args:
            error: The field with the distance of these runs: "error64", "error_torch" or "error_jax".
            on_both: Whether neither has: then they agree.

        """
        getattr(self, error).append(0.0 if on_both else np.inf)
        if error == "error_torch":
            self.cancellation.append(1.0)
        if error != "error_jax" and len(self.sizes) < len(getattr(self, error)):
            self.sizes.append((0.0, 0.0))

    def _sizes(self, step: int, torch64: np.ndarray, operands: np.ndarray | None) -> tuple[float, float]:
        if step == len(self.sizes):
            with np.errstate(over="ignore"):
                size = norm_of_finite(real(torch64))
                self.sizes.append((size, 0.0 if operands is None else norm(operands)))
        return self.sizes[step]

    def add_jax(self, jax32: np.ndarray, jax64: np.ndarray) -> None:
        """Weigh the same step of the JAX side."""
        self.error_jax.append(distance(jax32, jax64))
        # A value that overflows in float32 on one side alone, as exp(100) in an unshifted softmax does, is
        # fine in float64 on both. The float64 runs cannot show it, so the float32 runs decide here.
        step = len(self.error_jax) - 1
        if self.lost_by(step) is not None:
            self.overflows.add(step)

    def lost_by(self, step: int) -> str | None:
        """Tell which side, "torch" or "JAX", is alone in being finite in one of its two precisions only."""
        if not self.error_jax or np.isinf(self.error_jax[step]) == np.isinf(self.error_torch[step]):
            return None
        return "JAX" if np.isinf(self.error_jax[step]) else "torch"

    def add_moved(self, moved: list[float], step: int, one: np.ndarray, other: np.ndarray) -> None:
        """Weigh the same step of two float64 runs of one side: for `noise`, `torch_noise` or `tables`."""
        # In units of what the sides' difference is measured in, ‖torch64‖. A residue of what is zero in exact
        # arithmetic has any size: 1e-21 in one run, and 1e-6 in another, by rounding.
        size, otherwise = self.sizes[step]  # where torch has exactly zero, relative to what the other side has
        add_largest(moved, step, distance(one, other, otherwise, size if size or otherwise else None))

    def add_between32(self, jax32: np.ndarray, torch32: np.ndarray) -> None:
        """Weigh the same step of both sides in float32: for where float64 is another program, see `alone`."""
        self.between32.append(distance(jax32, torch32))

    def add_spread32(self, step: int, one: np.ndarray, other: np.ndarray) -> None:
        """Weigh the same step of two float32 runs of the JAX side, each moved by rounding; the largest counts."""
        add_largest(self.spread32, step, distance(one, other))
