"""Limits what the search for structural causes may cost, in seconds and edits."""

import time
from dataclasses import dataclass, field

LOOKS = 16
"""One look at the clock for so many edits."""


@dataclass
class Budget:
    """What the search may cost, over all that a check explains.

    Time is the thread's own: what else runs on a machine must not change which cause is found.
    """

    seconds: float = 10.0
    edits: int = 200_000
    spent: float = 0.0
    tried: int = 0
    _since: float = field(default_factory=time.thread_time)
    _used: float = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._since = time.thread_time()

    def stop(self) -> None:
        """Count what has been used since it began."""
        self.spent += time.thread_time() - self._since
        self._used = self.spent

    def left(self, share: float = 1.0) -> bool:
        """Return whether a share of it is left, for one more edit."""
        self.tried += 1
        if self.tried % LOOKS == 0:  # to look at the clock takes as long as some edits do
            self._used = self.spent + time.thread_time() - self._since
        return self._used < share * self.seconds and self.tried < self.edits
