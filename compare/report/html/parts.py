"""What several sections are made of."""

import math
import re
from collections.abc import Sequence
from html import escape


def code(text: str, look: str = "") -> str:
    """Give a name or a line of a program."""
    return f'<code class="{look}">{escape(text)}</code>' if look else f"<code>{escape(text)}</code>"


def prose(text: str) -> str:
    """Give a sentence, in which no line ends within a number such as 1e-05."""
    return _NUMBER.sub(r'<span class="number">\g<0></span>', escape(text))


_NUMBER = re.compile(r"\b[\d.]+e-\d+")


def short(value: float, places: int = 1) -> str:
    """Give a difference; zero is exactly that."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.{places}e}" if value else "0"


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], look: str = "rows") -> str:
    """Give a section of one table, of cells that are HTML already; on a phone each row is a block of its own."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "".join(
        "<tr>" + "".join(f'<td data-of="{of}">{cell}</td>' for of, cell in zip(headings, row, strict=True)) + "</tr>"
        for row in rows
    )
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<section><h2>{title}</h2><table class="{look}">{content}</table></section>'
