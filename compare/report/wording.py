"""Signs and words that all writers share."""

from compare.verdict.quantity import Verdict

SIGN = {Verdict.MATCH: "✓", Verdict.PRECISION: "≈", Verdict.MISMATCH: "✗"}


def counted(number: int, what: str) -> str:
    """Like "1 step" and "3 steps"."""
    return f"{number} {what}" + ("s" if number != 1 else "")
