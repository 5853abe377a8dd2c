"""Draws training programs: `specifications`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from .layers import ACTIVATIONS
from .specification import CLASSES, Layer, Optimizer, Specification
from .training import LOSSES, OPTIMIZERS


class _Chain:
    """Draws layers that fit one another."""

    def __init__(self, draw: st.DrawFn, shape: tuple[int, ...], *, channels: bool, training: bool) -> None:
        self.draw, self.shape, self.channels, self.training = draw, shape, channels, training
        self.layers: list[Layer] = []

    def add(self, kind: str, shape: tuple[int, ...] | None = None, **settings: Any) -> None:
        """Append a layer, and what comes out of it."""
        self.layers.append(Layer(kind, self.shape, **settings))
        self.shape = shape or self.shape

    def width(self) -> int:
        """Draw how many features come out of a layer; often as many as go in."""
        same = self.shape[0] if self.channels else self.shape[-1]
        return self.draw(st.one_of(st.just(same), st.integers(1, 16)))

    def linear(self, features: int | None = None) -> None:
        features = features or self.width()
        self.add("linear", (*self.shape[:-1], features), features=features)

    def conv(self) -> None:
        size = self.draw(st.integers(1, min(3, self.shape[1])))
        stride, padding = self.draw(st.integers(1, 2)), self.draw(st.integers(0, size // 2))
        features, groups = self.width(), 1
        if self.draw(st.booleans()):
            groups = math.gcd(features, self.shape[0])
        space = [(length + 2 * padding - size) // stride + 1 for length in self.shape[1:]]
        self.add("conv", (features, *space), features=features, kernel=(size, stride, padding), groups=groups)

    def norm(self) -> None:
        kinds = ["batch norm", "group norm"] if self.channels or len(self.shape) == 1 else []
        kinds += [] if self.channels else ["layer norm", "rms norm"]
        kind, features = self.draw(st.sampled_from(kinds)), self.shape[0 if self.channels else -1]
        # One element by itself is normalized to zero, whatever it was: nothing before it would have an effect.
        space = math.prod(self.shape[1:]) if self.channels else 1
        fitting = [n for n in range(1, features + 1) if features % n == 0 and features // n * space > 1]
        groups = self.draw(st.sampled_from(fitting or [1]))
        self.add(
            kind,
            features=features,
            groups=groups if kind == "group norm" else 1,
            epsilon=self.draw(st.sampled_from([1e-3, 1e-5, 1e-6])),
            momentum=self.draw(st.sampled_from([0.1, 0.3])),
            fast=self.draw(st.booleans()),
        )

    def attention(self) -> None:
        heads = self.draw(st.sampled_from([n for n in (1, 2, 3, 4) if self.shape[-1] % n == 0]))
        self.add("attention", features=self.shape[-1], groups=heads)

    def activation(self) -> None:
        self.add(self.draw(st.sampled_from(sorted(ACTIVATIONS))))

    def pool(self) -> None:
        kind = self.draw(st.sampled_from(["max pool", "average pool"]))
        self.add(kind, (self.shape[0], *(length // 2 for length in self.shape[1:])))

    def residual(self) -> None:
        inside = _Chain(self.draw, self.shape, channels=self.channels, training=self.training)
        if self.draw(st.booleans()):
            inside.norm()
        if self.channels:
            inside.add("conv", features=self.shape[0], kernel=(3, 1, 1))
        else:
            inside.linear()
            inside.activation()
            inside.linear(self.shape[-1])
        self.add("residual", inner=tuple(inside.layers))

    def grow(self) -> None:
        """Append one layer with weights, and often an activation or a pool after it."""
        kinds = [self.conv if self.channels else self.linear, self.norm, self.residual]
        if len(self.shape) == 2 and not self.channels:
            kinds.append(self.attention)
        self.draw(st.sampled_from(kinds))()
        if self.draw(st.integers(0, 3)):
            self.activation()
        if not self.draw(st.integers(0, 7)):
            self.add("dropout")
        if self.channels and min(self.shape[1:]) > 1 and self.draw(st.booleans()):
            self.pool()


@st.composite
def specifications(draw: st.DrawFn) -> Specification:
    """Draw a training program."""
    data = draw(st.sampled_from(["vector", "sequence", "tokens", "signal", "image"]))
    features, length = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    shape = {
        "vector": (features,),
        "sequence": (length, features),
        "tokens": (length,),
        "signal": (features, length),
        "image": (min(features, 4), length, length),
    }[data]
    training = draw(st.integers(0, 4)) > 0
    chain = _Chain(draw, shape, channels=data in ("signal", "image"), training=training)
    if data == "tokens":
        chain.add("embedding", (length, features), features=features)
    for _ in range(draw(st.integers(0 if data != "tokens" else 1, 5))):
        chain.grow()
    if chain.channels:
        chain.add("flatten", (math.prod(chain.shape),))
        chain.channels = False
    loss = draw(st.sampled_from(sorted(LOSSES)))
    chain.linear(CLASSES if loss == "cross entropy" else draw(st.integers(1, 5)))
    kind = draw(st.sampled_from(sorted(OPTIMIZERS)))
    trainer = OPTIMIZERS[kind]
    momentum = draw(st.sampled_from([0.0, 0.9])) if trainer.momentum else 0.0
    return Specification(
        layers=tuple(chain.layers),
        loss=loss,
        optimizer=Optimizer(
            kind,
            draw(st.sampled_from(trainer.rates)),
            momentum=momentum,
            nesterov=kind == "sgd" and momentum > 0 and draw(st.booleans()),
            centered=trainer.centered and draw(st.booleans()),
            weight_decay=draw(st.sampled_from([0.0, 1e-2])),
        ),
        batch=draw(st.integers(2 if any(_normalizes_batch(chain.layers)) else 1, 16)),
        steps=draw(st.integers(2, 6)),
        scale=draw(st.sampled_from([0.01, 0.1, 1.0, 1.0, 1.0, 3.0, 10.0])),
        # The largest of 0.0 and -0.0 is another element on the two sides, with the gradient.
        zeroed=-1 if any(layer.kind == "max pool" for layer in chain.layers) else draw(st.integers(-15, 3)),
        jitter=draw(st.booleans()),
        functional=draw(st.booleans()),
        training=training,
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def _normalizes_batch(layers: Sequence[Layer]) -> Iterator[bool]:
    for layer in layers:
        yield layer.kind in ("batch norm", "group norm")  # torch refuses a single value to normalize
        yield from _normalizes_batch(layer.inner)
