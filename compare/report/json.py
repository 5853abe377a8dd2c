"""Writes findings as JSON; `compare/data/*.schema.json` describe it."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compare.report.findings import Findings


def to_json(reports: "Sequence[Findings]") -> str:
    """Return the text of a file of reports."""
    from compare.report.findings import SCHEMA

    return dumps({"schema": SCHEMA, "reports": [report.to_dict() for report in reports]})


def dumps(content: dict[str, Any]) -> str:
    """Write JSON, which has no infinity and no NaN: they become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        # RFC 8259 has no infinity and no NaN, and parsers other than Python's reject them.
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
