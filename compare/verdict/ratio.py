"""The ratio of a quantity's float64 difference to what rounding explains, and its verdict: too large is a mismatch.

Rounding shrinks in float64, a bug does not.

Each quantity is observed four times, by both sides in float32 and in float64. Write d(a, b) = ‖a - b‖ / ‖b‖. Then
d(jax64, torch64) is the algorithms' difference, and d(torch32, torch64) tells how much rounding is fair: in float64
it is smaller by 2**-29, the ratio of the two machine epsilons. docs/verdict.md has the measurements.
"""

from enum import StrEnum

import numpy as np

from compare.numerics.distance import EPSILON32, EPSILON64, ULPS
from compare.step.stage import Stage
from compare.verdict.measured import Measured
from compare.verdict.neighbours import LOST, near

FACTOR = 16.0
"""The one safety factor: this many times what rounding explains is more than rounding.

The worst right port measured has 6; the smallest bug measured, an eps of 1e-7 for 1e-8, has 5e8: docs/verdict.md.
"""

MULTIPLE = 1000.0
"""The JAX side's float32 rounding may be this multiple of torch's; above, it must be shown to be rounding: see
`lower`."""

NOISY = 2.0**16
"""The largest multiple of torch's rounding at step 0: a program that is noisier is another program in float32."""


THREE_DIGITS = 1e-3
"""Rounding of more than this leaves float32 fewer than three of its seven digits."""


class Verdict(StrEnum):
    """What a comparison found."""

    MATCH = "match"
    """The same program."""
    PRECISION = "precision"
    """The same mathematics, one side at lower precision."""
    MISMATCH = "mismatch"
    """A different program: the port has a bug."""


class Quantity(Measured):
    """One quantity that both sides compute at every step, and what its differences mean."""

    update: "Quantity | None" = None  # of the parameter, as judged

    @property
    def decisive64(self) -> list[float]:
        """`error64`, but infinite at `overflows`, where the float32 runs decide."""
        return [np.inf if step in self.overflows else error for step, error in enumerate(self.error64)]

    @property
    def apart32(self) -> np.ndarray:
        """Whether the JAX side's two precisions are more than `MULTIPLE` times as far apart as torch's, at each step.

        That is rare among right ports, and then it must be shown to be rounding: see `other32`. Where torch has
        exactly zero, the JAX side has a residue without a correct digit in either precision. Numbers that are too small
        for float32 are no other program either: see `flushed`.
        """
        sizes = np.array([size for size, _ in self.sizes])[: len(self.error_jax)]
        apart: np.ndarray = (np.asarray(self.error_jax) > MULTIPLE * self.fair32) & (sizes > 0)
        return apart & ~self._flushed

    @property
    def _flushed(self) -> np.ndarray:
        return np.array([step in self.flushed for step in range(len(self.error_jax))], bool)

    @property
    def other32(self) -> np.ndarray:
        """Whether the JAX side is another program in float32, at each step; nowhere if `spread32` was not measured.

        Amplified rounding changes a float32 run by as much when its weights and inputs are moved by a few units in the
        last place. A difference that is larger than this change is not rounding. The distances are relative to the
        larger of both precisions, because a value that is zero in exact arithmetic is eight orders of magnitude larger
        in float32.
        """
        error = np.asarray(self.error_jax)
        if not self.spread32:
            return np.zeros(len(error), bool)
        # What rounding does in float64, as where two numbers are equal but for it, it may do in float32 as well.
        # The torch side's, since a port may amplify its own rounding.
        noise = near(self.torch_noise)[: len(error)] if self.torch_noise else np.zeros(len(error))
        with np.errstate(invalid="ignore"):
            # By the triangle inequality, ‖jax32‖ is at most (1 + error) ‖jax64‖. So this is the least that the distance
            # can be in proportion to the larger of the two norms.
            share = error / (1 + error)
            other: np.ndarray = self.apart32 & (share > FACTOR * np.maximum(near(self.spread32)[: len(error)], noise))
        if self.rounds_alone and self.lowest == EPSILON32 and self.stage in (Stage.FORWARD, Stage.LOSS, Stage.GRADIENT):
            has_digits = self.error_torch[0] < LOST and self.sizes[0][0] > 0 and share[0] > FACTOR * noise[0]
            other[0] |= has_digits and error[0] > NOISY * self.fair32[0]
        return other

    @property
    def fair32(self) -> np.ndarray:
        """Torch's float32 rounding at each step, with a minimum."""
        return self._floored(near(self.error_torch))[: len(self.error_jax)]

    @property
    def rounding(self) -> np.ndarray:
        """The expected float32 rounding at each step, of shape `(steps,)`: the larger of the sides', with a minimum.

        The JAX side's rounding counts too, because some of its algorithms round worse, such as the variance of Flax's
        norms. A bug is the same in both of its precisions, so it adds nothing to the distance between them. If the JAX
        side is another program in float32, that distance is not rounding, and counts only up to `MULTIPLE` times
        torch's.
        """
        # The maximum over neighbouring steps, as a single error may be small by accident: the loss is one
        # number, and its error crosses zero. Of errors with a normal distribution one in 12 is a tenth of
        # their deviation or less.
        if not self.error_jax:
            return self._floored(near(self.error_torch))
        jax = np.where(self.other32 | self._flushed, np.minimum(self.error_jax, MULTIPLE * self.fair32), self.error_jax)
        return self._floored(near(np.maximum(self.error_torch, jax)))

    @property
    def expected(self) -> np.ndarray:
        """The float64 difference that rounding explains at each step, of shape `(steps,)`."""
        return np.maximum(self.expected_alone, near(self.tables)) if self.tables else self.expected_alone

    @property
    def expected_alone(self) -> np.ndarray:
        """The same without the rounding of tables: from equal values, only the part with a table has it."""
        expected: np.ndarray = self.rounding * (EPSILON64 / EPSILON32)
        return np.maximum(expected, near(self.noise)) if self.noise else expected

    @property
    def alone(self) -> np.ndarray:
        """Whether one float64 run may be another program than the one that runs in float32, at each step.

        Adding a mask of -1e10 makes all masked numbers equal in float32, but not in float64. Then one side's two
        precisions agree, and the other side's differ by as much as the two sides do in float64.
        """
        error64 = np.asarray(self.error64)
        # If both precisions of one side agree with each other to rounding (`least`), while the float64 runs
        # differ by more, then the other side's float64 run is the odd one out, and not the port.
        least = np.minimum(self.error_torch, self.error_jax)[: len(error64)]
        return self._from_float64 & (error64 > FACTOR * self._floored(least))

    @property
    def _from_float64(self) -> np.ndarray:
        """Whether a side's own two precisions are about as far apart as the two sides are in float64, at each step."""
        error64 = np.asarray(self.error64)
        # The triangle inequality gives the factor of 2. If the float32 runs agree, `error64` is at most about the sum
        # of the two sides' own distances, and the larger of these is at least half of it.
        from_float64: np.ndarray = 2 * np.maximum(self.error_torch, self.error_jax)[: len(error64)] >= error64
        return from_float64

    @property
    def _ratio32(self) -> np.ndarray:
        """The float32 difference of both sides over the rounding of the side that has less, of shape `(steps,)`."""
        # In float32 the unit roundoff is 2**29 times larger, and so is what may hide below it. This is used
        # only where float64 cannot be, see `alone`, and against the side that rounds less.
        least = np.minimum(near(self.error_torch), near(self.error_jax))
        ratio: np.ndarray = np.asarray(self.between32) / self._floored(least)
        return np.where(self._from_float64, ratio[: len(self.error64)], np.inf)

    @property
    def excused(self) -> np.ndarray:
        """The float64 difference at each step where both sides agree in float32, and 0 elsewhere."""
        error64 = np.asarray(self.error64)
        if not self.between32:
            return np.zeros(len(error64))
        return np.where(self._ratio32 <= FACTOR, error64, 0.0)

    @property
    def _lost_in_one_run(self) -> bool:
        """Whether at step 0 one float64 run is alone, and it is no residue of what is zero in exact arithmetic.

        Such a residue is larger by eight orders of magnitude in float32 than in float64.
        """
        return bool(self.error_jax) and bool(self.alone[0]) and max(self.error_torch[0], self.error_jax[0]) < 2 / LOST

    def _floored(self, errors: np.ndarray) -> np.ndarray:
        # A quantity that float32 holds exactly, such as a sum of small integers, has an error of 0. In
        # float64 the other side may still add it up in another order: a few units in the last place, times
        # the condition number, are always fair.
        floored: np.ndarray = np.maximum(errors, ULPS * EPSILON32 * np.asarray(self.cancellation)[: len(errors)])
        return floored

    @property
    def ratio(self) -> np.ndarray:
        """The float64 difference divided by what rounding explains, of shape `(steps,)`: about 1 for a right port.

        It is 0 where float32 has no correct binary digit left. Rounding is then not a small perturbation, and its size
        does not predict float64's: the input of a ReLU may change sign in float64 too. Such a step proves nothing, and
        the other steps decide.
        """
        error64, lost = np.asarray(self.error64), self.rounding >= LOST
        if self.update is not None:
            # An update that is all rounding moves the parameter by noise, and it stays moved: from there on the
            # parameter's own error says nothing, however small it is compared with the parameter.
            lost |= np.logical_or.accumulate(self.update.rounding >= LOST)
        steps = len(error64)
        lost = lost[:steps]
        if self.stage in (Stage.FORWARD, Stage.LOSS) and self._lost_in_one_run:
            # At step 0 nothing has been amplified by training. An error of 1 there is no chaos, but another
            # program in float64.
            lost[0] = False
        # The smaller of both ratios: a real bug shows in float32 and in float64, a float64 run that is
        # another program in float64 alone.
        with np.errstate(invalid="ignore"):  # infinite on both sides in float32, and on one in float64
            ratio = error64 / self.expected[:steps]
            if self.between32:
                ratio = np.minimum(ratio, self._ratio32)
        return np.where(np.isinf(error64), np.inf, np.where(lost, 0.0, ratio))

    def differs(self, step: int, error64: float) -> bool:
        """Return whether an error in float64 is more than rounding explains at a step."""
        if np.isinf(error64):
            return True
        return bool(self.rounding[step] < LOST and error64 > self.limit(step))

    def limit(self, step: int) -> float:
        """The largest float64 difference that is a match at a step."""
        # Linear error analysis: what an algorithm makes of rounding errors is proportional to the unit
        # roundoff u, as long as they are small (Higham, Accuracy and Stability of Numerical Algorithms,
        # chapter 1). float32's error, measured, times u64 / u32 = 2**-29 is therefore the float64 error that
        # rounding explains, whatever the condition number is.
        return FACTOR * float(self.expected[step])

    @property
    def imbalance(self) -> float:
        """The JAX side's float32 rounding divided by torch's, at step 0.

        Only at step 0 does each side have only its own rounding. Later, the input of one ReLU may change sign in
        float32 on one side, which changes everything after it by more than any rounding. The imbalance is 1 if neither
        side has a correct digit, and if one side is exact and the other is only rounding error: a value that is zero
        in exact arithmetic may be computed as zero on one side, and as a residue on the other.
        """
        least, most = sorted((self.error_torch[0], self.error_jax[0]))
        if least >= LOST or (most >= LOST and least == 0):
            return 1.0
        # The same floor as in `rounding`, so that 0 and a few units in the last place are no imbalance.
        floor = ULPS * EPSILON32 * self.cancellation[0]
        return max(self.error_jax[0], floor) / max(self.error_torch[0], floor)

    @property
    def noisy(self) -> bool:
        """Whether the JAX side alone has fewer than three correct digits in float32 at step 0.

        It was shown to be rounding, or `other32` would hold. But people train in float32, and an optimizer that
        amplifies its own rounding trains otherwise there.
        """
        if not (self.error_jax and self.sizes and self.rounds_alone and self.apart32[0]):
            return False
        noise = self.torch_noise[0] if self.torch_noise else 0.0
        share = 1.0 if np.isinf(self.error_jax[0]) else self.error_jax[0] / (1 + self.error_jax[0])  # as in `other32`
        return bool(self.error_torch[0] < THREE_DIGITS and share > max(THREE_DIGITS, FACTOR * noise))

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all steps.

        Precision is judged on outputs and losses, which are continuous in the weights: a gradient jumps with a ReLU.
        What leaves fewer than three digits in float32 is judged everywhere.
        """
        if self.decides and ((self.ratio > FACTOR).any() or self.other32.any()):
            return Verdict.MISMATCH
        if self.rounds_alone and self.stage in (Stage.FORWARD, Stage.LOSS) and not 1 / FACTOR < self.imbalance < FACTOR:
            return Verdict.PRECISION
        return Verdict.PRECISION if self.decides and self.noisy else Verdict.MATCH
