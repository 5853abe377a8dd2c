"""Reports as JUnit XML, which CI systems show next to the results of tests."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from compare.report.findings import Findings

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(reports: "Sequence[Findings]") -> str:
    """Return one test case a report; a mismatch fails with the report as its text."""
    failed = str(sum(not report.ok for report in reports))
    root = ElementTree.Element("testsuites", name="parity", tests=str(len(reports)), failures=failed)
    suite = ElementTree.SubElement(root, "testsuite", name="parity", tests=str(len(reports)), failures=failed)
    for report in reports:
        case = ElementTree.SubElement(suite, "testcase", classname="parity", name=_clean(report.name))
        found = ElementTree.SubElement(case, "properties")
        for name, value in properties(report).items():
            ElementTree.SubElement(found, "property", name=name, value=_clean(str(value)))
        if not report.ok:
            failure = ElementTree.SubElement(case, "failure", type=str(report.verdict), message=_clean(report.headline))
            failure.text = _clean(str(report))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def properties(report: "Findings") -> dict[str, str | int | float]:
    """Return the verdict, how many tensors were compared, and each stage's float64 difference, as in the text."""
    return {
        "parity_verdict": str(report.verdict),
        "parity_headline": report.headline,
        "parity_tensors": len(report.quantities),
        **({"parity_to_mend": to_mend} if (to_mend := report.to_mend) else {}),
        **{f"parity_float64_{stage.stage}": float(f"{stage.error64:.3g}") for stage in report.by_stage()},
    }


def _clean(text: str) -> str:
    """Replace what XML cannot hold."""
    # XML 1.0 cannot hold most control characters, not even escaped, and a user's names may have them.
    return _NOT_XML.sub("�", text)
