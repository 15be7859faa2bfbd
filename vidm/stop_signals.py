"""SIGTERM and SIGINT ask a run to stop after the current step.

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
# A launcher may repeat a Ctrl-C at once; a second Ctrl-C from the user comes later.
_REPEAT_S = 2.0


class StopSignals:
    """While the context is open, SIGTERM and SIGINT (Ctrl-C) are recorded instead of ending the process. Ours.

    `received` is the name of the first signal, "" if there was none. Another Ctrl-C more than two seconds later raises
    KeyboardInterrupt. The context can be opened only in the main thread.
    """

    def __init__(self) -> None:
        self.received = ""
        self._when = 0.0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._when > _REPEAT_S:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._when = signal.Signals(number).name, now


def stop_only_with_parent(worker: int = 0) -> None:
    """In a data loading process, ignore SIGINT, and SIGTERM unless the parent process sends it.

    A terminal or a scheduler signals every process of a run, but the current step still needs the data of this one.
    """
    parent = multiprocessing.parent_process()
    assert parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parents_signal() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parents_signal, daemon=True).start()
