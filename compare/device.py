"""Sets the device of both sides, the precision of their matrix products, and the number of threads."""

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from compare.errors import InputError

T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda")

_INSTALL = {
    "torch": "install a CUDA build of torch: see https://pytorch.org/get-started/locally",
    "jax": 'install netparity with its GPU extra: pip install "netparity[cuda]"',
}


def without_gpu() -> list[str]:
    """List the frameworks, torch or jax, that do not see a CUDA GPU."""
    import jax
    import torch

    # Before JAX's first use of the card: by default it takes three quarters of the memory, and torch needs some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    lacking = [] if torch.cuda.is_available() else ["torch"]
    try:
        jax.devices("cuda")
    except RuntimeError:  # what JAX raises for a backend that it does not have
        lacking.append("jax")
    return lacking


def resolve(device: str) -> str:
    """Turn "auto" into "cuda" if both frameworks see a GPU, else "cpu"; check that a required GPU exists.

    Raises:
        InputError: For an unknown device, or for "cuda" if a framework does not see a GPU; the message names the
            framework.

    """
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    if device == "cpu":
        return device
    lacking = without_gpu()
    if device == "auto":
        return "cpu" if lacking else "cuda"
    if lacking:
        fixes = "; ".join(f"{framework}: {_INSTALL[framework]}" for framework in lacking)
        raise InputError(f"no CUDA GPU is seen by {' and '.join(lacking)}. {fixes}. Or use --device cpu")
    return device


@contextlib.contextmanager
def taking_turns(alone: bool = True) -> Iterator[None]:
    """Keep torch and NumPy to one thread each while this lasts, unless `alone` is false.

    Their idle threads spin while they wait for work. When frameworks run alternately, that slows all of them.
    """
    import threadpoolctl
    import torch

    if not alone:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def on(device: str) -> Iterator[None]:
    """Run JAX on `device`, and float32 in full precision on both sides, while this lasts.

    JAX's default on Ampere and later GPUs is TF32, which keeps 10 bits of a float32's 23: jax issue #12008. PyTorch's
    is TF32 too, for convolutions and recurrent layers.
    """
    import jax

    with _full_float32(), jax.default_device(jax.devices(device)[0]), jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keep PyTorch's products of matrices, convolutions and recurrent layers in float32, while this lasts.

    PyTorch has an old interface to these settings, for all operations at once, and a new one, for each. It raises an
    error when the old one is read while the two disagree. So both are set.
    """
    import torch

    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    settings += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [each.fp32_precision for each in settings]
    matmul, cudnn = _unless_mixed(torch.get_float32_matmul_precision), _unless_mixed(lambda: backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            backends.cudnn.allow_tf32 = cudnn
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision


def _unless_mixed(read: Callable[[], T]) -> T | None:
    """Read a setting by the old interface; None where the new one has set something else for some operations."""
    with warnings.catch_warnings():
        # PyTorch 2.9 warns of this function, which later versions keep; it says so once in a process.
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32", UserWarning)
        with contextlib.suppress(RuntimeError):
            return read()
    return None


@contextlib.contextmanager
def running(device: str, parameters: int) -> Iterator[None]:
    """Run both frameworks on `device`, in turns, while this lasts. `parameters` is how many a model has.

    torch's global random numbers go on afterwards as if nothing had been drawn. Of comparisons in several threads one
    runs at a time, since a float64 run sets torch's default dtype, which all threads share.
    """
    import torch

    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices), on(device), taking_turns(parameters < _LARGE):
        yield


_ONE_AT_A_TIME = threading.RLock()


_LARGE = 1_000_000
"""Parameters from which on a step lasts so long that threads that spin between two steps no longer matter."""


def give_back_memory(parameters: int) -> None:
    """Give freed memory back to the system, where the C library is one that keeps it: glibc, on Linux.

    Runs that alternate free and allocate hundreds of megabytes in different threads, and glibc keeps the free memory of
    each thread for itself. `parameters` is how many a model has: with few, a step is too short for this.
    """
    import ctypes

    if parameters < _HUGE or sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


_HUGE = 4_000_000
"""The number of parameters from which on the 20 ms that this takes are short compared with a step."""
