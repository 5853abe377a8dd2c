"""What goes wrong with what the user gave."""


class NondeterministicError(Exception):
    """A run drew other random numbers than the one that it was to repeat. The message says which."""


class InputError(ValueError):
    """What the user gave cannot be compared. The message says what was wrong and what to do; it is a ValueError."""
