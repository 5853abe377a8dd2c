"""What a comparison found, as data that every writer draws from."""

import dataclasses
import functools
import importlib.metadata
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compare.alignment.pairings import NotCompared
from compare.bugs import Bug
from compare.mending.patch import together
from compare.mending.syntax import Edit
from compare.report.grouping import grouped
from compare.report.groups import Group
from compare.report.summary import LeftOut, StageSummary, by_reason, summaries
from compare.report.wording import counted
from compare.step.stage import Stage
from compare.verdict.accepting import Accepted
from compare.verdict.divergence import Cause, Divergence
from compare.verdict.ratio import Quantity, Verdict

if TYPE_CHECKING:
    from compare.report.power import Power

SCHEMA = 2
"""Version of what `compare.Report.to_json` gives; it grows when a field changes its meaning or goes."""

SHOWN_GROUPS = 12
"""How many groups of differences are shown; the JSON has all."""


def settings(steps: int, device: str) -> dict[str, Any]:
    """What makes a run repeatable: how many steps, where, and with which versions."""
    packages = ("torch", "jax", "flax", "optax", "numpy")
    return {
        "steps": steps,
        "device": device,
        "float32_matmul_precision": "highest",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Run:
    """One side's trajectory: its losses in both precisions, and the time of one float32 training run."""

    side: str
    """The name of the side: "torch", "flax", "jax" or "numpy"."""
    losses32: np.ndarray
    """Shape `(steps,)`, each loss before its step's update; shape `(0,)` if there is no loss."""
    losses64: np.ndarray
    """Likewise, in float64."""
    seconds: float | None = None
    """None if no run was timed."""


@dataclass(frozen=True)
class Findings:
    """The outcome of one comparison."""

    name: str
    """The name of the pair."""
    torch: Run
    """The torch side's losses."""
    jax: Run
    """The JAX side's losses."""
    quantities: list[Quantity]
    """Everything that was compared, in order of computation within a step."""
    divergence: Divergence | None
    """Where the two sides first differ by more than rounding; None if they do not."""
    notes: list[Cause]
    """Causes of a `precision` verdict, with their size."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What is needed to reproduce the run: steps, seed, device, versions."""
    not_compared: list[NotCompared] = field(default_factory=list)
    """What only one side has, with the reason."""
    others: list[Divergence] = field(default_factory=list)
    """Independent differences besides the first divergence: what differs even if everything before it is right. To
    find them, every part of a step is started from the torch side's values."""
    nondeterministic: list[str] = field(default_factory=list)
    """Random draws of one side only, and results that are not reproducible. Nothing is proved until this is empty."""
    unproved: list[Cause] = field(default_factory=list)
    """Why nothing is proved although nothing differs: a callback into Python, or no output that decides."""
    limits: list[str] = field(default_factory=list)
    """What a match does not cover, as the headline states it: "in 1 step: momentum and schedule not reached"."""
    unexercised: list[str] = field(default_factory=list)
    """What no batch and no weight of this check exercises, and what would exercise it; one line each."""
    pinned: list[str] = field(default_factory=list)
    """What could not be run in float64, on either side. Differences of the size of float32's rounding may come from
    it."""
    bugs: list[Bug] = field(default_factory=list)
    """Errors of this package in the search for causes, which is then incomplete. The verdict does not depend on it."""
    stages: bool = False
    """Whether the text shows what was compared, stage by stage."""
    modules: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: ({}, {}))
    """The class of each module that ran, by its path, in order of execution, on the torch and on the JAX side."""
    weights: list[tuple[str, str]] = field(default_factory=list)
    """The map of the weights: pairs of a tensor, or a part of one, of the torch side and of the JAX side."""
    accepted: list[Accepted] = field(default_factory=list)
    """The differences that the user accepts with `accept`, and the places that differ. An entry without places no
    longer applies."""
    power: "Power | None" = None
    """The planted faults that the check catches, if that was measured: `compare.power`."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all quantities and steps; equal to "match", "precision" or "mismatch"."""
        if self.divergence or self.nondeterministic or self.unproved:
            return Verdict.MISMATCH
        if self.notes:
            return Verdict.PRECISION
        # Verdict lists its members from best to worst.
        return max((quantity.verdict for quantity in self.quantities), key=list(Verdict).index)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each step. A step that starts from a mismatch is a mismatch too."""
        if not self.divergence:
            return [self.verdict] * self.steps
        before = Verdict.PRECISION if self.notes else Verdict.MATCH
        wrong = max(self.steps - self.divergence.step, 0)
        return [before] * (self.steps - wrong) + [Verdict.MISMATCH] * wrong

    @property
    def steps(self) -> int:
        """The number of steps that were compared."""
        return max((len(quantity.error64) for quantity in self.quantities), default=0)

    @property
    def compared(self) -> str:
        """How much was compared: "12 tensors over 3 steps"."""
        return f"{counted(len(self.quantities), 'tensor')} over {counted(self.steps, 'step')}"

    def by_stage(self) -> list[StageSummary]:
        """Summarize what was compared, with one entry for each stage, in order of computation."""
        return summaries(self.quantities)

    def left_out(self) -> list[LeftOut]:
        """Return what was not compared, with one entry for each side and reason."""
        return by_reason(self.not_compared)

    def side_name(self, side: str) -> str:
        """The name of the "torch" or the "jax" side; "" for ""."""
        return {"torch": self.torch.side, "jax": self.jax.side, "": ""}[side]

    @property
    def uneven(self) -> Quantity | None:
        """The first quantity for which one side rounds more and nothing else is wrong."""
        return next((quantity for quantity in self.quantities if quantity.verdict == Verdict.PRECISION), None)

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The first divergence and the others; those with the same cause and the same fix are one group.

        The group of the first divergence comes first, then those with the most places.
        """
        return grouped([*([self.divergence] if self.divergence else []), *self.others], self.modules)

    @property
    def edits(self) -> list[Edit]:
        """The edits that fix the port, for all findings whose fix can be applied to the user's files."""
        return together(group.patch for group in self.groups if group.patch)

    @property
    def to_mend(self) -> str:
        """All groups in one line: "3 things to mend: Conv2d padding (2 layers), ..."; "" if there is at most one."""
        groups = self.groups
        if len(groups) < 2:
            return ""
        listed = ", ".join(group.summary for group in groups[:SHOWN_GROUPS])
        more = f", and {len(groups) - SHOWN_GROUPS} more" if len(groups) > SHOWN_GROUPS else ""
        return f"{self.count_of_groups}: {listed}{more}"

    @property
    def count_of_groups(self) -> str:
        """Their number: "3 things to mend"; "3 findings" where one has no cause, and may follow from another."""
        return f"{len(self.groups)} {'things to mend' if all(group.cause for group in self.groups) else 'findings'}"

    @property
    def headline(self) -> str:
        """One line: the verdict, where the sides first differ, and why, if that is known."""
        found = str(self.verdict)
        if count := sum(bool(each.places) for each in self.accepted):
            found += f", {count} accepted"
        if self.proves_nothing:
            found = "nondeterministic, so that nothing is proved"
        elif self.divergence:
            found += f" at {self.divergence.headline}"
        elif self.unproved:
            found += f": nothing is proved, {self.unproved[0].name}"
        elif self.notes:
            found += f": the same mathematics, but {self.notes[0].name}"
        elif self.verdict == Verdict.PRECISION:
            found += ": the same mathematics, but one side rounds more"
        if not self.limits or not self.ok:
            return found
        limits = "; ".join(self.limits)
        return f"{found} {limits}" if self.verdict == Verdict.MATCH else f"{found} ({limits})"

    @property
    def proves_nothing(self) -> bool:
        """Whether a result is not reproducible, and no cause is proved."""
        return bool(self.nondeterministic) and (self.divergence is None or self.divergence.cause is None)

    @property
    def ok(self) -> bool:
        """Whether there is no mismatch."""
        return self.verdict != Verdict.MISMATCH

    @property
    def loss(self) -> Quantity:
        """The difference of the losses; LookupError if the sides have no loss."""
        found = next((quantity for quantity in self.quantities if quantity.stage == Stage.LOSS), None)
        if found is None:
            raise LookupError("the sides were given no loss")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The report as a dict for JSON. docs/report.md describes the fields."""
        return {
            "name": self.name,
            "headline": self.headline,
            "verdict": str(self.verdict),
            "verdicts": [str(verdict) for verdict in self.verdicts],
            "divergence": self.divergence and self.divergence.to_dict(),
            "nondeterministic": self.nondeterministic,
            "unproved": [dataclasses.asdict(cause) for cause in self.unproved],
            "limits": self.limits,
            "unexercised": self.unexercised,
            "pinned": self.pinned,
            "bugs": [dataclasses.asdict(bug) for bug in self.bugs],
            "others": [other.to_dict() for other in self.others],
            "groups": [group.to_dict() for group in self.groups],
            "to_mend": self.to_mend,
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "settings": self.settings,
            "sides": {
                key: {
                    "name": run.side,
                    "losses32": [float(loss) for loss in run.losses32],
                    "losses64": [float(loss) for loss in run.losses64],
                    "seconds": run.seconds,
                }
                for key, run in (("torch", self.torch), ("jax", self.jax))
            },
            "not_compared": [each._asdict() for each in self.not_compared],
            "modules": dict(zip(("torch", "jax"), self.modules, strict=True)),
            "weights": [{"torch": torch, "jax": jax} for torch, jax in self.weights],
            "quantities": [
                {each.name: getattr(quantity, each.name) for each in dataclasses.fields(quantity) if each.repr}
                | {"worst_ratio": float(quantity.ratio.max()), "verdict": str(quantity.verdict)}
                for quantity in self.quantities
            ],
            "accepted": [{**dataclasses.asdict(each), "applies": bool(each.places)} for each in self.accepted],
            "power": self.power and self.power.to_dict(),
        }


def float32_differences(report: Findings) -> np.ndarray:
    """The relative difference of the two sides' float32 losses at each step, of shape `(steps,)`."""
    length = min(len(report.torch.losses32), len(report.jax.losses32))
    torch, jax = (run.losses32[:length].astype(np.float64) for run in (report.torch, report.jax))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference: np.ndarray = np.abs(jax - torch) / np.abs(torch)
    return difference


def float32_difference(report: Findings) -> float:
    """The largest relative difference of the two sides' float32 losses."""
    return float(float32_differences(report).max())
