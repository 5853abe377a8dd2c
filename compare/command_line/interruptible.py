"""Runs long tasks: their progress is shown on stderr, and Ctrl-C stops them within a second."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from compare.report.progress import Progress, Show

T = TypeVar("T")

INTERVAL = 30.0
"""Seconds between two lines of progress, where stderr is no terminal."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: as after Ctrl-C, what was begun is cleaned up."""


@contextlib.contextmanager
def until_terminated() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM while this lasts, so that no partial file stays."""
    if threading.current_thread() is not threading.main_thread():  # only there may a signal be handled
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruptible(work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, so that Ctrl-C does not wait for it.

    Python sees a signal between two of its own instructions, and only in the main thread: XLA may compile for minutes
    before there is one. Whoever catches KeyboardInterrupt has to leave the process by `os._exit`, since a thread
    cannot be stopped.
    """
    future = ThreadPoolExecutor(1).submit(work)
    while not wait([future], timeout=0.1).done:
        pass
    return future.result()


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Show on stderr, where that is a terminal, what is being done and how long it still needs."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[left]}"),
    )
    hidden = quiet or not console.is_terminal
    bars = Bars(*columns, console=console, transient=True, disable=hidden)
    # Bars that are hidden still end with an empty line in older versions of rich.
    with contextlib.nullcontext() if hidden else bars:
        task = bars.add_task("starting", total=None, left="")

        latest = Progress("starting")

        def show(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            # Assigned, since `update` takes a total of None for one that stays.
            bars.tasks[0].total = progress.steps
            left = "left" if progress.steps else ""
            bars.update(task, description=progress.doing, completed=progress.done, left=left)

        with _said_now_and_then(lambda: latest, quiet=quiet or console.is_terminal):
            yield show


@contextlib.contextmanager
def _said_now_and_then(latest: Callable[[], Progress], *, quiet: bool) -> Iterator[None]:
    """Print a line of what is being done every `INTERVAL` seconds: a CI job shows no bars, and must not seem dead."""
    began, done = time.monotonic(), threading.Event()

    def say() -> None:
        while not done.wait(INTERVAL):
            print(f"netparity: {latest()}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    if quiet:
        yield
        return
    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
