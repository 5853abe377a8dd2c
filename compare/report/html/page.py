"""The page: fills in the templates, which escape every value that is not marked safe."""

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from compare.bugs import ADVICE
from compare.report.findings import SHOWN_GROUPS, float32_difference
from compare.report.groups import SHOWN_PLACES
from compare.report.html.drawing import drawings
from compare.report.html.map_data import differing, map_data
from compare.report.html.origin import mark
from compare.report.html.trees import SHOWN, size, trees
from compare.report.wording import SIGN
from compare.verdict.divergence import DetailKind, Role
from compare.verdict.ratio import Verdict

if TYPE_CHECKING:
    from compare.report.findings import Findings
    from compare.report.groups import Group
    from compare.verdict.divergence import Line

_MEANING = {
    Verdict.MATCH: "The same program: nothing differs by more than rounding.",
    Verdict.PRECISION: "The same mathematics, with one side at lower precision.",
    Verdict.MISMATCH: "A different program: the port has a bug.",
}

_SMALL_NUMBER = re.compile(r"\b[\d.]+e-\d+")
"""A number such as 1e-05, which a browser would wrap at its hyphen."""


def to_html(report: "Findings") -> str:
    """Return the page of one report."""
    templates = _templates()
    style, script = (_source(templates, name) for name in ("report.css", "report.js"))
    # The policy lets no script run but this one and lets nothing be fetched, whatever the names in a report contain.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    has_losses = len(report.torch.losses32) > 0
    columns = trees(report)
    return templates.get_template("page.html").render(
        report=report,
        sign=SIGN[report.verdict],
        meaning="Nothing is proved: the run is not reproducible."
        if report.proves_nothing
        else _MEANING[report.verdict],
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:",
        style=style,
        script=script,
        shown_groups=SHOWN_GROUPS,
        difference=float32_difference(report) if has_losses else None,
        drawings=drawings(report) if has_losses else {},
        differing=differing(report),
        columns=columns,
        unfolded=max((size(column.rows) for column in columns), default=0) <= SHOWN,
        advice=ADVICE,
        data=map_data(report),
        mark=mark(report),
    )


def several_to_html(reports: "Sequence[Findings]") -> str:
    """Return one page with the pages of several reports, of which the first is unfolded."""
    return _templates().get_template("several.html").render(pages=[(report, to_html(report)) for report in reports])


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("compare.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters |= {
        "short": short,
        "is_finite": math.isfinite,
        "prose": _prose,
        "places": _places,
        "remarks": _remarks,
        "settings": _settings,
        "line": _line,
    }
    return templates


def _source(templates: Environment, name: str) -> str:
    assert templates.loader
    return templates.loader.get_source(templates, name)[0]


def _prose(text: str) -> Markup:
    """Escape a sentence, and let no line end within a number such as 1e-05."""
    # Escaped first: the only markup in the result is the one that is added here.
    return Markup(_SMALL_NUMBER.sub(r'<span class="number">\g<0></span>', str(escape(text))))


def short(value: float, places: int = 1) -> str:
    """Write a difference; an exact zero is "0"."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.{places}e}" if value else "0"


def _line(of: "Line") -> str:
    """Show a line of the user's code, of a long one the expression, all of it: a page has room."""
    if of.role is Role.GIVEN:
        return f"given to {of.source.expression}"
    return of.source.text if len(of.source.text) <= _SHORT else of.source.expression


_SHORT = 60


class _Place(NamedTuple):
    """Where a group of differences is, on one side."""

    side: str
    """"" where both sides call it the same."""
    name: str
    layers: Sequence[str] = ()
    """The layer there, with its settings."""


def _places(group: "Group", report: "Findings") -> list[_Place]:
    """Return the place on each side, with its layer; once, if both sides call it the same."""
    layers = [detail for detail in group.details if detail.kind == DetailKind.LAYER]
    names = {side: group.named(number, SHOWN_PLACES) for number, side in enumerate(("torch", "jax"))}
    if group.same_names:
        return [_Place("", names["torch"], [f"{report.side_name(each.side)}: {each.text}" for each in layers])]
    return [
        _Place(report.side_name(side), name, [each.text for each in layers if each.side == side])
        for side, name in names.items()
    ]


class _Setting(NamedTuple):
    """One setting of a layer."""

    name: str
    value: str
    differs: bool
    """Whether the fix is about it."""


_ALIKE = {"epsilon": "eps", "rate": "p", "strides": "stride", "negative_slope": "negative_slope"}
"""What torch calls a setting of Flax."""


def _settings(group: "Group") -> list[tuple[_Setting | None, _Setting | None]]:
    """Return both layers' settings side by side; those that the fix is about come first, beside each other."""
    keywords = {name for code in group.codes for name in code.keywords}
    wrong = keywords | {_ALIKE[name] for name in keywords & _ALIKE.keys()}
    sides = []
    for side in ("torch", "jax"):
        layer = next((each for each in group.details if each.side == side and each.settings), None)
        known = [_Setting(name, value, name in wrong) for name, value in (layer.settings if layer else ())]
        sides.append(sorted(known, key=lambda each: not each.differs))
    ours, theirs = sides
    return list(itertools.zip_longest(ours, theirs)) if ours and theirs else []


def _remarks(group: "Group") -> list[str]:
    """Return what is known of a group besides its places, its layers and its cause."""
    said = [detail.text for detail in group.details if detail.kind != DetailKind.LAYER]
    return [*said, *filter(None, [group.first.opinion])]
