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
    """How many layers of the model the line makes, where it makes one: a helper makes many."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        at = self.source
        return {"side": self.side, "role": str(self.role), "file": at.file, "line": at.line, "text": at.text}


@dataclass(frozen=True)
class Part:
    """One thing that two sides do differently. Nothing in it was measured: it is equal at two places of one cause."""

    name: str
    """In a word or two, as of a `Cause`."""
    description: str
    """What each side does."""
    fix: str = ""
    """What to write on the JAX side; "" where no code follows."""
    code: Code | None = field(default=None, compare=False)
    """The fix as a value, where it is code."""


@dataclass(frozen=True)
class Cause:
    """Why two sides differ, proved by removing it and watching the difference go, at other steps too."""

    name: str
    """In a word or two: "epsilon", "weight decay"."""
    explanation: str
    """What each side does, and how far apart they are once it is the same."""
    fix: str
    """What to write on the JAX side; "" where no code follows from the cause."""
    source: str = ""
    """Where the convention is documented."""
    code: tuple[Code, ...] = ()
    """The expressions in the fix, as values."""
    parts: tuple["Part", ...] = ()
    """What differs, each with its own fix: of several things that only together explain the difference, all. Empty if
    the explanation is all there is."""


class DetailKind(StrEnum):
    """What a detail says."""

    LAYER = "layer"
    """The layer at the place on one side, with its settings."""
    VALUES = "values"
    """Values of both sides: where they are farthest apart, or learning rates."""
    UNDECIDED = "undecided"
    """That several causes explain these steps equally well."""
    CANDIDATE = "candidate"
    """One of these causes."""
    UNSEARCHED = "unsearched"
    """That the search ended here, so that more may differ."""


@dataclass(frozen=True)
class Detail:
    """One thing that is known of a place."""

    kind: DetailKind
    text: str
    side: str = ""
    """Whose it is, "torch" or "jax"; "" where it is about both."""
    settings: tuple[tuple[str, str], ...] = ()
    """Of a layer, its settings that are plain values: their names, and the values as source."""


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
    """The relative difference of the two in float64, in the Euclidean norm; infinity if only one is finite."""
    error32: float
    """The rounding that is fair there in float32, relative too: the sides' own, the largest of neighbouring steps."""
    expected64: float
    """The difference in float64 that rounding explains there; more than 16 times that is a divergence."""
    cause: Cause | None = None
    """Why; None if none was found."""
    opinion: str = ""
    """What else points to the culprit: a third implementation, in NumPy, or the weights that the port came with."""
    details: tuple[Detail, ...] = ()
    """What is known of the place: both layers with their settings, values of both sides, causes that are possible."""
    modules: tuple[str, str] | None = None
    """The path of the module that differs on the torch and on the JAX side; None where the place is not one module."""
    lines: tuple[Line, ...] = ()
    """The lines of the user's code that it comes from, on both sides, as far as they are known."""
    values: Mapping[str, tuple[Line, ...]] = field(default_factory=dict)
    """The lines at which the JAX side has the values that its fix names: see `Code.values`."""
    question: str = ""
    """"" where it shows with the weights and batches given; else what was asked: "from other weights and batches"."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        shown = dataclasses.asdict(dataclasses.replace(self, values={}))
        del shown["values"]
        return shown | {"lines": [line.to_dict() for line in self.lines]}

    @property
    def headline(self) -> str:
        """Where, and if that is known why, in one line."""
        place = f"step {self.step}, {self.stage}" + (f", {self.torch}" if self.torch != self.stage else "")
        place += f", {self.question}" if self.question else ""
        return f"{place}: {self.cause.name}" if self.cause else place
