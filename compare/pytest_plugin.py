"""The pytest plugin: a `parity` fixture that runs `compare.check` and fails with its report.

    def test_port(parity):
        parity(compare.Torch(...), compare.Flax(...), batches, steps=10)

Nothing heavy is imported until a test asks for the fixture.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from compare.report import Report

_KEYS = ("parity_verdict", "parity_tensors", "parity_float64")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; each has its namesake in the configuration file."""
    group = parser.getgroup("parity", "PyTorch against JAX/Flax")
    group.addoption("--parity-device", choices=["auto", "cpu", "cuda"], help="where parity checks run")
    group.addoption("--parity-strict", action="store_true", default=None, help="a verdict of precision fails as well")
    group.addoption("--parity-report", metavar="DIR", help="write every report there, as JSON and as HTML")
    parser.addini("parity_device", "where parity checks run: auto, cpu or cuda", default="auto")
    parser.addini("parity_strict", "whether a verdict of precision fails as well", type="bool", default=False)
    parser.addini("parity_report", "a folder for the reports", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "parity: compares a PyTorch program with its JAX port; set by the fixture")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the fixture, for `-m parity`."""
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.parity)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark at collection too: `-m` selects before `pytest_collection_modifyitems` of plugins that come later."""
    if "parity" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.parity)


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> "Callable[..., Report]":
    """Compare two programs as `compare.check` does, and fail with the report unless they are the same.

    Returns:
        A function of the arguments of `compare.check`, and of `strict`; it gives the report.

    """
    import compare

    config = request.config

    def option(name: str) -> Any:
        given = config.getoption(f"parity_{name}")
        return config.getini(f"parity_{name}") if given is None else given

    def check(torch: Any, jax: Any, batches: Any, *, strict: bool | None = None, **settings: Any) -> "Report":
        __tracebackhide__ = True
        settings = {"device": option("device"), "name": request.node.name, **settings}
        try:
            report = compare.check(torch, jax, batches, **settings)
        except compare.InputError as error:
            pytest.fail(f"nothing was compared: {error}", pytrace=False)
        values = (
            str(report.verdict),
            len(report.quantities),
            max((max(q.error64) for q in report.quantities), default=0),
        )
        request.node.user_properties.extend(zip(_KEYS, values, strict=True))
        if folder := option("report"):
            _write(report, Path(folder), request.node.nodeid)
        fails = not report.ok or (report.verdict != "match" and (option("strict") if strict is None else strict))
        if fails:
            pytest.fail(str(report), pytrace=False)
        return report

    return check


def _write(report: "Report", folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / re.sub(r"[^\w.-]+", "-", name).strip("-")
    path.with_suffix(".json").write_text(json.dumps(report.to_dict()))
    path.with_suffix(".html").write_text(report.to_html())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line how many checks there were, and what came out; under pytest-xdist, those of all workers."""
    found: list[dict[str, Any]] = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", "") == "call" and _KEYS[0] in properties:
                found.append(properties)
    if found:
        verdicts = [each[_KEYS[0]] for each in found]
        counts = ", ".join(
            f"{verdicts.count(name)} {name}" for name in ("match", "precision", "mismatch") if name in verdicts
        )
        tensors = sum(each[_KEYS[1]] for each in found)
        terminalreporter.write_line(f"parity: {len(found)} checks of {tensors} tensors: {counts}")
