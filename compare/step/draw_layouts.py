"""How random numbers that torch has drawn may lie in JAX's memory."""

from typing import Any, NamedTuple

from compare.step.draws import NO_HINTS, Hints


class DrawLayout(NamedTuple):
    """How to bring a draw into the shape of a site: reshape, then transpose."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    wanted: tuple[int, ...] | None = None
    """What to reshape to at the end, if not to that."""

    def __call__(self, array: Any) -> Any:
        """Apply it to an array of any framework that has `reshape` and `transpose`."""
        moved = array.reshape(self.shape).transpose(self.axes)
        return moved if self.wanted is None else moved.reshape(self.wanted)


def draw_layouts(shape: tuple[int, ...], wanted: tuple[int, ...], hints: Hints = NO_HINTS) -> list[DrawLayout]:
    """List the ways in which a mask of torch's may lie in JAX's memory, those that fit `wanted`, without repetition.

    They are: as it is; channels last (NCHW against NHWC); the first two axes exchanged (torch's recurrent layers and
    attention put time before the batch); heads split from the batch (`torch.nn.MultiheadAttention` draws
    `(batch * heads, query, key)`), and with other axes of length one.
    """
    same = tuple(range(len(shape)))
    for channels, points in hints.flattened:
        if shape == wanted and len(shape) == 2 and shape[1] == channels * points:
            return [DrawLayout("flattened, channels last", (shape[0], channels, points), (0, 2, 1), wanted)]
    found = [DrawLayout("as it is", shape, same)]
    if [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
        found.append(DrawLayout("with other axes of length one", wanted, tuple(range(len(wanted)))))
    if len(shape) >= 3:
        found.append(DrawLayout("channels last", shape, (0, *same[2:], 1)))
    if len(shape) == 3:
        found.append(DrawLayout("first two axes exchanged", shape, (1, 0, 2)))
    if len(wanted) > 2 and (wanted[0] * wanted[1], *wanted[2:]) == shape:
        found.append(DrawLayout("heads split", wanted, tuple(range(len(wanted)))))
    fits: dict[tuple[int, ...], DrawLayout] = {}
    for layout in found:
        if tuple(layout.shape[axis] for axis in layout.axes) == wanted:
            moved = tuple(axis for axis in layout.axes if layout.shape[axis] != 1)
            fits.setdefault(() if moved == tuple(sorted(moved)) else moved, layout)
    return list(fits.values())
