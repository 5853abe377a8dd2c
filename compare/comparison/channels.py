"""Finds the order in which a model flattens an image, by changing one channel and seeing which features change.

Torch flattens (C, H, W), so that a channel is H·W features side by side; a port that flattens (H, W, C) has every C-th.
Where both sides compute the same before the flattening, the values show the order. Where a layer before is wrong, they
do not. Then one channel of a convolution is changed on both sides: the features that change are those of that channel,
whatever the layers between do to each channel.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Run = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Gives what a linear layer of torch and its partner take, of shape (batch, features) each."""


def channels_and_points(
    convolutions: Iterable[tuple[int, Callable[[], Any]]], before: tuple[np.ndarray, np.ndarray], run: Run
) -> tuple[int, ...] | None:
    """Tell of how many channels and points the features are that a port flattens channels last.

    Args:
        convolutions: The last ones first: how many channels each has, and what changes its first channel until the
            next one is taken.
        before: What the layer and its partner take if nothing is changed.
        run: Runs both sides as they are now.

    Returns:
        The channels and the points; () if the port flattens as torch does, and None if no channel tells.

    """
    size = before[0].shape[-1]
    for channels, change in convolutions:
        if channels in (1, size) or size % channels:
            continue
        change()
        ours, theirs = (_changed(old, new) for old, new in zip(before, run(), strict=True))
        side_by_side, every = set(range(size // channels)), set(range(0, size, channels))
        # Torch's own order is known. If other features change too, a layer between mixes channels, and this convolution
        # shows nothing: the one before it is tried.
        if ours and ours <= side_by_side:
            if theirs <= side_by_side:
                return ()
            return (channels, size // channels) if theirs <= every else None
    return None


def _changed(old: np.ndarray, new: np.ndarray) -> set[int]:
    """List the features that have changed in any example by more than rounding."""
    difference = np.abs(new - old).reshape(-1, old.shape[-1]).max(axis=0)
    # Relative to the largest change: rounding of features that do not change is far below 1e-4 of it, and
    # what a norm over all channels does to the other features is far above.
    return {int(feature) for feature in np.flatnonzero(difference > 1e-4 * difference.max(initial=0.0))}
