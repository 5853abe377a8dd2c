"""Linear layers that take a flattened image, whose features torch and Flax order differently."""

import dataclasses

from compare.weights.units import Unit


def flattened(torch: list[Unit], jax: list[Unit]) -> tuple[list[Unit], list[str]]:
    """Find the linear layers that take a flattened image, whose features torch and Flax order differently.

    If the models were run, the setting `flattened` has the image's shape. Otherwise it is concluded from the shapes:
    such a layer follows a convolution and has a multiple of its channels as inputs. The image is taken to be a square
    or a cube; `unknown` is set if its size is neither. Where JAX's convolutions have channels first, nothing is
    permuted.

    Returns:
        torch's units with those settings, and what was concluded so.

    """
    kernels = [slot for unit in jax for (slot,) in unit.slots.values() if unit.kind in ("conv", "transposed", "")]
    # Only if the JAX side has channels last do the two orders differ: Flax's "kernel" and Haiku's "w"
    # have.
    channels_last = any(slot.leaf in ("kernel", "w") and len(slot.shape) > 2 for slot in kernels)
    made, notes = [], []
    channels = spatial = 0
    for unit in torch:
        settings = dict(unit.settings)
        if not channels_last:
            settings.setdefault("flattened", ())
        if "weight" in unit.slots and unit.kind not in ("norm", "prelu"):
            shape = unit.slots["weight"][0].shape
            if unit.kind in ("conv", "transposed"):
                spatial = len(shape) - 2
                channels = shape[0] if unit.kind == "conv" else shape[1] * unit.settings.get("groups", 1)
            else:
                # inputs = channels · points. One point is global pooling, and needs no permutation.
                points, rest = divmod(shape[-1], channels) if channels else (1, 0)
                if unit.kind == "linear" and "flattened" not in settings and points > 1 and not rest:
                    side = round(points ** (1 / spatial))
                    if side**spatial == points:
                        settings["flattened"] = (channels, *(side,) * spatial)
                        notes.append(
                            f"{unit.path} is assumed to flatten {settings['flattened']}, and its partner to "
                            "have channels last"
                        )
                    else:
                        settings["unknown"] = (channels, points)
                channels = 0
        made.append(dataclasses.replace(unit, settings=settings))
    return made, notes
