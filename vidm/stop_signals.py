"""SIGTERM and SIGINT ask a run to stop; it does so when its step is done and saved.

with StopSignals() as stop:
    while not stop.received:
        step()
"""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher that is interrupted passes the signal on at once; a person presses twice later than that.
_PATIENCE_S = 2.0


class StopSignals:
    """While open, SIGTERM and SIGINT (Ctrl-C) are noted instead of ending the process. Ours.

    `received` is the name of the first one, "" before. A second Ctrl-C, two seconds later or more, interrupts at once.
    Opened in a process's main thread only.
    """

    def __init__(self) -> None:
        self.received = ""
        self._when = 0.0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._when > _PATIENCE_S:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._when = signal.Signals(number).name, now


def stop_only_with_parent(worker: int = 0) -> None:
    """In a data loading process, heed SIGTERM from its parent alone, and SIGINT never.

    A terminal or a scheduler sends its signal to every process of a run, and the step under way still needs its data.
    """
    parent = multiprocessing.parent_process()
    assert parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_the_parents() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_the_parents, daemon=True).start()
