"""The notebook's programs in JAX, one file each: `manual`, `autograd`, `module` and `adam`."""

from jaxnet import adam, autograd, initial, manual, module
from jaxnet.trajectory import Problem, State, Step, Trajectory

__all__ = ["Problem", "State", "Step", "Trajectory", "adam", "autograd", "initial", "manual", "module"]
