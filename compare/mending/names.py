"""Finds the names that a fix needs in the user's file: `jax.nn.gelu` may be `nnx.gelu` there, or need an import."""

import ast
import importlib
import types

import libcst

from compare.mending.syntax import Edit, SourceFile, Unfit

MODULES = {
    "jax": "jax",
    "jnp": "jax.numpy",
    "np": "numpy",
    "optax": "optax",
    "nnx": "flax.nnx",
    "nn": "flax.linen",
    "compare": "compare",
}
"""What the names in a fix stand for."""

_IMPORTS = {
    "jax": "import jax\n",
    "jnp": "import jax.numpy as jnp\n",
    "np": "import numpy as np\n",
    "optax": "import optax\n",
    "nnx": "from flax import nnx\n",
    "nn": "from flax import linen as nn\n",
    "compare": "import compare\n",
}


class Naming:
    """Writes the names of a fix as a file has them, and collects the imports that it lacks."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.missing: dict[str, None] = {}

    def __call__(self, code: str) -> str:
        """Rename the modules of an expression."""
        tree = ast.parse(code, mode="eval").body
        changes: list[tuple[ast.expr, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.nn":
                changes.append((node, self._functions(code)))
            elif isinstance(node, ast.Name) and node.id in MODULES and node.id != "jax":
                changes.append((node, self._own(node.id)))
            elif isinstance(node, ast.Name) and node.id == "jax" and "jax.nn." not in code:
                changes.append((node, self._own("jax")))
        # Names of modules are ASCII, and an expression of a fix is one line: bytes are characters.
        for node, own in sorted(changes, key=lambda change: -change[0].col_offset):
            code = code[: node.col_offset] + own + code[node.end_col_offset :]
        return code

    def _own(self, root: str) -> str:
        names, wanted = self.file.names, importlib.import_module(MODULES[root])
        if names.get(root) is wanted:
            return root
        if own := next((name for name, value in names.items() if value is wanted), None):
            return own
        if root in names and names[root] is not wanted:
            raise Unfit(f"{root} means something else in your file")
        self.missing[root] = None
        return root

    def _functions(self, code: str) -> str:
        """Name a module of the file's that has the functions of `jax.nn` in an expression, as `nnx` has most."""
        import jax

        walked = ast.walk(ast.parse(code, mode="eval"))
        attributes = [node for node in walked if isinstance(node, ast.Attribute)]
        used = {node.attr for node in attributes if ast.unparse(node.value) == "jax.nn"}
        modules = {name: value for name, value in self.file.names.items() if isinstance(value, types.ModuleType)}
        if any(value is jax for value in modules.values()):
            return f"{self._own('jax')}.nn"
        for name, value in modules.items():
            if all(getattr(value, function, None) is getattr(jax.nn, function) for function in used):
                return name
        return f"{self._own('jax')}.nn"

    def imports(self) -> list[Edit]:
        """Return the edits that add the missing imports, after the last import at the beginning of the file."""
        if not self.missing:
            return []
        body = self.file.module.body
        imports = [
            each
            for each in body
            if isinstance(each, libcst.SimpleStatementLine)
            and isinstance(each.body[0], libcst.Import | libcst.ImportFrom)
        ]
        if not imports:
            raise Unfit("the file has no import beside which to add one")
        after = body[body.index(imports[-1]) + 1] if imports[-1] is not body[-1] else None
        if after is None:
            raise Unfit("there is nothing behind the imports")
        at = self.file.text.index("\n", self.file.range(imports[-1])[1]) + 1
        return [Edit(self.file.file, at, at, "".join(_IMPORTS[root] for root in self.missing))]
