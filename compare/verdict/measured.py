"""The differences of a quantity between both sides and both precisions, step by step."""

from dataclasses import dataclass, field

import numpy as np

from compare.numerics.distance import EPSILON32, distance, norm, norm_of_finite, real
from compare.verdict.neighbours import add_largest

FLUSHED = 16 * float(np.finfo(np.float32).tiny)
"""A sum of several numbers that were taken for zero differs by several of them."""

ROUNDING = 1e-4
"""A relative difference of a side's two precisions that is always rounding: less than 1000 times the least that counts,
4 units of float32. It saves another pass over each tensor at each step."""


@dataclass
class Measured:
    """One quantity that both sides compute at every step, and its differences, step by step.

    The JSON of a report has the fields that `repr` shows. The verdict alone needs the others.
    """

    stage: str
    """One of "forward", "loss", "gradient", "update" (optimizer state with it), "parameters" or "buffers".

    All lists below have one entry for each step, and d(a, b) is ‖a - b‖ / ‖b‖.
    """
    torch: str
    """Its name on the torch side."""
    jax: str
    """Its name on the JAX side."""
    decides: bool = True
    """Whether a difference is a mismatch. Inside a model, a difference only shows where a mismatch comes from."""
    error64: list[float] = field(default_factory=list)
    """d(jax64, torch64)."""
    error_torch: list[float] = field(default_factory=list)
    """d(torch32, torch64)."""
    error_jax: list[float] = field(default_factory=list)
    """d(jax32, jax64)."""
    cancellation: list[float] = field(default_factory=list)
    """If the quantity is a difference of two tensors, how much larger they are than the quantity; otherwise 1."""
    sizes: list[tuple[float, float]] = field(default_factory=list, repr=False)
    """‖torch64‖, and the norm of the tensors that it is a difference of: a difference of zero has no size of its
    own."""
    noise: list[float] = field(default_factory=list)
    """The largest d of two float64 runs of one side, each moved by rounding; empty if it was not measured."""
    torch_noise: list[float] = field(default_factory=list)
    """The same for the torch side alone, and between its float32 runs where that was measured."""
    tables: list[float] = field(default_factory=list)
    """The largest d of two float64 runs of one side, with its float32 tables unchanged or moved by half a unit; empty
    if it was not measured."""
    between32: list[float] = field(default_factory=list)
    """d(jax32, torch32); empty if it was not measured."""
    spread32: list[float] = field(default_factory=list)
    """The largest d of two float32 runs of the JAX side, moved by the rounding of the lowest precision in its program;
    empty if it was not measured."""
    lowest: float = EPSILON32
    """The machine epsilon of that precision."""
    update: "Measured | None" = field(default=None, repr=False)
    """For a parameter, its updates: after an update that is only rounding error, the parameter proves nothing."""
    subjects: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()), repr=False)
    """The tensors or the module that it belongs to, on the torch and on the JAX side: see `Pairing.subjects`."""
    overflows: set[int] = field(default_factory=set, repr=False)
    """The steps at which a value is finite in float32 on one side only."""
    flushed: set[int] = field(default_factory=set, repr=False)
    """The steps at which the JAX side's two precisions differ by no more than a few of float32's smallest normal
    numbers."""
    missing: set[int] = field(default_factory=set, repr=False)
    """The steps at which not both sides compute it, as the modules of a branch."""
    rounds_alone: bool = field(default=True, repr=False)
    """Whether at step 0 each side has only its own rounding, which no optimizer has amplified yet."""

    def add_torch(self, torch32: np.ndarray, torch64: np.ndarray, operands: np.ndarray | None = None) -> None:
        """Measure a step of the torch side. `operands` are the tensors whose difference the quantity is, if any."""
        # An update is a difference of two parameters. If it is a thousandth of them, a relative error of u in
        # each is one of a thousand u in the update: `cancellation` is this condition number, ‖operands‖ /
        # ‖difference‖.
        size, otherwise = self._sizes(len(self.error_torch), torch64, operands)
        self.error_torch.append(distance(torch32, torch64, otherwise, size))
        self.cancellation.append(max(1.0, otherwise / (size or otherwise or 1.0)))

    def add_difference(self, jax64: np.ndarray, torch64: np.ndarray, operands: np.ndarray | None = None) -> None:
        """Measure the same step of both sides in float64, with arrays of the same shape."""
        size, otherwise = self._sizes(len(self.error64), torch64, operands)
        self.error64.append(distance(jax64, torch64, otherwise, size))

    def add_absent(self, error: str, *, differs: bool) -> None:
        """Record that at least one of two runs has not computed it at this step.

        Args:
            error: The field with the distance between these runs: "error64", "error_torch" or "error_jax".
            differs: Whether that is a difference. It is none if neither run has computed it.

        """
        if error == "error64":
            self.missing.add(len(self.error64))
        getattr(self, error).append(np.inf if differs else 0.0)
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
        step = len(self.error_jax) - 1
        # XLA on a CPU takes numbers below the smallest normal one for zero, and torch computes with them. An optimizer
        # keeps such a number for a gradient of 1e-20: its square. Smaller errors are rounding in any case.
        if self.error_jax[step] > ROUNDING:
            with np.errstate(invalid="ignore", over="ignore"):
                if (np.abs(real(jax32) - real(jax64)) <= FLUSHED).all():
                    self.flushed.add(step)
        # A value that overflows in float32 on one side alone, as exp(100) in an unshifted softmax does, is
        # fine in float64 on both. The float64 runs cannot show it, so the float32 runs decide here.
        if self.lost_by(step) is not None:
            self.overflows.add(step)

    def lost_by(self, step: int) -> str | None:
        """Return the only side, "torch" or "JAX", that is finite in just one of its two precisions; else None."""
        if not self.error_jax or np.isinf(self.error_jax[step]) == np.isinf(self.error_torch[step]):
            return None
        return "JAX" if np.isinf(self.error_jax[step]) else "torch"

    def add_moved(self, moved: list[float], step: int, one: np.ndarray, other: np.ndarray) -> None:
        """Measure the same step of two float64 runs of one side: for `noise`, `torch_noise` or `tables`."""
        # In units of what the sides' difference is measured in, ‖torch64‖. A residue of what is zero in exact
        # arithmetic has any size: 1e-21 in one run, and 1e-6 in another, by rounding.
        size, otherwise = self.sizes[step]  # where torch has exactly zero, relative to what the other side has
        add_largest(moved, step, distance(one, other, otherwise, size if size or otherwise else None))

    def add_between32(self, jax32: np.ndarray, torch32: np.ndarray) -> None:
        """Measure the same step of both sides in float32, in case float64 is another program: see `alone`."""
        self.between32.append(distance(jax32, torch32))

    def add_spread32(self, step: int, one: np.ndarray, other: np.ndarray) -> None:
        """Measure the same step of two float32 runs of the JAX side, each moved by rounding; the largest counts."""
        add_largest(self.spread32, step, distance(one, other))
