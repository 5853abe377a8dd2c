"""Differences with the same cause and the same fix: one finding with its places."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compare.mending.patch import Patch, patch_of
from compare.mending.syntax import Unfit
from compare.report.places import listed
from compare.report.traps import link_of
from compare.report.wording import at, counted
from compare.verdict.divergence import REFUTED, Cause, Detail, Divergence, Line, Part, Role
from compare.verdict.fix import Code

SHOWN_PLACES = 6
"""How many entries of a list of places are shown; each may stand for several places."""

BRIEF = 30
"""The largest number of characters for which a list of places is in the headline."""

Modules = tuple[Mapping[str, str], Mapping[str, str]]
"""The class of each module by its path, on the torch and on the JAX side."""

SHOWN_LINES = 4
"""How many lines are shown, at most, of those that compute one value."""


@dataclass(frozen=True)
class Group:
    """Differences with the same fix."""

    findings: tuple[Divergence, ...]
    """In order of computation."""
    places: tuple[tuple[str, str], ...]
    """The names of each place on the torch and on the JAX side. For several findings in one module, the place is the
    module."""
    kind: str = ""
    """The torch class of the modules that differ; "" if they have several classes, or if no module differs."""
    parts: tuple[Part, ...] = ()
    """What differs at all places. A place with further differences is in other groups too."""
    same: bool = True
    """Whether the parts are the same to the letter, and do not name the block that each place is in."""
    after_unpatched: bool = False
    """Whether an earlier finding has no patch: what is one too many here may be what is missing there."""

    @property
    def first(self) -> Divergence:
        """The finding that is computed first."""
        return self.findings[0]

    @property
    def cause(self) -> Cause | None:
        """The whole cause of the first finding, also the parts that belong to other groups."""
        return self.first.cause

    @property
    def name(self) -> str:
        """The cause in a word or two; "" without a cause."""
        if self.parts:
            return " and ".join(part.name for part in self.parts)
        return self.cause.name if self.cause else ""

    @property
    def explanation(self) -> str:
        """The cause in full. If there are several places, without what was measured at one of them."""
        if self.cause and not self._general:
            return self.cause.explanation
        return ", and ".join(part.description for part in self.parts)

    @property
    def fix(self) -> str:
        """What to write on the JAX side; "" if no code follows from the cause."""
        if self.cause and not self._general:
            return self.cause.fix
        return "; ".join(dict.fromkeys(part.fix for part in self.parts if part.fix))

    @property
    def codes(self) -> tuple[Code, ...]:
        """The fix as values, as far as it is code."""
        if self.cause and not self._general:
            return self.cause.code
        return tuple(part.code for part in self.parts if part.code)

    @property
    def links(self) -> tuple[str, ...]:
        """The sections of the documentation that describe the mistake: "docs/traps.md#layernorm-epsilon"."""
        named = [(part.name, [part.code] if part.code else []) for part in self.parts]
        named = named or [(self.name, list(self.codes))]
        found = (link_of(name, self.kind, codes) for name, codes in named)
        return tuple(dict.fromkeys(link for link in found if link))

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of the user's code that compute it. A line that creates many layers is one entry."""
        return tuple(dict.fromkeys(line for each in self.findings for line in each.lines))

    def line(self, side: str) -> Line | None:
        """Return the most useful line of a side: where a layer is created rather than where it is called.

        Of lines that compute something one after another, the last computes what differs.
        """
        lines = [line for line in self.lines if line.side == side]
        first = min(lines, key=lambda line: list(Role).index(line.role), default=None)
        computed = [line for line in lines if line.role is Role.COMPUTED]
        return computed[-1] if first is not None and first.role is Role.COMPUTED else first

    def shown_lines(self, side: str) -> "list[Line]":
        """The lines to show: of a single place, all that compute what differs, one after another, if they are few."""
        last = self.line(side)
        if last is None or last.role is not Role.COMPUTED or len(self.findings) > 1:
            return [] if last is None else [last]
        computed = [line for line in self.lines if line.side == side and line.role is Role.COMPUTED]
        # Of each line of a file the last expression.
        places = {(line.source.file, line.source.line): line for line in computed}
        return list(places.values()) if len(places) <= SHOWN_LINES else [last]

    @property
    def patch(self) -> Patch | None:
        """What the fix changes in the user's files; None if it cannot be applied."""
        return self._patched if isinstance(self._patched, Patch) else None

    @property
    def unpatched(self) -> str:
        """Why there is no patch; "" if there is one."""
        return "" if isinstance(self._patched, Patch) else str(self._patched)

    @functools.cached_property
    def _patched(self) -> Patch | Unfit:
        if not self.fix:
            return Unfit("no fix is known")
        if any(REFUTED in each.details for each in self.findings):
            return Unfit(REFUTED.text)
        if self._others_too:
            return Unfit("the line makes other layers too, and these are right")
        if self.after_unpatched and self._takes_away:
            # softmax(dropout(x)) for dropout(softmax(x)): behind the dropout the softmax is one too many. Without the
            # earlier patch, this one would leave the port without a softmax.
            return Unfit("it removes an operation, which an earlier finding may need: mend that one first")
        try:
            # Each place has lines of its own: an activation that stands in a block twice is exchanged twice.
            edits = [
                edit
                for finding in self.findings
                for edit in patch_of(self._codes_of(finding), finding.lines, finding.values).edits
            ]
            return Patch(tuple(dict.fromkeys(edits)))
        except Unfit as error:
            if len(self.findings) == 1 or not self.same:
                return error
        try:
            return patch_of(self.codes, self.lines)
        except Unfit as error:
            return error

    def _codes_of(self, finding: Divergence) -> tuple[Code, ...]:
        """Return the fix as values at one place, where it may name another block."""
        return self.codes if self.same or finding.cause is None else finding.cause.code

    @property
    def _takes_away(self) -> bool:
        return any(code.takes_away for code in self.codes)

    @property
    def _others_too(self) -> bool:
        """Whether a line makes other layers as well, which are right: a helper that is called with other arguments."""
        places = [
            (dict.fromkeys(each.lines), each.modules or (each.torch.rpartition(".")[0],)) for each in self.findings
        ]
        return any(
            line.makes > len({place for lines, place in places if line in lines})
            for line in self.lines
            if line.role is Role.MADE
        )

    @property
    def _general(self) -> bool:
        """Whether the first finding's own cause says too much: what was measured there, or what else differs there."""
        # Two layers with the same wrong setting differ by different amounts: an explanation with one layer's numbers
        # would be false of the other. What both share is in the parts.
        whole = self.cause is not None and self.parts == self.cause.parts
        return bool(self.parts) and not (whole and len(self.findings) == 1)

    @property
    def title(self) -> str:
        """What differs, in a few words: "BatchNorm2d momentum"."""
        if self.name:
            # A cause that has the name of a layer needs no class, as "LayerNorm left out". What a training step does
            # otherwise has no parts: it is not the layer's.
            return f"{self.kind} {self.name}" if self.parts and self.kind not in self.name else self.name
        several = self.kind and len(self.places) > 1
        return f"difference in {self.kind}" if several else f"difference {at(self.places[0][0])}"

    @property
    def summary(self) -> str:
        """The title, and the number of places if there are several."""
        return self.title if len(self.places) == 1 else f"{self.title} ({counted(len(self.places), self._unit)})"

    @property
    def _unit(self) -> str:
        return "layer" if self.kind else "place"

    @property
    def headline(self) -> str:
        """One line: step, stage, the place or the number of places, and the cause."""
        if len(self.findings) == 1 and not self._general:
            return self.first.headline
        what = self.where if self._brief else counted(len(self.places), self._unit)
        if len(self.findings) == 1:
            what = self.first.torch
        stages = ", ".join(dict.fromkeys(str(each.stage) for each in self.findings))
        name = f": {self.title}" if self.name or self.kind else ""
        return f"step {self.step}, {stages}, {what}{name}"

    @property
    def step(self) -> int:
        """The first step at which one of them differs."""
        return min(each.step for each in self.findings)

    @property
    def where(self) -> str:
        """The place, with both names if they differ; of several places, the names on the torch side."""
        torch, jax = self.places[0]
        if len(self.findings) > 1:
            return self.named(0, SHOWN_PLACES)
        return torch if torch == jax else f"{torch} in torch, {jax} on the JAX side"

    @property
    def in_headline(self) -> bool:
        """Whether the headline lists all places."""
        return self._brief if len(self.findings) > 1 else self.places[0][0] == self.places[0][1]

    @property
    def same_names(self) -> bool:
        """Whether both sides use the same names for the places; for several, apart from path separators."""
        several = len(self.findings) > 1
        return all(torch == (jax.replace("/", ".") if several else jax) for torch, jax in self.places)

    @property
    def _brief(self) -> bool:
        return len(self.where) <= BRIEF

    @property
    def details(self) -> tuple[Detail, ...]:
        """What is known about the place. Empty for several places with one cause, which has what they share."""
        return () if self.cause and len(self.findings) > 1 else self.first.details

    @property
    def largest(self) -> Divergence:
        """The finding with the largest difference in float64."""
        return max(self.findings, key=lambda each: each.error64)

    def named(self, side: int, most: int | None = None) -> str:
        """List the places on the torch side (0) or on the JAX side (1), in at most `most` entries."""
        return listed((place[side] for place in self.places), "./"[side], most)

    def to_dict(self) -> dict[str, Any]:
        """The group as a dict for JSON. The findings themselves are in `divergence` and `others`."""
        return {
            "title": self.title,
            "cause": self.name,
            "explanation": self.explanation,
            "fix": self.fix,
            "see": list(self.links),
            "stages": list(dict.fromkeys(str(each.stage) for each in self.findings)),
            "step": self.step,
            "findings": len(self.findings),
            "places": [{"torch": torch, "jax": jax} for torch, jax in self.places],
            "lines": [line.to_dict() for line in self.lines],
            "patch": self.patch and self.patch.to_dict(),
            "unpatched": self.unpatched,
        }
