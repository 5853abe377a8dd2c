"""What CI leaves out is measured, and leaves a test of each file."""

import json
from pathlib import Path

from in_ci import MEASURED, long


def test_the_shortest_test_of_each_file_is_not_left_out() -> None:
    seconds = {"one.py::short": 1.0, "one.py::long": 9.0, "two.py::long": 8.0, "two.py::longer[a::b]": 9.96}
    assert long(seconds) == {"one.py::long": 9.0, "two.py::longer[a::b]": 10.0}


def test_the_tests_that_are_left_out_exist() -> None:
    root, functions = MEASURED.parent.parent, {name.partition("[")[0] for name in json.loads(MEASURED.read_text())}
    for file, _, function in (name.partition("::") for name in sorted(functions)):
        assert f"def {function.rpartition('::')[2]}(" in Path(root, file).read_text(encoding="utf-8"), function
