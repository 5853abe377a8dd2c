"""What the search for causes of structure may cost."""

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """What the search may cost, over all that a check explains."""

    seconds: float = 10.0
    edits: int = 200_000
    spent: float = 0.0
    tried: int = 0
    _since: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begin to measure."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Count what has been used since it began."""
        self.spent += time.monotonic() - self._since

    def left(self, share: float = 1.0) -> bool:
        """Tell whether a share of it is left, for one more edit."""
        self.tried += 1
        used = self.spent + time.monotonic() - self._since
        return used < share * self.seconds and self.tried < self.edits
