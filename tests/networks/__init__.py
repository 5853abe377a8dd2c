"""Random training programs, each drawn once and built for torch and for Flax.

The JAX side may be built from another specification than torch's: such a port has a fault.
"""

from .drawn import specifications
from .faults import effect, faults, names_the_fault, unknown_faults
from .training import check, overflows

__all__ = ["check", "effect", "faults", "names_the_fault", "overflows", "specifications", "unknown_faults"]
