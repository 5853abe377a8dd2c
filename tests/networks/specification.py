"""What a random training program is."""

from dataclasses import dataclass

VOCABULARY = 7
CLASSES = 3
PERTURBATION = 1e-6
"""How much one weight is off, relative to itself."""


@dataclass(frozen=True)
class Layer:
    """One layer, or function, of a network."""

    kind: str
    shape: tuple[int, ...]
    """Of one example that goes in, as torch lays it out: `(features,)`, `(time, features)`, `(channels, ...)`."""
    features: int = 0
    """How many come out."""
    kernel: tuple[int, int, int] = (1, 1, 0)
    """A convolution's size, stride and padding, in every direction."""
    groups: int = 1
    """Of a convolution or a GroupNorm; the heads of attention."""
    epsilon: float = 1e-5
    momentum: float = 0.1
    unbiased: bool = True
    """Whether a BatchNorm's running variance is the unbiased one, as torch's is."""
    updated: bool = True
    """Whether a BatchNorm's running statistics are kept up, and used."""
    fast: bool = False
    """Whether Flax takes a variance as E[x²] - E[x]², its default."""
    inner: tuple["Layer", ...] = ()
    """What a residual block adds to its input."""
    unknown: str = ""
    """Which of the unknown functions is applied to what it gives."""
    altered: str = ""
    """"perturbed" where one weight is off, "transposed" where the kernel is."""
    element: float = 0.0
    """Which weight that is: from 0 for the first to 1 for the last."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its settings, by torch's names."""

    kind: str
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    centered: bool = False
    weight_decay: float = 0.0
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Specification:
    """A training program, in full."""

    layers: tuple[Layer, ...]
    loss: str
    optimizer: Optimizer
    batch: int
    steps: int
    scale: float
    """Of the initial weights, times torch's own."""
    zeroed: int
    """Which layer starts with all its weights zero, as far as there is such a layer."""
    jitter: bool
    """Whether biases and the weights of normalizations start at random, not at torch's 0 and 1."""
    functional: bool
    """Whether torch's activations are functions, not modules."""
    training: bool
    seed: int
