"""Small architectures written for PyTorch and for JAX, with switches for one fault of structure each."""

from . import attention, convolutions, gated, losses, sequences, sets
from .architecture import Architecture, check

ARCHITECTURES: list[Architecture] = [
    *attention.ARCHITECTURES,
    *convolutions.ARCHITECTURES,
    *gated.ARCHITECTURES,
    *sequences.ARCHITECTURES,
    *sets.ARCHITECTURES,
    *losses.ARCHITECTURES,
]

__all__ = ["ARCHITECTURES", "Architecture", "check"]
