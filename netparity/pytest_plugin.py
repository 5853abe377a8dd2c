"""The pytest plugin: a `parity` fixture that runs `compare.check` and fails with its report.

    def test_port(parity):
        parity(compare.Torch(...), compare.Flax(...), batches, steps=10)

Neither framework is imported until a test uses the fixture, nor is `compare`: a user's own tests may have a module of
that name.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from netparity import installed

if TYPE_CHECKING:
    from compare.report.report import Report

_NOTHING = "nothing compared"
"""In the place of a verdict."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; each has its namesake in the configuration file."""
    group = parser.getgroup("parity", "PyTorch against JAX/Flax")
    group.addoption(
        "--parity-device",
        choices=["auto", "cpu", "cuda"],
        help="where parity checks run: auto (a GPU if both frameworks see one), cpu or cuda",
    )
    group.addoption("--parity-strict", action="store_true", default=None, help="a verdict of precision fails as well")
    group.addoption(
        "--parity-accept",
        action="append",
        metavar="WHAT=REASON",
        help='accept a difference, such as "buffers: *.running_var=we keep those of Flax"; repeatable',
    )
    group.addoption("--parity-report", metavar="DIR", help="write every report there, as JSON and as HTML")
    parser.addini("parity_device", "where parity checks run: auto, cpu or cuda", default="auto")
    parser.addini("parity_strict", "whether a verdict of precision fails as well", type="bool", default=False)
    parser.addini("parity_accept", "what may differ, one WHAT=REASON a line", type="linelist", default=[])
    parser.addini("parity_report", "a folder for the reports, as JSON and as HTML", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "parity: compares a PyTorch program with its JAX port; set by the fixture")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that use the fixture, for `-m parity`."""
    if "parity" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.parity)


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> "Iterator[Callable[..., Report]]":
    """Compare two programs as `compare.check` does, and fail with the report if they are not the same.

    Yields:
        A function of the arguments of `compare.check`, and of `strict`, which fails on a verdict of `precision` too.
        It returns the report. If the two cannot be compared, the test fails with the message.

    """
    compare, junit = installed(), installed("compare.report.junit")
    accepting = installed("compare.command_line.accepting")
    config, node = request.config, request.node

    def option(name: str) -> Any:
        given = config.getoption(f"parity_{name}")
        return config.getini(f"parity_{name}") if given is None else given

    def check(torch: Any, jax: Any, batches: Any, *, strict: bool | None = None, **settings: Any) -> "Report":
        __tracebackhide__ = True
        settings = {"device": option("device"), "name": node.name, **settings}
        given = [*config.getini("parity_accept"), *(config.getoption("parity_accept") or [])]
        wrong = ""
        try:
            accept = {**accepting.accepted(config.rootpath, given), **(settings.pop("accept", None) or {})}
            report = compare.check(torch, jax, batches, accept=accept, **settings)
        except compare.InputError as error:
            wrong = f"{_NOTHING}: {error}"
        if wrong:  # said outside of `except`, so that pytest shows nothing else
            node.user_properties.append(("parity_verdict", _NOTHING))
            pytest.fail(wrong, pytrace=False)
        node.user_properties.extend(junit.properties(report).items())
        node.user_properties += [("parity_accept", f"{each.what}\t{bool(each.places)}") for each in report.accepted]
        if folder := _folder(config):
            number = [name for name, _ in node.user_properties].count("parity_verdict")
            _write(report, folder, _file_name(node.nodeid, number))
        strict = option("strict") if strict is None else strict
        if not report.ok or (strict and report.verdict != "match"):
            pytest.fail(f"{report.headline}\n\n{report}", pytrace=False)  # pytest's short summary has the first line
        return report

    torch_made, jax_made = installed("compare.torch_side.made"), installed("compare.jax_side.made")
    with torch_made.noted(), jax_made.noted():  # for a report that names the lines
        yield check


def _folder(config: pytest.Config) -> Path | None:
    """Where reports go: from where pytest was started, or for that of the configuration file, from the root."""
    if given := config.getoption("parity_report"):
        return config.invocation_params.dir / given
    configured = config.getini("parity_report")
    return config.rootpath / configured if configured else None


def _file_name(test: str, number: int) -> str:
    """Name a file after a test: its id, in characters that any file system takes.

    "tests/test_a.py::test_b[c]" is "tests-test_a.py-test_b-c". Where that could be another test's name too, since
    characters of the id are lost, it ends in a digest of the id.
    """
    place, bracket, parameters = test.partition("[")
    parts = re.split(r"/|::", place) + ([parameters.removesuffix("]")] if bracket else [])
    kept = all(re.fullmatch(r"[\w.]+", part) for part in parts)
    name = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-")
    digest = "" if kept and len(name) <= _LENGTH else f"-{zlib.crc32(test.encode()):08x}"
    return f"{name[-_LENGTH:]}{digest}" + (f"-check{number}" if number > 1 else "")


_LENGTH = 180


def _write(report: "Report", folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    for suffix, text in ((".json", report.to_json()), (".html", report.to_html())):
        path.with_name(path.name + suffix).write_text(text, encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in one line how many checks there were, and what came out; under pytest-xdist, those of all workers."""
    found = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
    ]
    verdicts = Counter(value for name, value in found if name == "parity_verdict")
    if verdicts:
        tensors = sum(value for name, value in found if name == "parity_tensors")
        order = [name for name in ("match", "precision", "mismatch", _NOTHING) if name in verdicts]
        checks = "1 check" if verdicts.total() == 1 else f"{verdicts.total()} checks"
        line = f"parity: {checks}, {tensors} tensors: " + ", ".join(f"{verdicts[name]} {name}" for name in order)
        entries = [value.rsplit("\t", 1) for name, value in found if name == "parity_accept"]
        applied = {what for what, applies in entries if applies == "True"}
        if applied:
            line += f"; accepted: {', '.join(sorted(applied))}"
        folder = _folder(config)
        terminalreporter.write_line(f"{line}; reports in {folder}" if folder else line)
        for what in dict.fromkeys(what for what, _ in entries if what not in applied):
            terminalreporter.write_line(
                f"parity: accepting {what!r} applies to nothing: no place that differs has this name"
            )
