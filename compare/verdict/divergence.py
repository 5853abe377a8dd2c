"""Where two sides differ, and why: what a report holds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from compare.step.places import Source
from compare.verdict.fix import Code


class Role(StrEnum):
    """What a line of the user's has to do with a difference."""

    MADE = "made"
    """It makes the layer, or the optimizer."""
    COMPUTED = "computed"
    """It computes what differs, between two layers."""
    CALLED = "called"
    """It calls the layer."""
    GIVEN = "given"
    """It gives to the layer what differs."""
    DEFINED = "defined"
    """It begins the loss function."""


@dataclass(frozen=True)
class Line:
    """A line of the user's code that a difference comes from."""

    side: str
    """"torch" or "jax"."""
    role: Role
    source: Source
    makes: int = 1
    """How many layers of the model the line makes for which the fix is not known to be right: a helper makes many."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        at = self.source
        return {"side": self.side, "role": str(self.role), "file": at.file, "line": at.line, "text": at.text}


@dataclass(frozen=True)
class Part:
    """One thing that two sides do differently. It has no measurement: it is equal at two places of one cause."""

    name: str
    """The name in a word or two, as in a `Cause`."""
    description: str
    """What each side does."""
    fix: str = ""
    """What to write on the JAX side; "" if no code follows."""
    code: Code | None = field(default=None, compare=False)
    """The fix as a value, if it is code."""


@dataclass(frozen=True)
class Cause:
    """Why two sides differ. It was proved: without it the difference disappears, at other steps too."""

    name: str
    """In a word or two: "epsilon", "weight decay"."""
    explanation: str
    """What each side does, and the difference that remains once both do the same."""
    fix: str
    """What to write on the JAX side; "" if no code follows from the cause."""
    source: str = ""
    """Where the convention is documented."""
    code: tuple[Code, ...] = ()
    """The expressions in the fix, as values."""
    parts: tuple["Part", ...] = ()
    """The things that differ, each with its own fix, if only several together explain the difference. Empty if there
    is only the explanation."""


class DetailKind(StrEnum):
    """What a detail is about."""

    LAYER = "layer"
    """The layer at the place on one side, with its settings."""
    VALUES = "values"
    """Values of both sides: where they differ most, or their learning rates."""
    CALLS = "calls"
    """How often each side's step calls a module, where no cause is known and the two differ."""
    UNDECIDED = "undecided"
    """Several causes explain these steps equally well."""
    CANDIDATE = "candidate"
    """One of these causes."""
    REPEATED = "repeated"
    """The cause holds for other calls of the same line as well."""
    UNSEARCHED = "unsearched"
    """The search ended here, so more may differ."""
    REFUTED = "refuted"
    """The port was run with the fix in its code, and that does not help."""


@dataclass(frozen=True)
class Detail:
    """One fact about a place."""

    kind: DetailKind
    text: str
    side: str = ""
    """The side that it is about, "torch" or "jax"; "" for both."""
    settings: tuple[tuple[str, str], ...] = ()
    """For a layer, those of its settings that are plain values: pairs of a name and the value as source code."""


AT_EACH_CALL = Detail(DetailKind.REPEATED, "the cause is the same at other calls of this line of torch's step")
REFUTED = Detail(
    DetailKind.REFUTED,
    "the fix is not shown as a change of a line: run with that change, the port still differs here, differs elsewhere, "
    "or fails",
)
SEARCH_ENDED = Detail(DetailKind.UNSEARCHED, "the search ended here, and more may differ: fix this and check again")


@dataclass(frozen=True)
class Divergence:
    """The first place, in order of computation, at which two sides differ by more than rounding."""

    step: int
    """Counted from 0."""
    stage: str
    """A `Stage`: "forward", "loss", "gradient", "update" (optimizer state with it), "parameters" or "buffers"."""
    torch: str
    """The name of what differs on the torch side."""
    jax: str
    """The name of what differs on the JAX side."""
    error64: float
    """The relative difference of the two sides in float64, in the Euclidean norm; infinity if only one is finite."""
    error32: float
    """The expected relative rounding in float32: the larger of the two sides' own, over neighbouring steps."""
    expected64: float
    """The difference in float64 that rounding explains; a difference of more than 16 times this is a divergence."""
    cause: Cause | None = None
    """Why the sides differ; None if no cause was found."""
    opinion: str = ""
    """Other evidence of which side is wrong: a third implementation, in NumPy, or the port's own weights."""
    details: tuple[Detail, ...] = ()
    """What is known about the place: both layers with their settings, values of both sides, possible causes."""
    modules: tuple[str, str] | None = None
    """The path of the module that differs on the torch and on the JAX side; None if the place is not one module."""
    lines: tuple[Line, ...] = ()
    """The lines of the user's code that compute it, on both sides, as far as they are known."""
    values: Mapping[str, tuple[Line, ...]] = field(default_factory=dict)
    """The lines at which the JAX side has the values that its fix names: see `Code.values`."""
    number: int = 0
    """Its number among what is compared, in order of computation within a step."""
    question: str = ""
    """"" if it shows with the given weights and batches; otherwise how it shows: "from other weights and batches"."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        shown = dataclasses.asdict(dataclasses.replace(self, values={}))
        del shown["values"]
        return shown | {"lines": [line.to_dict() for line in self.lines]}

    @property
    def headline(self) -> str:
        """One line: the place and, if it is known, the cause."""
        place = f"step {self.step}, {self.stage}" + (f", {self.torch}" if self.torch != self.stage else "")
        place += f", {self.question}" if self.question else ""
        return f"{place}: {self.cause.name}" if self.cause else place


def with_search_ended(found: Divergence) -> Divergence:
    """Say of a difference, once, that the search ended there."""
    if SEARCH_ENDED in found.details:
        return found
    return dataclasses.replace(found, details=(*found.details, SEARCH_ENDED))
