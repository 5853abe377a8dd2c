"""Which device is taken, and what is said where it is missing."""

from typing import Any

import jax
import pytest
import torch

import compare
from compare import device
from compare.diagnosis.on_cpu import arguments_on_cpu, write_back


@pytest.mark.parametrize("lacking", [["torch"], ["jax"], ["torch", "jax"]])
def test_a_missing_gpu_is_named_with_its_fix(lacking: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "without_gpu", lambda: lacking)
    assert device.resolve("auto") == "cpu"
    with pytest.raises(compare.InputError, match=f"no CUDA GPU is seen by {' and '.join(lacking)}") as error:
        device.resolve("cuda")
    assert ("install a CUDA build of torch" in str(error.value)) == ("torch" in lacking)
    assert ('pip install "netparity[cuda]"' in str(error.value)) == ("jax" in lacking)


def test_a_gpu_that_both_see_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "without_gpu", list)
    assert device.resolve("auto") == "cuda"
    assert device.resolve("cpu") == "cpu"


def test_precision_and_threads_are_set_and_given_back() -> None:
    torch.set_float32_matmul_precision("medium")
    threads = torch.get_num_threads()
    try:
        with device.on("cpu"), device.taking_turns():
            assert torch.get_float32_matmul_precision() == "highest"
            assert jax.config.jax_default_matmul_precision == "highest"  # type: ignore[attr-defined]
            assert torch.get_num_threads() == 1
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_of_the_new_interface_are_set_and_given_back() -> None:
    """PyTorch raises an error when the old interface is read after the new one has set single operations."""
    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    before = [each.fp32_precision for each in settings]
    assert backends.cudnn.conv.fp32_precision == "tf32", "PyTorch's default, which a check must not have"
    try:
        for mine in (["tf32", "ieee", "tf32"], ["ieee", "tf32", "tf32"], ["tf32", "tf32", "ieee"]):
            for each, precision in zip(settings, mine, strict=True):
                each.fp32_precision = precision
            with device.on("cpu"):
                assert [each.fp32_precision for each in settings] == ["ieee"] * 3
                assert not backends.cudnn.allow_tf32
            assert [each.fp32_precision for each in settings] == mine
    finally:
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision


def test_what_is_tried_names_no_gpu() -> None:
    gpu = torch.device("cuda:1")
    assert arguments_on_cpu(({"device": gpu}, [gpu, "cuda:0", "reflect"], 3)) == (
        {"device": torch.device("cpu")},
        [torch.device("cpu"), "cpu", "reflect"],
        3,
    )
    assert arguments_on_cpu((0, True), "to") == ("cpu", True)


def test_running_statistics_that_are_overwritten_on_the_cpu_are_written_back() -> None:
    x, weight = torch.randn(5, 3), torch.ones(3, requires_grad=True)
    mean, variance = torch.zeros(3), torch.ones(3)
    given = {each: (each.detach().clone(), each._version) for each in (x, weight, mean, variance)}
    copies = [copy for copy, _ in given.values()]
    torch.nn.functional.batch_norm(copies[0], copies[2], copies[3], copies[1], training=True)
    for tensor, (copy, version) in given.items():
        write_back(tensor, copy, version, "batch_norm")
    assert torch.equal(mean, copies[2])
    assert torch.equal(variance, copies[3])
    assert mean.abs().min() > 0
    assert (x._version, weight._version) == (0, 0), "what is not overwritten stays as it was"
