"""More architectures of images: MobileNet, Inception, feature pyramids, CBAM, ShuffleNet, StyleGAN, spade, a critic."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from .architecture import Architecture, conv, linear, normal

C = 6


class MobileT(nn.Module):
    """MobileNetV3's inverted residual, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite, self.project = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.hardswish(self.expand(x))
        y = functional.hardswish(self.depth(y))
        s = functional.adaptive_avg_pool2d(y, 1)
        s = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(s))))
        return x + self.project(y * s)


class MobileJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.expand, self.depth = conv(4, 8, 1), conv(8, 8, 3, feature_group_count=8)
        self.squeeze, self.excite, self.project = conv(8, 3, 1), conv(3, 8, 1), conv(8, 4, 1)

    def __call__(self, x: Any) -> Any:
        f, y = self.faults, self.expand(x)
        y = nnx.silu(y) if "swish for hardswish" in f else nnx.hard_swish(y)
        y = self.depth(y)
        y = y if "second hardswish left out" in f else nnx.hard_swish(y)
        s = (y.max if "largest" in f else y.mean)((1, 2), keepdims=True)
        s = self.squeeze(s)
        s = self.excite(nnx.hard_swish(s) if "hardswish for relu" in f else nnx.relu(s))
        s = nnx.sigmoid(s) if "sigmoid" in f else s if "no hardsigmoid" in f else nnx.hard_sigmoid(s)
        y = self.project(y if "excitation left out" in f else y + s if "added" in f else y * s)
        y = nnx.hard_swish(y) if "activated at the end" in f else y
        return y if "no residual" in f else x + y


class InceptionT(nn.Module):
    """Four branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.reduce, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 3, padding=1)
        self.pool, self.out = nn.Conv2d(3, 2, 1), nn.Conv2d(13, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = functional.relu(self.one(x))
        b = functional.relu(self.three(functional.relu(self.reduce(x))))
        c = functional.relu(self.pool(functional.max_pool2d(x, 3, 1, 1)))
        return self.out(torch.cat([a, b, c, x], 1))


class InceptionJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.one, self.reduce, self.three = conv(3, 4, 1), conv(3, 2, 1), conv(2, 4, 3)
        self.pool, self.out = conv(3, 2, 1), conv(13, 2, 1)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        a, b = self.one(x), self.reduce(x)
        a = a if "no relu on the first" in f else nnx.relu(a)
        b = nnx.relu(self.three(b if "no relu between" in f else nnx.relu(b)))
        pool = nnx.avg_pool if "mean pool" in f else nnx.max_pool
        c = self.pool(x if "pool left out" in f else pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))))
        c = c if "no relu on the last" in f else nnx.relu(c)
        parts = [a, c, b, x] if "pool before three" in f else [x, a, b, c] if "input first" in f else [a, b, c, x]
        return self.out(jnp.concatenate(parts, -1))


class PyramidT(nn.Module):
    """A feature pyramid: what is coarse is resized and added to what is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.fine, self.coarse = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(3, C, 1), nn.Conv2d(5, C, 1)
        self.smooth, self.head = nn.Conv2d(C, C, 3, padding=1), nn.Linear(2 * C, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.relu(self.down(x))
        top = self.coarse(low)
        merged = self.fine(x) + functional.interpolate(top, scale_factor=2, mode="nearest")
        merged = self.smooth(merged)
        return self.head(torch.cat([merged.amax((2, 3)), top.mean((2, 3))], 1))


class PyramidJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.down, self.fine, self.coarse = conv(3, 5, 3, strides=2), conv(3, C, 1), conv(5, C, 1)
        self.smooth, self.head = conv(C, C, 3), linear(2 * C, 3)

    def __call__(self, x: Any) -> Any:
        f, low = self.faults, self.down(x)
        top = self.coarse(low if "no relu" in f else nnx.relu(low))
        n, h, w, c = top.shape
        large = jax.image.resize(top, (n, 2 * h, 2 * w, c), "bilinear" if "bilinear" in f else "nearest")
        large = jnp.tile(top, (1, 2, 2, 1)) if "tiled" in f else large
        fine = self.fine(x)
        merged = large if "fine left out" in f else fine * large if "multiplied" in f else fine + large
        smooth = merged if "smooth left out" in f else self.smooth(merged)
        first = smooth.mean((1, 2)) if "mean for max" in f else smooth.max((1, 2))
        second = smooth.mean((1, 2)) if "top of the merged" in f else top.mean((1, 2))
        return self.head(jnp.concatenate([second, first] if "coarse first" in f else [first, second], 1))


class BlockT(nn.Module):
    """CBAM: attention over channels, then over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2 = nn.Conv2d(3, C, 3, padding=1), nn.Linear(C, 3), nn.Linear(3, C)
        self.place, self.out = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(C, 2, 1)

    def channel(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.relu(self.fc1(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        weights = torch.sigmoid(self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3))))
        x = x * weights[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.out(x * torch.sigmoid(self.place(pooled)))


class BlockJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.stem, self.fc1, self.fc2 = conv(3, C, 3), linear(C, 3), linear(3, C)
        self.place, self.out = conv(2, 1, 3), conv(C, 2, 1)

    def channel(self, x: Any) -> Any:
        y = self.fc1(x)
        return self.fc2(y if "no relu" in self.faults else nnx.relu(y))

    def __call__(self, x: Any) -> Any:
        f, x = self.faults, self.stem(x)
        mean, largest = self.channel(x.mean((1, 2))), self.channel(x.max((1, 2)))
        if "mean alone" in f:
            weights = nnx.sigmoid(mean)
        elif "sigmoid of each" in f:
            weights = nnx.sigmoid(mean) + nnx.sigmoid(largest)
        else:
            weights = nnx.sigmoid(mean * largest if "product of both" in f else mean + largest)
        before, x = x, x * weights[:, None, None, :]
        source = before if "places of the stem" in f else x
        parts = [source.mean(-1, keepdims=True), source.max(-1, keepdims=True)]
        s = self.place(jnp.concatenate(parts[::-1] if "largest first" in f else parts, -1))
        return self.out(x * (s if "no second sigmoid" in f else nnx.sigmoid(s)))


class ChannelsT(nn.Module):
    """ShuffleNet: half of the channels go through, then both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.depth = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
        )
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x).chunk(2, 1)
        b = self.depth(functional.relu6(8 * self.inner(b)))
        y = torch.cat([a, functional.relu6(b)], 1)
        n, c, h, w = y.shape
        return self.out(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class ChannelsJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.stem, self.inner, self.depth = conv(3, 8, 1), conv(4, 4, 1), conv(4, 4, 3, feature_group_count=4)
        self.out = conv(8, 2, 1)

    def __call__(self, x: Any) -> Any:
        f = self.faults
        a, b = jnp.split(self.stem(x), 2, -1)
        a, b = (b, a) if "other half" in f else (a, b)
        b = 8 * self.inner(b)
        b = self.depth(nnx.relu(b) if "relu for relu6" in f else nnx.relu6(b))
        b = b if "second relu6 left out" in f else nnx.relu6(b)
        y = jnp.concatenate([b, a] if "second half first" in f else [a, b], -1)
        n, h, w, c = y.shape
        if "shuffled back" in f:
            y = y.reshape(n, h, w, c // 2, 2).swapaxes(-1, -2).reshape(n, h, w, c)
        elif "not shuffled" not in f:
            y = y.reshape(n, h, w, 2, c // 2).swapaxes(-1, -2).reshape(n, h, w, c)
        return self.out(y)


class StyleT(nn.Module):
    """StyleGAN2: a style scales what goes in, and the length of the weights is taken out again; then AdaIN."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.body, self.adain = nn.Linear(4, 3), nn.Conv2d(3, C, 3, padding=1), nn.Linear(4, 2 * C)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        z = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        x = self.body(x * (self.style(z) + 1)[:, :, None, None])
        x = functional.leaky_relu(x, 0.2) * 2**0.5
        scale, shift = self.adain(z).view(-1, 2, C).unbind(1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)
        return x * scale[:, :, None, None] + shift[:, :, None, None]


class StyleJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.style, self.body, self.adain = faults, linear(4, 3), conv(3, C, 3), linear(4, 2 * C)

    def __call__(self, x: Any, z: Any) -> Any:
        f = self.faults
        size = (z**2).mean(0 if "normalized over the batch" in f else 1, keepdims=True)
        z = z if "style not normalized" in f else z * jax.lax.rsqrt(size + 1e-8)
        style = self.style(z)
        x = self.body(x * (style if "no one" in f else style + 1)[:, None, None, :])
        x = nnx.leaky_relu(x, 0.2)
        x = x if "gain left out" in f else x * 2**0.5
        both = self.adain(z)
        scale, shift = both.reshape(-1, C, 2).transpose(2, 0, 1) if "every other" in f else jnp.split(both, 2, 1)
        scale, shift = (shift, scale) if "shift first" in f else (scale, shift)
        spread = x.std((1, 2), keepdims=True, ddof=0 if "ddof" in f else 1)
        x = (x if "mean kept" in f else x - x.mean((1, 2), keepdims=True)) / (spread + 1e-5)
        return x * scale[:, None, None, :] + shift[:, None, None, :]


class CriticT(nn.Module):
    """A discriminator with the spread over the batch as one more channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(5, C, 3, 2, 1), nn.Linear(C * 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.leaky_relu(self.stem(x), 0.2)
        spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        x = functional.leaky_relu(self.body(torch.cat([x, spread], 1)), 0.2)
        return self.out(x.permute(0, 2, 3, 1).flatten(1))


class CriticJ(nnx.Module):
    def __init__(self, faults: frozenset[str]) -> None:
        self.faults, self.stem, self.body, self.out = faults, conv(3, 4, 3), conv(5, C, 3, strides=2), linear(C * 12, 1)

    def __call__(self, x: Any) -> Any:
        f, x = self.faults, self.stem(x)
        x = nnx.relu(x) if "relu" in f else nnx.leaky_relu(x, 0.2)
        spread = x.var(0, ddof=1 if "ddof" in f else 0) + 1e-8
        spread = (spread if "variance" in f else jnp.sqrt(spread)).mean()
        spread = jnp.broadcast_to(spread, (*x.shape[:-1], 1))
        x = self.body(jnp.concatenate([spread, x] if "spread first" in f else [x, spread], -1))
        x = x if "no second activation" in f else nnx.leaky_relu(x, 0.2)
        return self.out((x.transpose(0, 3, 1, 2) if "channels first" in f else x).reshape(len(x), -1))


IMAGE = normal((2, 3, 6, 8))

ARCHITECTURES = [
    Architecture(
        "MobileNetV3", MobileT, MobileJ, normal((2, 4, 6, 8)),
        {
            "swish for hardswish": ("silu", "swish"),
            "second hardswish left out": ("the identity", "leaves out hardswish"),
            "largest": ("max", "largest"),
            "hardswish for relu": ("hardswish", "hard_swish", "hard swish"),
            "sigmoid": ("sigmoid",),
            "no hardsigmoid": ("the identity", "leaves out hardsigmoid"),
            "excitation left out": ("leaves out the product",),
            "added": ("the sum of the two",),
            "activated at the end": ("hardswish", "hard_swish"),
            "no residual": ("leaves out the sum",),
        },
        (("second hardswish left out", "largest"), ("added", "sigmoid"), ("activated at the end", "no residual")),
    ),
    Architecture(
        "Inception", InceptionT, InceptionJ, IMAGE,
        {
            "no relu on the first": ("the identity", "leaves out relu"),
            "no relu between": ("the identity", "leaves out relu"),
            "mean pool": ("mean",),
            "pool left out": ("leaves out max_pool2d",),
            "no relu on the last": ("the identity", "leaves out relu"),
            "pool before three": ("order",),
            "input first": ("order",),
        },
        (("no relu on the last", "pool before three"), ("no relu on the first", "input first")),
    ),
    Architecture(
        "feature pyramid", PyramidT, PyramidJ, normal((2, 3, 8, 8)),
        {
            "no relu": ("the identity", "leaves out relu"),
            "bilinear": ("bilinear", "\"linear\""),
            "tiled": ("tile",),
            "fine left out": ("leaves out the sum",),
            "multiplied": ("the product of the two",),
            "smooth left out": ("leaves out conv2d", "smooth"),
            "mean for max": ("mean",),
            "top of the merged": ("takes",),
            "coarse first": ("order",),
        },
        (("bilinear", "fine left out"), ("mean for max", "coarse first")),
    ),
    Architecture(
        "CBAM", BlockT, BlockJ, IMAGE,
        {
            "no relu": ("the identity", "leaves out relu"),
            "mean alone": ("leaves out the sum",),
            "sigmoid of each": ("sigmoid",),
            "product of both": ("the product of the two",),
            "places of the stem": ("takes", "leaves out the product"),
            "largest first": ("order",),
            "no second sigmoid": ("the identity", "leaves out sigmoid"),
        },
        (("product of both", "largest first"), ("mean alone", "no second sigmoid")),
    ),
    Architecture(
        "ShuffleNet", ChannelsT, ChannelsJ, IMAGE,
        {
            "other half": ("order",),
            "relu for relu6": ("relu",),
            "second relu6 left out": ("the identity", "leaves out relu6"),
            "second half first": ("order",),
            "shuffled back": ("splits", "transposes", "merges"),
            "not shuffled": ("leaves out transpose",),
        },
        (("second relu6 left out", "not shuffled"), ("second half first", "second relu6 left out")),
    ),
    Architecture(
        "StyleGAN", StyleT, StyleJ, lambda rng: (rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 4))),
        {
            "normalized over the batch": ("axis 0",),
            "style not normalized": ("leaves out the product",),
            "no one": ("leaves out add",),
            "gain left out": ("leaves out mul", "factor 1/sqrt(2)"),
            "every other": ("splits the axis", "every 2th"),
            "shift first": ("order",),
            "ddof": ("ddof=0", "divides by n"),
            "mean kept": ("leaves out the difference",),
        },
        (("shift first", "mean kept"), ("every other", "ddof")),
    ),
    Architecture(
        "discriminator", CriticT, CriticJ, IMAGE,
        {
            "relu": ("relu",),
            "ddof": ("ddof=1", "divides by n"),
            "variance": ("leaves out sqrt",),
            "spread first": ("order",),
            "no second activation": ("the identity", "leaves out leaky_relu", "slope"),
            "channels first": ("leaves out permute", "merges", "order"),
        },
        (("variance", "spread first"), ("no second activation", "channels first")),
    ),
]  # fmt: skip
