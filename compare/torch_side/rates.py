"""The learning rate of a parameter group."""

from collections.abc import Mapping
from typing import Any


def has_rate(group: Mapping[str, Any]) -> bool:
    """Return whether a group has a learning rate; Adafactor, for example, makes its own where it is given None."""
    return group.get("lr") is not None


def rate_of(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group; 0 where it has none."""
    return float(group["lr"]) if has_rate(group) else 0.0
