"""How a layer is shown to a person."""

from typing import Any


def described(module: Any) -> str:
    """Show a layer with those of its settings that are plain values: "LayerNorm(num_features=8, epsilon=1e-06)"."""
    if module is None:
        return ""
    if hasattr(module, "extra_repr"):  # torch's own
        return f"{type(module).__name__}({module.extra_repr()})"
    settings = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    shown = ", ".join(f"{n}={v!r}" for n, v in settings.items() if not n.startswith("_") and n != "name")
    return f"{type(module).__name__}({shown})"
