"""The notebook's programs in PyTorch, one file each: `manual`, `autograd`, `module` and `adam`."""

from torchnet import adam, autograd, manual, module
from torchnet.trajectory import Problem, Step, Trajectory

__all__ = ["Problem", "Step", "Trajectory", "adam", "autograd", "manual", "module"]
