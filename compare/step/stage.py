"""The stages of a training step."""

from enum import StrEnum


class Stage(StrEnum):
    """One stage of a training step. They come in this order, and each equals its plain string."""

    FORWARD = "forward"
    """The inputs and outputs of the modules."""
    LOSS = "loss"
    SHOWN = "shown"
    """What else a program shows by name."""
    GRADIENT = "gradient"
    UPDATE = "update"
    """What the optimizer adds to each parameter, and its state."""
    PARAMETERS = "parameters"
    """After the update."""
    BUFFERS = "buffers"
    """What else the model keeps, such as running statistics, after the step."""
    STATE = "state"
    """What else a program keeps, after the step."""


COMPUTED = (Stage.FORWARD, Stage.LOSS, Stage.SHOWN)
"""What a step computes before it has gradients."""
