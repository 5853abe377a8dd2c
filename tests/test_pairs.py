"""Programs written for PyTorch and for JAX, with real data: a match over steps of training, or what differs."""

from collections.abc import Callable
from typing import Any

import pytest
from pairs import recurrent, resnet, scanned, transformer
from pairs.data import Pair

import compare

Make = Callable[[], Pair]
Parity = Callable[..., compare.Report]


def named(*functions: Make, slow: bool = False) -> list[Any]:
    return [
        pytest.param(
            function,
            id=f"{function.__module__.rpartition('.')[2]}-{function.__name__}",
            marks=pytest.mark.slow if slow else (),
        )
        for function in functions
    ]


# Two of them are in `make test`; all in `make test-all`.
QUICK = named(recurrent.lstm_in_equinox, scanned.in_haiku)
OTHERS = named(
    resnet.in_nnx,
    resnet.in_linen,
    transformer.in_linen,
    transformer.in_nnx,
    recurrent.lstm_in_nnx,
    recurrent.lstm_in_linen,
    recurrent.gru_in_linen,
    recurrent.gru_in_nnx,
    scanned.in_linen,
    scanned.in_nnx,
    scanned.in_equinox,
    slow=True,
)


@pytest.mark.parametrize("make", [*QUICK, *OTHERS])
@pytest.mark.parametrize("steps", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_right_ports_match(make: Make, steps: int, parity: Parity) -> None:
    parity(*make(), steps=steps, strict=True)


@pytest.mark.parametrize("make", named(transformer.in_nnx, transformer.in_linen, slow=True))
def test_in_evaluation(make: Callable[..., Pair], parity: Parity) -> None:
    parity(*make(training=False), steps=2, strict=True)


@pytest.mark.slow
def test_the_running_variance_of_flax_is_another() -> None:
    divergence = compare.check(*resnet.in_nnx_with_flax_statistics(), steps=2).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage, divergence.torch) == (0, "buffers", "norm.running_var")


@pytest.mark.slow
def test_one_bias_in_the_place_of_two_takes_half_the_step() -> None:
    divergence = compare.check(*recurrent.lstm_in_nnx_with_one_step(), steps=2).divergence
    assert divergence is not None
    assert (divergence.step, divergence.stage) == (0, "update")
    assert "bias" in divergence.torch
