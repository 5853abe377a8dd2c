"""The name under which `compare` is installed: the `netparity` command and the pytest plugin.

`compare` is a common name. A user's own `compare.py` must neither take the command's place nor stop pytest, so nothing
here imports `compare` by the module search path: `installed` loads the package in the folder next to this one.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1] / "compare" / "__init__.py"


def installed(name: str = "compare") -> Any:
    """Import `compare`, or a module of it, from where netparity is installed, whatever else has this name.

    Raises:
        ImportError: If another `compare` is imported already, such as a `compare.py` in the user's folder.

    """
    package = sys.modules.get("compare")
    if package is None:
        spec = importlib.util.spec_from_file_location(
            "compare", _PACKAGE, submodule_search_locations=[str(_PACKAGE.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = sys.modules["compare"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules["compare"]
            raise
    elif not hasattr(package, "__path__"):
        raise ImportError(
            f"{package.__file__} has the name of netparity's package compare, and is imported instead of it: rename it"
        )
    return importlib.import_module(name)
