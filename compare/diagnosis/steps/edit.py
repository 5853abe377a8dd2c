"""One change of a torch training step, that makes it the step of the port."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare.step.stage import Stage
from compare.torch_side.program_run import TorchProgramRun
from compare.verdict.divergence import Cause, Part
from compare.verdict.fix import Code

Tensors = Mapping[str, Any]


def unchanged(_: Any) -> AbstractContextManager[Any]:
    """Change nothing while a step runs."""
    return contextlib.nullcontext()


def untouched(_run: TorchProgramRun, _before: Tensors) -> None:
    """Change nothing after a step."""


ALL = 10**9
"""As many steps as are taken."""


@dataclass(frozen=True)
class Edit:
    """A change of the torch step, and what it says about the JAX step."""

    name: str
    """In a word or two: "clipping"."""
    explanation: str
    """What each side does."""
    fix: str
    """What to write on the JAX side."""
    during: Callable[[Any], AbstractContextManager[Any]] = unchanged
    """Makes the change in a run of torch's, while one of its steps runs."""
    after: Callable[[TorchProgramRun, Tensors], None] = untouched
    """Makes the change when a step is done; given are the state's floating-point tensors before the step."""
    free: int = 0
    """How many numbers were fitted to what the JAX side gives."""
    agrees: int = 0
    """How many whole steps must agree with it, from that of the difference on, as far as there are as many.

    Part of a step may agree by accident. What was fitted needs all of them.
    """
    source: str = ""
    """Where the convention is documented."""
    code: Code | None = None
    """The fix as a value, if it is code."""
    general: str = ""
    """What each side does, without names: equal for everything that the step does wrong in the same way."""
    of_operations: bool = False
    """Whether it changes operations of torch's at the calls where they were seen to differ, and maybe not at all."""
    hides: frozenset[str] = frozenset()
    """The parameters whose updates are the port's with it: neither these nor their optimizer's state are compared."""


@dataclass(frozen=True)
class Difference:
    """What differs first, with what both sides have at this step."""

    step: int
    stage: Stage
    name: str
    """Of the tensor on the torch side."""
    torch: np.ndarray
    """What the torch side gives at this step."""
    jax: np.ndarray
    """What the JAX side gives at this step, from the same start; in torch's layout."""
    near: float
    """The distance ‖a - b‖ / ‖b‖ that rounding explains, with the safety factor."""
    tensors: Mapping[str, "StateTensor"] = field(default_factory=dict)
    """The floating-point tensors of the state, by torch's names."""


@dataclass(frozen=True)
class StateTensor:
    """A tensor of the state before and after a step, on both sides; all in torch's layout."""

    before: np.ndarray
    torch: np.ndarray
    jax: np.ndarray
    near: float


def cause_of(edits: Sequence[Edit]) -> Cause:
    """Say what was proved; of edits that fit equally well, all."""
    names = " or ".join(dict.fromkeys(edit.name for edit in edits))
    says = ", or ".join(dict.fromkeys(edit.explanation for edit in edits))
    fix = "; or ".join(dict.fromkeys(edit.fix for edit in edits))
    code = edits[0].code if len(edits) == 1 else None  # of several, which one is meant is not known
    general = ", or ".join(dict.fromkeys(edit.general for edit in edits if edit.general))
    return Cause(
        names,
        f"{names}: {says}. With this change in the torch step, both sides agree there and at all steps before",
        fix,
        ", ".join(dict.fromkeys(edit.source for edit in edits if edit.source)),
        (code,) if code else (),
        (Part(names, f"{names}: {general}", fix, code),) if general else (),
    )
