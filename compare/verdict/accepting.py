"""Known differences that the user accepts, each with a reason. They are listed and do not affect the verdict."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compare.alignment.pairings import Alignment, Pairing
from compare.errors import InputError
from compare.step.stage import Stage
from compare.verdict.ratio import FACTOR, Quantity


@dataclass(frozen=True)
class Accepted:
    """One entry of `accept`, and what it came to."""

    what: str
    """The entry, as in "buffers: *.running_var"."""
    reason: str
    places: tuple[str, ...] = ()
    """The names of what it lets differ, on the torch side; empty if nothing differs there any more."""


class Acceptance:
    """The entries of `accept`.

    A difference is accepted where an entry names it. What follows from it elsewhere must be named as well, since
    nothing proves there that it is all that differs.

    Args:
        entries: Reasons by "stage: pattern", or by a pattern for all stages. A pattern is a name of the torch side in
            which "*" is anything.

    Raises:
        InputError: If it is no such dict, an entry has no reason, or there is no such stage.

    """

    def __init__(self, entries: Mapping[str, str] | None) -> None:
        if not isinstance(entries, Mapping | None):
            raise InputError(f"accept must be a dict of accepted differences and their reasons, not {entries!r:.60}")
        self.entries = dict(entries or {})
        self._patterns: dict[str, tuple[str, str]] = {}
        for what, reason in self.entries.items():
            if not isinstance(what, str) or not isinstance(reason, str) or not reason.strip():
                raise InputError(f"accept[{what!r}] must be the reason, in words, and not {reason!r:.60}")
            stage, colon, pattern = what.partition(":")
            stage = stage.strip()
            if colon and stage not in list(Stage):
                raise InputError(f"accept has {what!r}, but no stage is called {stage!r}: {', '.join(Stage)}")
            self._patterns[what] = (stage, pattern.strip()) if colon else ("*", what.strip())

    def names(self, stage: str, torch: str) -> str | None:
        """Return the first entry that names a quantity."""
        for what, (wanted, pattern) in self._patterns.items():
            if fnmatch.fnmatchcase(stage, wanted) and fnmatch.fnmatchcase(torch, pattern):
                return what
        return None

    def applied(self, alignment: Alignment) -> Alignment:
        """Let what is named decide nothing."""
        return alignment._replace(pairings=[self._applied(pairing) for pairing in alignment.pairings])

    def _applied(self, pairing: Pairing) -> Pairing:
        if self.names(pairing.stage, pairing.torch) is None:
            return pairing
        return pairing._replace(decides=False, accepted=True)

    def found(self, quantities: Iterable[Quantity]) -> list[Accepted]:
        """Say what each entry lets differ.

        Raises:
            InputError: If they leave nothing that decides.

        """
        quantities = list(quantities)
        if self.entries and not any(quantity.decides for quantity in quantities):
            raise InputError("accept covers everything that was compared, so nothing is left to decide the verdict")
        places: dict[str, list[str]] = {what: [] for what in self.entries}
        for quantity in quantities:
            what = self.names(quantity.stage, quantity.torch)
            if what is not None and (quantity.ratio > FACTOR).any():
                places[what].append(quantity.torch)
        return [Accepted(what, reason, tuple(places[what])) for what, reason in self.entries.items()]
