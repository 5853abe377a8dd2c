"""The functions of torch whose calls can be seen and rewritten, and their signatures."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SIGNATURES: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": (
        lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False: None
    ),
}
"""What torch describes in part only."""

ANY = inspect.signature(lambda tensor, *args, **kwargs: None)
"""Of an overload that torch does not describe."""


def name_of(function: Any) -> str:
    """Name a function as torch documents it, without underscores."""
    return getattr(function, "__name__", "").strip("_")


@functools.cache
def _overridable() -> dict[Any, Callable[..., Any]]:
    import torch

    functional = {function: function for function in vars(torch.nn.functional).values() if inspect.isfunction(function)}
    return functional | torch.overrides.get_testing_overrides()  # which does not list all of them


@functools.cache
def signature_of(function: Any) -> inspect.Signature | None:
    """Give the signature of a function of torch, as torch itself states it; None for what reads attributes."""
    described = _overridable().get(function)
    if getattr(function, "__name__", "") in _SIGNATURES:
        return inspect.signature(_SIGNATURES[function.__name__])
    if described is None or getattr(function, "__name__", "__get__") in ("__get__", "__set__"):
        return None
    with contextlib.suppress(ValueError):  # of what is written in C++
        own = inspect.signature(function)
        if not any(parameter.kind == parameter.VAR_POSITIONAL for parameter in own.parameters.values()):
            return own
    return inspect.signature(described)


def bound(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.Signature:
    """Return a signature that fits a call: its own, or `ANY` for an overload that torch does not describe."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return ANY
    return signature


def rewritable() -> frozenset[str]:
    """Name all functions of torch whose calls can be seen and rewritten."""
    return frozenset(name_of(function) for function in _overridable() if signature_of(function) is not None)
