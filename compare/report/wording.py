"""Signs and words that all writers share."""

from compare.verdict.ratio import Verdict

SIGN = {Verdict.MATCH: "✓", Verdict.PRECISION: "≈", Verdict.MISMATCH: "✗"}


def counted(number: int, what: str, several: str = "") -> str:
    """Like "1 step" and "3 steps"; `several` is the plural, where it is not the word with an s."""
    return f"{number} {what if number == 1 else several or what + 's'}"


def at(place: str) -> str:
    """Like "at encoder.norm1"; what is between two modules needs no "at"."""
    return place if place.startswith("between ") else f"at {place}"
