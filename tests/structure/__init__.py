"""Small architectures written for PyTorch and for JAX, with switches for one fault of structure each."""

from . import attention, convolutions, gated, generative, graphs, losses, mobile, scans, sequences, sets, windows
from .architecture import Architecture, check

ARCHITECTURES: list[Architecture] = [
    *attention.ARCHITECTURES,
    *convolutions.ARCHITECTURES,
    *gated.ARCHITECTURES,
    *sequences.ARCHITECTURES,
    *sets.ARCHITECTURES,
    *losses.ARCHITECTURES,
]

SECOND: list[Architecture] = [
    *windows.ARCHITECTURES,
    *graphs.ARCHITECTURES,
    *mobile.ARCHITECTURES,
    *scans.ARCHITECTURES,
    *generative.ARCHITECTURES,
]
"""Written after the search was, and tried on it before anything was changed for them."""

__all__ = ["ARCHITECTURES", "SECOND", "Architecture", "check"]
