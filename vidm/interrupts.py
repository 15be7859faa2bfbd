"""Ctrl-C ends a program with one line and exit code 130, wherever it is and whatever processes it has. Ours.

one_line_on_interrupt()                     # before imports that take seconds
for size in in_processes(render, worlds, workers=4): ...
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_line_on_interrupt() -> None:
    """Let a KeyboardInterrupt that nothing catches end the program with one line in place of a traceback. Ours."""
    others = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            others(kind, error, traceback)
            return
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)

    sys.excepthook = hook


def in_processes(function: Callable[[T], R], items: Iterable[T], workers: int, chunksize: int = 1) -> Iterator[R]:
    """Yield function(item) for each item, in order, computed by spawned processes.

    On Ctrl-C, which a terminal sends to all processes, they finish what they work on, and only this one is interrupted.
    The calling script needs `if __name__ == "__main__"`. Ours.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(function, items, chunksize=chunksize)  # starts the processes, which inherit the mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
