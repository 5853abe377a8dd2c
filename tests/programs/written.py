"""Writes a port with one fault as a person would have written it: without the choice between right and wrong."""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

from programs.faults import Fault


def written(fault: Fault) -> str:
    """Give the source of the fault's module, in which the port is that with the fault."""
    path = Path(sys.modules[fault.program.__module__].__file__ or "")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if function.name == fault.program.__name__:
            _Chosen(fault.name).visit(function)
    return ast.unparse(ast.fix_missing_locations(tree))


def loaded(source: str, file: Path, program: str) -> Any:
    """Write a source into a file, import it, and build the pair of one of its programs."""
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return vars(module)[program]()


class _Chosen(ast.NodeTransformer):
    """Replaces each test of a fault's name by its value, and each choice by what is chosen."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if isinstance(node.left, ast.Name) and node.left.id == "fault":
            return ast.Constant(eval(ast.unparse(node), {"fault": self.fault}))
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        whole = isinstance(node.op, ast.And)
        decided = [each.value for each in node.values if isinstance(each, ast.Constant)]
        if (not whole) in decided:
            return ast.Constant(not whole)
        node.values = [each for each in node.values if not isinstance(each, ast.Constant)]
        return node if len(node.values) > 1 else node.values[0] if node.values else ast.Constant(whole)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node
