"""Shortens a line of the user's code before and after a change, so that the change is visible."""

import difflib
import re

_LEFT_OUT = " ... "

_WORDS = re.compile(r"\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\w+|\s+|[^\w\s]")
"""A number is one word: of 0.9995, "0" and "9995" say nothing."""


def beside(old: str, new: str, most: int) -> tuple[str, str]:
    """Leave out what both lines have in common, far from what changes, until both are at most so long.

    >>> beside("return loss(a, b, c, d, e, f) / x.size", "return (loss(a, b, c, d, e, f) / x.size) / 2", 36)
    ('return loss(a, b ... / x.size', 'return (loss(a, b ... / x.size) / 2')
    >>> beside("return decay(a, b, c, d, e, 0.125) + x", "return decay(a, b, c, d, e, 1e-05) + x", 32)
    ('... (a, b, c, d, e, 0.125) + x', '... (a, b, c, d, e, 1e-05) + x')
    """
    if max(len(old), len(new)) <= most:
        return old, new
    one, two = (_WORDS.findall(line) for line in (old, new))
    changes = difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes()
    ours = [(kind == "equal", one[start:end]) for kind, start, end, _, _ in changes]
    theirs = [(kind == "equal", two[start:end]) for kind, _, _, start, end in changes]
    shown = old, new
    # As many words beside each change as there is room for. Where even one is too many, the end of the line is cut.
    for around in range(most // 2, 0, -1):
        shown = _shown(ours, around), _shown(theirs, around)
        if max(map(len, shown)) <= most:
            break
    return shown


def _shown(parts: list[tuple[bool, list[str]]], around: int) -> str:
    """Show one of the two lines, of which each part is in both lines or in this one alone."""
    text = ""
    for number, (same, words) in enumerate(parts):
        # No change comes before the first part, and none after the last.
        before, after = around if number else 0, around if number < len(parts) - 1 else 0
        if same and len(words) > before + after + 1:
            kept = "".join(words[:before]).rstrip(), "".join(words[len(words) - after :]).lstrip()
            text += _LEFT_OUT.join(kept)
        else:
            text += "".join(words)
    return text.strip()
