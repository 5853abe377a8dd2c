"""A place between two modules, as a name: "between encoder.norm1 and the end of encoder"."""

import re
from typing import NamedTuple

from compare.step.observation import Port

_WRITTEN = re.compile(r"between (the start of )?(\S+) and (the end of )?(\S+)")


class Between(NamedTuple):
    """What is computed from one tensor to another, outside of any module that both belong to.

    Its text is its name in a report, so that it has one way of being written and one of being read: both are here.
    """

    start: str
    """The module that gives the first tensor, or that takes it."""
    end: str
    """The module that takes the last one, or that gives it."""
    takes: bool = False
    """Whether the first tensor is what `start` takes."""
    gives: bool = False
    """Whether the last one is what `end` gives."""

    def __str__(self) -> str:
        start = f"the start of {self.start}" if self.takes else self.start
        return f"between {start} and {f'the end of {self.end}' if self.gives else self.end}"

    @classmethod
    def read(cls, name: str) -> "Between | None":
        """Read a name; None if it is that of another kind of place."""
        found = _WRITTEN.fullmatch(name)
        return cls(found[2], found[4], bool(found[1]), bool(found[3])) if found else None


def place_name(before: Port, port: Port) -> str:
    """Name the place at which a tensor is computed: its module, if the tensor before it is of the same call."""
    if before[:2] == port[:2]:
        return port.module
    # What a module takes is inside of it, and so is what leads to what it gives: only the other two ends
    # are outside.
    return str(Between(before.module, port.module, takes=before.kind == "input", gives=port.kind == "output"))
